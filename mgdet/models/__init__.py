"""Networks, their losses and their test-time processing."""

from typing import Annotated

from mgdet.config_base import ByName
from mgdet.models.detector import Detector, DetectorConfig
from mgdet.models.fcos import FCOS, FCOSConfig
from mgdet.models.losses import LossConfig, Losses, LossTerm
from mgdet.models.retinanet import RetinaNet, RetinaNetConfig
from mgdet.models.weights import initialise

ModelConfig = Annotated[RetinaNetConfig | FCOSConfig, ByName()]

__all__ = [
    "FCOS",
    "Detector",
    "DetectorConfig",
    "FCOSConfig",
    "LossConfig",
    "LossTerm",
    "Losses",
    "ModelConfig",
    "RetinaNet",
    "RetinaNetConfig",
    "initialise",
]
