"""Assigners: who is positive for which task. Adding one takes its file and its place in the union below."""

from typing import Annotated

from mgdet.assign.atss import ATSS
from mgdet.assign.auto_assign import AutoAssign
from mgdet.assign.base import Assigner
from mgdet.assign.center_sampling import CenterSampling
from mgdet.assign.ddod import DDOD
from mgdet.assign.dla import DLA
from mgdet.assign.dw import DW
from mgdet.assign.free_anchor import FreeAnchor
from mgdet.assign.max_iou import MaxIoU
from mgdet.assign.musu import MuSu
from mgdet.assign.mutual_guidance import MutualGuidance
from mgdet.assign.mutual_labeling import MutualLabeling
from mgdet.assign.ota import OTA
from mgdet.assign.paa import PAA
from mgdet.assign.permutation import Permutation
from mgdet.assign.simota import SimOTA
from mgdet.assign.task_aligned import TaskAligned
from mgdet.config_base import ByName

AssignerConfig = Annotated[
    MaxIoU
    | CenterSampling
    | ATSS
    | TaskAligned
    | SimOTA
    | MutualGuidance
    | MutualLabeling
    | FreeAnchor
    | PAA
    | OTA
    | DDOD
    | DLA
    | MuSu
    | AutoAssign
    | DW
    | Permutation,
    ByName(),
]

__all__ = [
    "ATSS",
    "DDOD",
    "DLA",
    "DW",
    "OTA",
    "PAA",
    "Assigner",
    "AssignerConfig",
    "AutoAssign",
    "CenterSampling",
    "FreeAnchor",
    "MaxIoU",
    "MuSu",
    "MutualGuidance",
    "MutualLabeling",
    "Permutation",
    "SimOTA",
    "TaskAligned",
]
