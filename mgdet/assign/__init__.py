"""Assigners: who is positive for which task. Adding one takes its file and its place in the union below."""

from typing import Annotated

from mgdet.assign.atss import ATSS
from mgdet.assign.base import Assigner
from mgdet.assign.center_sampling import CenterSampling
from mgdet.assign.max_iou import MaxIoU
from mgdet.assign.mutual_guidance import MutualGuidance
from mgdet.assign.mutual_labeling import MutualLabeling
from mgdet.assign.simota import SimOTA
from mgdet.assign.task_aligned import TaskAligned
from mgdet.config_base import ByName

AssignerConfig = Annotated[
    MaxIoU | CenterSampling | ATSS | TaskAligned | SimOTA | MutualGuidance | MutualLabeling,
    ByName(),
]

__all__ = [
    "ATSS",
    "Assigner",
    "AssignerConfig",
    "CenterSampling",
    "MaxIoU",
    "MutualGuidance",
    "MutualLabeling",
    "SimOTA",
    "TaskAligned",
]
