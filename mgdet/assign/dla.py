"""DLA: ATSS on the overlap of anchor and prediction together (Zhang et al., arXiv 2201.09396)."""

from typing import Literal

from pydantic import Field

from mgdet.assign.base import Assigner, owned_labels
from mgdet.assign.criteria import adaptive, prior_iou, regressed_iou
from mgdet.assign.geometry import CandidateKind
from mgdet.structures import Assignment, Predictions, Targets


class DLA(Assigner):
    """Of the nearest anchors those with IoU_regressed + IoU_anchor of at least the sum of both thresholds are positive.

    The threshold is the sum of both means and both standard deviations over the candidates; the centre must be inside,
    and the larger sum wins (verified: `prepare_targets` of the authors' code). Candidates are those of `atss`. The
    code's target is the predicted IoU: `loss.cls: {name: quality_focal, target: iou}`.
    """

    name: Literal["dla"] = "dla"
    top_k: int = Field(default=9, ge=1, le=10_000, description="candidate locations of each object on each level")
    top_k_of: CandidateKind = Field(
        default="locations", description="what top_k counts: locations with all their anchors, or single anchors"
    )

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Both tasks get the same labels."""
        priors = predictions.priors
        selected = adaptive(regressed_iou(predictions), priors, self.top_k, self.top_k_of, prior_iou(priors))
        labels = owned_labels(self.find_owners(selected, priors, targets))
        return Assignment(labels, labels)
