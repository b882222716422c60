"""ATSS: each object sets its own IoU threshold (Zhang et al., CVPR 2020, arXiv 1912.02424)."""

from typing import Literal

from pydantic import Field

from mgdet.assign.base import Assigner, owned_labels
from mgdet.assign.criteria import adaptive, prior_iou
from mgdet.assign.geometry import CandidateKind
from mgdet.structures import Assignment, Predictions, Targets


class ATSS(Assigner):
    """Of the anchors nearest to an object, those with IoU >= mean + standard deviation are positive.

    Algorithm 1 of the paper: `top_k` nearest locations on each level (9), threshold on the IoU of their anchors, centre
    inside the object, the object with the larger IoU wins. A point has the square of 8 strides as its anchor; where a
    location has several anchors all of them are candidates, unless `top_k_of: anchors`. An object left with none adopts
    one (`find_owners`). With `adopt: false` this is the authors' rule; MMDetection's counts anchors.
    """

    name: Literal["atss"] = "atss"
    top_k: int = Field(default=9, ge=1, le=10_000, description="candidate locations of each object on each level")

    top_k_of: CandidateKind = Field(
        default="locations",
        description="what top_k counts: locations with all their anchors (the authors' later code), or single anchors "
        "(their first version and MMDetection)",
    )

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Both tasks get the same labels."""
        priors = predictions.priors
        selected = adaptive(prior_iou(priors), priors, self.top_k, self.top_k_of)
        labels = owned_labels(self.find_owners(selected, priors, targets))
        return Assignment(labels, labels)
