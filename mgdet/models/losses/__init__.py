"""The training losses: one for each task, a quality branch's, and one that ties the tasks together."""

from mgdet.models.losses.auto_assign import AutoAssignLoss
from mgdet.models.losses.bag import FreeAnchorLoss
from mgdet.models.losses.base import LossTerm
from mgdet.models.losses.box import BalancedL1Loss, BoxLoss, GIoULoss, L1Loss, SmoothL1Loss
from mgdet.models.losses.classification import ClassLoss, FocalLoss, QualityFocalLoss, VarifocalLoss
from mgdet.models.losses.contrast import TaskContrastLoss
from mgdet.models.losses.correlation import CorrelationLoss
from mgdet.models.losses.distribution import DistributionFocalLoss
from mgdet.models.losses.dw import DualWeightingLoss
from mgdet.models.losses.quality import QualityKind, QualityLoss
from mgdet.models.losses.targets import box_targets, centerness, own_iou
from mgdet.models.losses.total import LossConfig, Losses

__all__ = [
    "AutoAssignLoss",
    "BalancedL1Loss",
    "BoxLoss",
    "ClassLoss",
    "CorrelationLoss",
    "DistributionFocalLoss",
    "DualWeightingLoss",
    "FocalLoss",
    "FreeAnchorLoss",
    "GIoULoss",
    "L1Loss",
    "LossConfig",
    "LossTerm",
    "Losses",
    "QualityFocalLoss",
    "QualityKind",
    "QualityLoss",
    "SmoothL1Loss",
    "TaskContrastLoss",
    "VarifocalLoss",
    "box_targets",
    "centerness",
    "own_iou",
]
