"""Networks, their losses and their test-time processing."""

from mgdet.models.losses import LossConfig, Losses
from mgdet.models.retinanet import RetinaNet, RetinaNetConfig
from mgdet.models.weights import initialise

ModelConfig = RetinaNetConfig
Detector = RetinaNet

__all__ = ["Detector", "LossConfig", "Losses", "ModelConfig", "RetinaNet", "RetinaNetConfig", "initialise"]
