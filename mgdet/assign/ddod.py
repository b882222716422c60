"""DDOD's decoupled labels: one set of positives for each task (Chen et al., ACM MM 2021, arXiv 2107.02963)."""

from typing import Literal

from pydantic import Field

from mgdet.assign.base import Assigner, owned_labels
from mgdet.assign.criteria import adaptive, class_score, product, regressed_iou
from mgdet.assign.geometry import CandidateKind
from mgdet.structures import Assignment, Labels, Predictions, Targets


class DDOD(Assigner):
    """ATSS's rule on p^(1 - alpha) * u^alpha, with an alpha of its own for each task.

    p is the score of the object's class, u the IoU of the predicted box. Candidates are the priors at the `top_k`
    nearest locations on each level, and those with a quality of at least mean + standard deviation and the centre
    inside are positive; the larger quality wins (verified: MMDetection's `atss_cost_assigner.py`, one anchor a
    location; alpha 0.8 and 0.5: second-hand). The branches' decoupled features and the weights of the levels are not
    part of this.
    """

    name: Literal["ddod"] = "ddod"
    alpha_cls: float = Field(default=0.8, ge=0, le=1, description="power of the IoU for classification")
    alpha_loc: float = Field(default=0.5, ge=0, le=1, description="power of the IoU for localization")
    top_k: int = Field(default=9, ge=1, le=10_000, description="candidate locations of each object on each level")
    top_k_of: CandidateKind = Field(
        default="locations", description="what top_k counts: locations with all their anchors, or single anchors"
    )

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Labels of the two tasks, independent of each other."""
        return Assignment(
            self._labels(self.alpha_cls, predictions, targets), self._labels(self.alpha_loc, predictions, targets)
        )

    def _labels(self, alpha: float, predictions: Predictions, targets: Targets) -> Labels:
        priors, powers = predictions.priors, (1 - alpha, alpha)
        quality = product(class_score(predictions), regressed_iou(predictions), powers, predictions.logits)
        selected = adaptive(quality, priors, self.top_k, self.top_k_of)
        return owned_labels(self.find_owners(selected, priors, targets))
