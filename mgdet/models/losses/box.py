"""Losses of the localization task: one number for each prior, against one box for each prior."""

import math
from abc import abstractmethod
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mgdet.boxes import giou
from mgdet.config_base import ByName
from mgdet.models.coder import Coder
from mgdet.models.losses.base import LossInputs, LossTerm, Term
from mgdet.models.losses.targets import box_targets, centerness, is_positive, own_iou
from mgdet.structures import Labels, Predictions

BoxWeighting = Literal["assigned", "iou", "centerness", "score"]


class BoxTerm(LossTerm):
    """The loss of the positives, each times its weight, divided by the sum of these weights."""

    weighted_by: BoxWeighting = Field(
        default="assigned",
        description="what multiplies a positive's weight: nothing, the IoU of its box with its object, the centre-ness "
        "of its prior in the object, or its largest class score",
    )

    @abstractmethod
    def __call__(self, predictions: Predictions, boxes: Tensor, coder: Coder) -> Tensor:
        """Loss `[B, A]` of every prior against one box per prior `[B, A, 4]`."""

    def weights(self, labels: Labels, predictions: Predictions, boxes: Tensor) -> Tensor:
        """Weight `[B, A]` of every prior whose target is `boxes` `[B, A, 4]`: 0 if not positive; no gradient.

        iou: VarifocalNet (Zhang et al., CVPR 2021) and ATSS-MG; centerness: FCOS's code (Tian et al., ICCV 2019);
        score: the code of Generalized Focal Loss (Li et al., NeurIPS 2020).
        """
        weights = labels.weight
        if self.weighted_by == "iou":
            weights = weights * own_iou(predictions, boxes)
        elif self.weighted_by == "centerness":
            weights = weights * centerness(predictions.priors, boxes)
        elif self.weighted_by == "score":
            weights = weights * predictions.logits.detach().amax(dim=-1).sigmoid()
        return torch.where(is_positive(labels), weights, 0.0)

    def term(self, inputs: LossInputs) -> Term:
        """See `LossTerm`."""
        predictions, labels = inputs.predictions, inputs.assignment.loc
        boxes, positive = box_targets(labels, inputs.targets, predictions.priors)
        weights = self.weights(labels, predictions, boxes)
        loss = self(predictions, boxes, inputs.coder)
        return Term(torch.where(positive, loss * weights, 0.0).sum(), weights.sum())


class CodedTerm(BoxTerm):
    """Box losses on encoded offsets, summed over the four."""

    @abstractmethod
    def of_difference(self, difference: Tensor) -> Tensor:
        """Elementwise penalty of an absolute difference."""

    def __call__(self, predictions: Predictions, boxes: Tensor, coder: Coder) -> Tensor:
        """Loss `[B, A]` of every prior against one box per prior `[B, A, 4]`, summed over the four offsets."""
        return self.of_difference((predictions.deltas - coder.encode(boxes, predictions.priors)).abs()).sum(dim=-1)


class L1Loss(CodedTerm):
    """Mean absolute difference of the offsets; torchvision's and mmdetection's RetinaNet."""

    name: Literal["l1"] = "l1"

    def of_difference(self, difference: Tensor) -> Tensor:
        """|x|."""
        return difference


class SmoothL1Loss(CodedTerm):
    """Huber-like L1 (Girshick, ICCV 2015, equation 3), quadratic below `beta`."""

    name: Literal["smooth_l1"] = "smooth_l1"
    beta: float = Field(default=1.0 / 9, ge=1e-6, le=1e6, description="error up to which the loss is a parabola")

    def of_difference(self, difference: Tensor) -> Tensor:
        """0.5 x^2 / beta below beta, |x| - 0.5 beta above."""
        return torch.where(difference < self.beta, 0.5 * difference**2 / self.beta, difference - 0.5 * self.beta)


class BalancedL1Loss(CodedTerm):
    """Balanced L1 (Pang et al., CVPR 2019, equations 9 and 10); Mutual Guidance's box loss.

    The authors of Mutual Guidance divide by 4 times the positives: `weight: 0.25` gives theirs.
    """

    name: Literal["balanced_l1"] = "balanced_l1"
    alpha: float = Field(
        default=0.5, ge=0.01, le=1e6, description="the larger, the steeper the gradient of small errors"
    )
    gamma: float = Field(default=1.5, ge=0.001, le=1e6, description="gradient of errors from beta on")
    beta: float = Field(default=0.11, ge=1e-6, le=1e6, description="error up to which the gradient grows")

    @model_validator(mode="after")
    def _curve_can_be_computed(self) -> Self:
        if not 1e-3 <= self.gamma / self.alpha <= 50:
            raise ValueError(
                f"gamma = {self.gamma:g} and alpha = {self.alpha:g}: expected gamma / alpha between 0.001 and 50, as "
                "the loss takes its exponential"
            )
        return self

    def of_difference(self, difference: Tensor) -> Tensor:
        """alpha/b (b x + 1) ln(b x / beta + 1) - alpha x below beta, gamma x + C above, b = e^(gamma/alpha) - 1."""
        b = math.exp(self.gamma / self.alpha) - 1
        x = difference.clamp(max=self.beta)  # keeps the unused branch, and so its gradient, finite
        curved = self.alpha / b * (b * x + 1) * torch.log(b * x / self.beta + 1) - self.alpha * x
        # C makes the two branches meet at beta
        constant = self.gamma / b - self.alpha * self.beta
        return torch.where(difference < self.beta, curved, self.gamma * difference + constant)


class GIoULoss(BoxTerm):
    """1 - GIoU of the decoded box (Rezatofighi et al., CVPR 2019, Algorithm 1)."""

    name: Literal["giou"] = "giou"

    def __call__(self, predictions: Predictions, boxes: Tensor, coder: Coder) -> Tensor:
        """Loss `[B, A]` of every prior against one box per prior `[B, A, 4]`."""
        return 1 - giou(predictions.boxes, boxes)


BoxLoss = Annotated[L1Loss | SmoothL1Loss | BalancedL1Loss | GIoULoss, ByName()]
