"""The baseline: positives by the overlap of the anchors with the objects, the same for both tasks."""

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from mgdet.assign.base import Assigner, hard_labels
from mgdet.assign.ownership import Criterion, Ownership, find_owners
from mgdet.boxes import pairwise_iou
from mgdet.structures import Assignment, Labels, Predictions, Priors, Targets


class IoUThresholds(Assigner):
    """Assigners whose number of samples per object is counted by thresholds on the anchor IoU."""

    positive_iou: float = Field(default=0.5, ge=0, le=1, description="anchor IoU from which an anchor is positive")
    negative_iou: float = Field(default=0.4, ge=0, le=1, description="anchor IoU below which an anchor is background")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou ({self.negative_iou}) must not exceed positive_iou ({self.positive_iou}): "
                "anchors between the two are ignored"
            )
        return self

    def owners(self, criterion: Criterion, priors: Priors, targets: Targets, force_match: bool = True) -> Ownership:
        """Ownership under a criterion; an object needs a prior of at least `positive_iou`, or one by force."""
        return find_owners(
            criterion,
            priors,
            targets,
            chunk_elements=self.chunk_elements,
            force_match=force_match,
            enough=self.positive_iou,
        )

    def labels_by_anchor(self, owners: Ownership) -> Labels:
        """Positive from `positive_iou`, ignored from `negative_iou`, background below."""
        positive = (owners.owner >= 0) & (owners.quality >= self.positive_iou)
        ignored = (owners.owner >= 0) & (owners.quality >= self.negative_iou) & ~positive
        return hard_labels(owners.owner, positive, ignored)


class MaxIoU(IoUThresholds):
    """Anchors with IoU >= 0.5 are positive, [0.4, 0.5) ignored, the rest background.

    RetinaNet's rule (Lin et al., ICCV 2017, section 4.1) with SSD's guarantee (Liu et al., ECCV 2016, section 2.2):
    the best anchor of each object is positive for it whatever its IoU (`force_match`).
    """

    name: Literal["max_iou"] = "max_iou"
    force_match: bool = Field(default=True, description="give each object its best anchor even below positive_iou")

    def assign(self, priors: Priors, predictions: Predictions, targets: Targets) -> Assignment:
        """Both tasks get the same labels."""
        labels = self.labels_by_anchor(self.owners(anchor_iou(priors), priors, targets, self.force_match))
        return Assignment(labels, labels)


def anchor_iou(priors: Priors) -> Criterion:
    """IoU_anchor: overlap of the objects with the priors."""

    def criterion(boxes: Tensor, labels: Tensor) -> Tensor:
        return pairwise_iou(boxes, priors.boxes)

    return criterion
