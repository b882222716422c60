"""The baseline of anchors: positives by the overlap of the anchors with the objects, the same for both tasks."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mgdet.assign.base import Assigner, hard_labels
from mgdet.assign.criteria import prior_iou
from mgdet.assign.ownership import Counts, Force, Ownership
from mgdet.assign.pieces import Criterion
from mgdet.errors import ConfigError
from mgdet.structures import Assignment, Labels, Predictions, PriorLayout, Priors, Targets


class IoUThresholds(Assigner):
    """Assigners whose number of samples per object may be counted by thresholds on the anchor IoU."""

    positive_iou: float = Field(default=0.5, ge=0, le=1, description="anchor IoU from which an anchor is positive")
    negative_iou: float = Field(default=0.4, ge=0, le=1, description="anchor IoU below which an anchor is background")
    force_ties: bool = Field(
        default=True,
        description="of anchors that tie as an object's best all are positive, each for the object that it overlaps "
        "most, as in torchvision; false: only the one with the largest DIoU, for that object, as in SSD",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou ({self.negative_iou}) must not exceed positive_iou ({self.positive_iou}): "
                "anchors between the two are ignored"
            )
        return self

    def anchor_owners(
        self, priors: Priors, targets: Targets, force: bool = True, overlap: Criterion | None = None
    ) -> Ownership:
        """Who owns each anchor by IoU; with `force` an object's best anchor counts as 1 and orphans adopt.

        `overlap` is `prior_iou` where the caller has it already.
        """
        rule: Force = "none" if not force else "ties" if self.force_ties else "best"
        criterion = overlap or prior_iou(priors)
        return self.find_owners(criterion, priors, targets, force=rule, adopt=force, enough=self.positive_iou)

    def threshold_labels(self, owners: Ownership) -> Labels:
        """Positive from `positive_iou`, ignored from `negative_iou`, background below."""
        positive = (owners.owner >= 0) & (owners.quality >= self.positive_iou)
        ignored = (owners.owner >= 0) & (owners.quality >= self.negative_iou) & ~positive
        return hard_labels(owners.owner, positive, ignored)

    def threshold_counts(self, owners: Ownership, num_objects: int) -> Counts:
        """How many anchors of each object the thresholds make positive, and positive or ignored."""
        return Counts(
            owners.count_owned(owners.quality >= self.positive_iou, num_objects),
            owners.count_owned(owners.quality >= self.negative_iou, num_objects),
        )


class MaxIoU(IoUThresholds):
    """Anchors with IoU >= 0.5 are positive, [0.4, 0.5) ignored, the rest background.

    RetinaNet's rule (Lin et al., ICCV 2017, section 4.1) with the guarantee of its implementations: the best anchors of
    each object are positive whatever their IoU (`force_match`), all that tie (`force_ties`). With `adopt: false` it is
    torchvision's `Matcher(0.5, 0.4, allow_low_quality_matches=True)`.
    """

    name: Literal["max_iou"] = "max_iou"
    force_match: bool = Field(
        default=True, description="make each object's best anchor positive even below positive_iou"
    )

    def resolved_for(self, layout: PriorLayout) -> Self:
        """Unchanged; refuses points."""
        if layout.points:
            raise ConfigError(
                "assigner max_iou compares anchor boxes with objects, and FCOS's points have no size; "
                "use assigner.name=center_sampling (FCOS's own rule) or atss, or model.name=retinanet"
            )
        return self

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Both tasks get the same labels."""
        labels = self.threshold_labels(self.anchor_owners(predictions.priors, targets, self.force_match))
        return Assignment(labels, labels)
