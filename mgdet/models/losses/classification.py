"""Losses of the classification task: one number for each logit, against targets in [0, 1]."""

from abc import abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mgdet.config_base import ByName
from mgdet.models.losses.base import LossInputs, LossTerm, Term
from mgdet.models.losses.fused import fused
from mgdet.models.losses.targets import box_targets, class_of, class_targets, full_precision, is_positive, own_iou
from mgdet.structures import IGNORED, Labels, Targets

ClassTarget = Literal["assigned", "iou", "one"]
TARGETS = (
    "target of a positive at its object's class: its label's weight, or its own box's IoU with it; one: 1, and its "
    "loss is multiplied by its label's weight"
)


class ClassTerm(LossTerm):
    """The loss of every prior that is not ignored, divided by the sum of the positives' assigned weights."""

    target: ClassTarget = Field(default="iou", description=TARGETS)

    @abstractmethod
    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Elementwise loss of logits `[B, A, C]` against targets in [0, 1] of the same shape; at least float32."""

    def of_priors(self, logits: Tensor, labels: Labels, targets: Targets) -> Tensor:
        """The loss of each prior, summed over its classes, `[B, A]`; its target is its label's weight."""
        return self(logits, class_targets(labels, targets, logits)).sum(dim=-1)

    def term(self, inputs: LossInputs) -> Term:
        """See `LossTerm`."""
        predictions, targets, labels = inputs.predictions, inputs.targets, inputs.assignment.cls
        assigned = torch.where(is_positive(labels), labels.weight, 0.0).sum()
        taking_part = labels.gt_index != IGNORED
        if self.target == "iou":
            boxes, _ = box_targets(labels, targets, predictions.priors)
            labels = labels.replace(weight=own_iou(predictions, boxes))
        elif self.target == "one":
            factor = torch.where(is_positive(labels), labels.weight, 1.0)
            labels = labels.replace(weight=torch.ones_like(labels.weight))
        loss = self.of_priors(predictions.logits, labels, targets)
        if self.target == "one":
            loss = loss * factor
        return Term(torch.where(taking_part, loss, 0.0).sum(), assigned)


