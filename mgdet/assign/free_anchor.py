"""FreeAnchor: each object has a bag of anchors, and the loss chooses among them (Zhang et al., NeurIPS 2019)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.base import Assigner, owned_labels
from mgdet.assign.criteria import prior_iou
from mgdet.assign.geometry import largest, nearness
from mgdet.assign.pieces import Criterion
from mgdet.assign.places import At
from mgdet.structures import Assignment, Predictions, Targets


class FreeAnchor(Assigner):
    """The `bag` priors with the largest anchor IoU are the bag of an object (arXiv 1909.02466, section 3.2).

    The labels are only where the method looks. What it learns is `loss.bag`, which takes the place of `loss.cls` and
    `loss.box` (their `weight: 0`). Bag and loss are those of MMDetection's code (verified), but for two things: a prior
    in the bags of several objects is left to the one that it overlaps most, and a bag holds no prior without overlap. A
    point stands for the square of 8 strides.
    """

    name: Literal["free_anchor"] = "free_anchor"
    bag: int = Field(default=50, ge=1, le=10_000, description="priors in the bag of each object")

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Both tasks get the same labels."""
        priors = predictions.priors
        overlap = prior_iou(priors)

        def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
            here, values = priors.take(at), overlap.quality(boxes, labels, at)

            def near(tied: At) -> Tensor:
                return nearness(boxes, here.take(tied))

            return torch.where(largest(values, near, self.bag, above=0), values, 0.0)

        criterion = Criterion(quality, overlap.reach)
        labels = owned_labels(self.find_owners(criterion, priors, targets))
        return Assignment(labels, labels)
