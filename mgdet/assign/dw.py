"""DW: every prior inside an object has a positive and a negative weight of its own (Li et al., CVPR 2022)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.auto_assign import TINY
from mgdet.assign.base import Assigner, weighted_labels
from mgdet.assign.criteria import centre_gaussian, confidence, tie_safe_dtype
from mgdet.assign.geometry import Sides, around
from mgdet.assign.pieces import Criterion
from mgdet.assign.places import At
from mgdet.config_base import Config
from mgdet.structures import Assignment, Predictions, Targets

NEGATIVE_FROM, POSITIVE_FROM = 0.5, 0.95
"""IoUs up to which a prior is a negative for sure, and from which it is none, where the bounds are fixed."""


class DualWeights(Config):
    """How much each prior counts for an object as a positive and as a negative (arXiv 2203.09730, section 3).

    All tensors hold one object in their last dimension, `[..., n]` for n priors.
    """

    fit: Literal["giou", "iou"] = Field(
        default="giou", description="how well a box fits: giou: exp(-beta * GIoU loss), the code's; iou: IoU^beta"
    )
    beta: float = Field(default=5.0, ge=0, le=1000, description="how much the fit counts beside the score")
    mu: float = Field(default=5.0, ge=0, le=50, description="how much consistent priors count before others")
    mu_of_sum: float = Field(
        default=3.0, ge=0, le=50, description="mu in the sum that divides the weights; mu itself: they sum to 1"
    )
    sigma: float = Field(default=1.11, gt=0, le=1e6, description="width of the centre prior, strides")
    negatives: Literal["relative", "fixed"] = Field(
        default="relative",
        description="where P_neg is 0: relative: at the object's best IoU, as in the code; fixed: from IoU 0.95 on",
    )
    gamma: float = Field(default=2.0, gt=0, le=1000, description="power of the IoU by which P_neg falls")

    def positive(self, consistency: Tensor, centre: Tensor) -> Tensor:
        """w_pos = exp(mu t) t G / sum of exp(mu' t) t G, of the consistency t and the centre prior G (equation 5)."""
        at_centre = consistency * centre
        total = (torch.exp(self.mu_of_sum * consistency) * at_centre).sum(dim=-1, keepdim=True)
        return torch.exp(self.mu * consistency) * at_centre / total.clamp(min=TINY)

    def negative(self, overlap: Tensor, inside: Tensor) -> Tensor:
        """P_neg, the probability that a prior is a negative (equation 6): 1 outside, and inside below IoU 0.5.

        Inside it falls as 1 - u^gamma does, from 1 to 0 between two IoUs: 0.5 and 0.95 (`fixed`), or the smallest that
        is at least 0.5 in effect and the object's largest (`relative`).
        """
        if self.negatives == "fixed":
            low, high = NEGATIVE_FROM**self.gamma, POSITIVE_FROM**self.gamma
            falling = ((high - overlap**self.gamma) / (high - low)).clamp(0, 1)
        else:
            value = (1 - overlap**self.gamma) / (1 - NEGATIVE_FROM**self.gamma)
            low_value = torch.where(inside, value, torch.inf).amin(dim=-1, keepdim=True)
            high_value = torch.where(inside, value, -torch.inf).amax(dim=-1, keepdim=True).clamp(max=1)
            falling = (value - low_value + TINY) / (high_value - low_value + TINY)
        return torch.where(inside & (overlap >= NEGATIVE_FROM), falling, 1.0)


class DW(DualWeights, Assigner):
    """A prior inside several objects is labelled with the one for which its positive weight is the largest.

    t = p * exp(-`beta` * GIoU loss), where p contains the quality branch's output, and G is a Gaussian of `sigma`
    strides around the object's centre. Formulas and numbers are those of the authors' `dw_head.py` (verified); the
    paper's IoU^beta is second-hand; its P_neg with fixed ends, and the numbers of the equations, are from memory
    (inferred).

    The labels show the method, and can be learned with `loss.cls.target: one`. What was published is
    `loss.bag: {name: dw}`, in which a prior counts for every object around it.
    """

    name: Literal["dw"] = "dw"

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Both tasks get the same labels."""
        priors, consistency = predictions.priors, confidence(predictions, self.beta, self.fit)
        dtype = tie_safe_dtype(predictions.logits)

        def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
            here = priors.take(at)
            inside = Sides.of(boxes, here).nearest() > 0
            width = boxes.new_full((*boxes.shape[:2], 2), self.sigma)
            centre = centre_gaussian(boxes, here, torch.zeros_like(width), width).to(dtype)
            return self.positive(consistency(boxes, labels, at), torch.where(inside, centre, 0.0)).float()

        labels = weighted_labels(self.find_owners(Criterion(quality, around(priors).touching), priors, targets))
        return Assignment(labels, labels)