class FusedTerm(ClassTerm):
    """A loss whose derivative is written out (`mgdet.models.losses.fused`), which saves time and memory."""

    @abstractmethod
    def value(self, entropy: Tensor, p: Tensor, y: Tensor | None) -> Tensor:
        """See `Elementwise`."""

    @abstractmethod
    def slopes(self, gradient: Tensor, entropy: Tensor, p: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Elementwise`."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `ClassTerm`: differentiated by PyTorch, the reference of `of_priors`."""
        logits = full_precision(logits)
        entropy = binary_cross_entropy_with_logits(logits, target, reduction="none")
        return self.value(entropy, logits.sigmoid(), target)

    def of_priors(self, logits: Tensor, labels: Labels, targets: Targets) -> Tensor:
        """See `ClassTerm`."""
        y = torch.where(is_positive(labels), labels.weight, 0.0)
        return fused(self, full_precision(logits), class_of(labels, targets), y)


class FocalLoss(FusedTerm):
    """Sigmoid focal loss (Lin et al., ICCV 2017, equation 5); Mutual Guidance uses gamma 1, RetinaNet 2.

    alpha_t (1 - p_t)^gamma BCE(p, y), where p_t = p y + (1 - p)(1 - y) and alpha_t likewise.
    """

    name: Literal["focal"] = "focal"
    alpha: float = Field(default=0.25, ge=-1, le=1, description="weight of positives; negative: no balancing")
    gamma: float = Field(default=2.0, ge=0, le=1000, description="how much easy samples are turned down")
    target: ClassTarget = Field(default="assigned", description=TARGETS)

    def value(self, entropy: Tensor, p: Tensor, y: Tensor | None) -> Tensor:
        """See `Elementwise`."""
        return self._balanced(entropy * _wrong(p, y) ** self.gamma, y)

    def slopes(self, gradient: Tensor, entropy: Tensor, p: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Elementwise`."""
        gradient, wrong = self._balanced(gradient, y), _wrong(p, y)
        slope = gradient * entropy * _power_slope(wrong, self.gamma)
        return gradient * wrong**self.gamma, slope if y is None else slope * (1 - y) - slope * y

    def _balanced(self, value: Tensor, y: Tensor | None) -> Tensor:
        if self.alpha < 0:
            return value
        return value * (1 - self.alpha if y is None else self.alpha * y + (1 - self.alpha) * (1 - y))


class QualityFocalLoss(FusedTerm):
    """Quality focal loss (Li et al., Generalized Focal Loss, NeurIPS 2020, the equation that defines QFL).

    |y - p|^beta BCE(p, y). The gradient goes through the factor |y - p|^beta too, as in the released implementation.
    """

    name: Literal["quality_focal"] = "quality_focal"
    beta: float = Field(
        default=2.0, ge=0, le=1000, description="how much predictions near their target are turned down"
    )

    def value(self, entropy: Tensor, p: Tensor, y: Tensor | None) -> Tensor:
        """See `Elementwise`."""
        distance = p if y is None else (y - p).abs()
        return _above_zero(distance) ** self.beta * entropy

    def slopes(self, gradient: Tensor, entropy: Tensor, p: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Elementwise`."""
        distance = p if y is None else (y - p).abs()
        slope = _bounded_slope(gradient * entropy, distance, self.beta)
        return gradient * _above_zero(distance) ** self.beta, slope if y is None else slope * (p - y).sign()


class VarifocalLoss(FusedTerm):
    """Varifocal loss (Zhang et al., VarifocalNet, CVPR 2021, the equation that defines it).

    y BCE(p, y) where y > 0, alpha p^gamma BCE(p, 0) elsewhere. Negative is what has target 0; with `target: iou` that
    includes a positive whose box misses its object. The gradient goes through the factor p^gamma too: the paper does
    not say, the implementation in MMDetection does not detach it.
    """

    name: Literal["varifocal"] = "varifocal"
    alpha: float = Field(default=0.75, ge=0, le=1e6, description="weight of negatives")
    gamma: float = Field(default=2.0, ge=0, le=1000, description="how much easy negatives are turned down")

    def value(self, entropy: Tensor, p: Tensor, y: Tensor | None) -> Tensor:
        """See `Elementwise`."""
        return self._factor(p, y) * entropy

    def slopes(self, gradient: Tensor, entropy: Tensor, p: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Elementwise`."""
        slope = _bounded_slope(gradient * entropy * self.alpha, p, self.gamma)
        return gradient * self._factor(p, y), slope if y is None else torch.where(y > 0, 0.0, slope)

    def _factor(self, p: Tensor, y: Tensor | None) -> Tensor:
        negative = self.alpha * _above_zero(p) ** self.gamma
        return negative if y is None else torch.where(y > 0, y, negative)


def _wrong(p: Tensor, y: Tensor | None) -> Tensor:
    """1 - p_t, what the score lacks; for y = 0 rounded as `1 - (1 - p)` is, as the general formula does."""
    return 1 - (1 - p if y is None else p * y + (1 - p) * (1 - y))


def _power_slope(base: Tensor, exponent: float) -> Tensor:
    """The derivative of `base ** exponent`."""
    if exponent == 0:
        return torch.zeros_like(base)
    return exponent * (base if exponent == 2 else base ** (exponent - 1))


def _above_zero(base: Tensor) -> Tensor:
    """At least the smallest normal number, where the derivative of a power below 1 is finite."""
    return base.clamp(min=torch.finfo(base.dtype).tiny)


def _bounded_slope(gradient: Tensor, base: Tensor, exponent: float) -> Tensor:
    """`gradient` times the derivative of `_above_zero(base) ** exponent` by `base`."""
    slope = gradient * _power_slope(_above_zero(base), exponent)
    return torch.where(base >= torch.finfo(base.dtype).tiny, slope, 0.0)


ClassLoss = Annotated[FocalLoss | QualityFocalLoss | VarifocalLoss, ByName()]
