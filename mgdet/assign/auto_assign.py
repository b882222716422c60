"""AutoAssign: every prior inside an object counts for it, with a weight that is learned (Zhu et al., 2020)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.base import Assigner, weighted_labels
from mgdet.assign.criteria import centre_gaussian, confidence, tie_safe_dtype
from mgdet.assign.geometry import Sides, around
from mgdet.assign.pieces import Criterion
from mgdet.assign.places import At
from mgdet.config_base import Config
from mgdet.structures import Assignment, Predictions, Targets

TINY = 1e-12
"""Added where a sum or a range may be 0, as in the authors' code."""


class AutoAssignWeights(Config):
    """How much each prior counts for an object as a positive and as a negative (arXiv 2007.03496, section 3).

    All tensors hold one object in their last dimension, `[..., n]` for n priors.
    """

    box_weight: float = Field(default=5.0, ge=0, le=1000, description="factor of the GIoU loss in exp(-loss)")
    sharpness: float = Field(default=3.0, ge=0, le=50, description="how much confident priors count before others")

    def positive(self, joint: Tensor, centre: Tensor) -> Tensor:
        """w+ = exp(`sharpness` * P) G, divided by its sum, of the confidence P and the centre prior G (equation 5)."""
        weight = torch.exp(self.sharpness * joint) * centre
        return weight / weight.sum(dim=-1, keepdim=True).clamp(min=TINY)

    def negative(self, overlap: Tensor, inside: Tensor) -> Tensor:
        """w- = 1 - f(1 / (1 - u)) inside, where f takes smallest and largest to 0 and 1; 1 outside (equation 6)."""
        value = 1 / (1 - overlap).clamp(min=TINY)
        low = torch.where(inside, value, torch.inf).amin(dim=-1, keepdim=True)
        high = torch.where(inside, value, -torch.inf).amax(dim=-1, keepdim=True)
        return torch.where(inside, 1 - (value - low + TINY) / (high - low + TINY), 1.0)


class AutoAssign(AutoAssignWeights, Assigner):
    """A prior inside several objects is labelled with the one for which its positive weight w+ is the largest.

    P = p * exp(-`box_weight` * GIoU loss), where p contains the quality branch's output, and G is a Gaussian around the
    object's centre, in strides, with the mean and width of its class that `model.centre_prior` learns (0 and 1 without
    it). Formulas and numbers are those of MMDetection's `autoassign_head.py` (verified); the numbers of the equations
    are from memory (inferred).

    The labels show the method, and can be learned with `loss.cls.target: one`. What was published is
    `loss.bag: {name: auto_assign}`, in which a prior counts for every object around it.
    """

    name: Literal["auto_assign"] = "auto_assign"

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Both tasks get the same labels."""
        priors, joint = predictions.priors, confidence(predictions, self.box_weight)
        dtype = tie_safe_dtype(predictions.logits)

        def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
            here = priors.take(at)
            inside = Sides.of(boxes, here).nearest() > 0
            centre = centre_gaussian(boxes, here, *predictions.centre_of(labels, 1.0)).to(dtype)
            return self.positive(joint(boxes, labels, at), torch.where(inside, centre, 0.0)).float()

        labels = weighted_labels(self.find_owners(Criterion(quality, around(priors).touching), priors, targets))
        return Assignment(labels, labels)
