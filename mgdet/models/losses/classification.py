"""Losses of the classification task: one number for each logit, against targets in [0, 1]."""

from abc import abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import sigmoid_focal_loss

from mgdet.config_base import ByName
from mgdet.models.losses.base import LossInputs, LossTerm, Term
from mgdet.models.losses.targets import box_targets, class_targets, full_precision, is_positive, own_iou
from mgdet.structures import IGNORED

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
        loss = self(predictions.logits, class_targets(labels, targets, predictions.logits)).sum(dim=-1)
        if self.target == "one":
            loss = loss * factor
        return Term(torch.where(taking_part, loss, 0.0).sum(), assigned)


class FocalLoss(ClassTerm):
    """Sigmoid focal loss (Lin et al., ICCV 2017, equation 5); Mutual Guidance uses gamma 1, RetinaNet 2."""

    name: Literal["focal"] = "focal"
    alpha: float = Field(default=0.25, ge=-1, le=1, description="weight of positives; negative: no balancing")
    gamma: float = Field(default=2.0, ge=0, le=1000, description="how much easy samples are turned down")
    target: ClassTarget = Field(default="assigned", description=TARGETS)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """alpha_t (1 - p_t)^gamma BCE(p, y), where p_t = p y + (1 - p)(1 - y) and alpha_t likewise."""
        alpha = self.alpha if self.alpha >= 0 else -1  # the only negative number that torchvision takes
        return sigmoid_focal_loss(full_precision(logits), target, alpha, self.gamma)  # type: ignore[no-any-return]  # untyped


class QualityFocalLoss(ClassTerm):
    """Quality focal loss (Li et al., Generalized Focal Loss, NeurIPS 2020, the equation that defines QFL).

    The gradient goes through the factor |y - p|^beta too, as in the released implementation.
    """

    name: Literal["quality_focal"] = "quality_focal"
    beta: float = Field(
        default=2.0, ge=0, le=1000, description="how much predictions near their target are turned down"
    )

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """|y - p|^beta BCE(p, y)."""
        logits = full_precision(logits)
        # the bound keeps the derivative of a power below 1 finite where p is exactly y
        distance = (target - logits.sigmoid()).abs().clamp(min=torch.finfo(logits.dtype).tiny)
        return distance**self.beta * binary_cross_entropy_with_logits(logits, target, reduction="none")


class VarifocalLoss(ClassTerm):
    """Varifocal loss (Zhang et al., VarifocalNet, CVPR 2021, the equation that defines it).

    Negative is what has target 0; with `target: iou` that includes a positive whose box misses its object. The gradient
    goes through the factor p^gamma too: the paper does not say, the implementation in MMDetection does not detach it.
    """

    name: Literal["varifocal"] = "varifocal"
    alpha: float = Field(default=0.75, ge=0, le=1e6, description="weight of negatives")
    gamma: float = Field(default=2.0, ge=0, le=1000, description="how much easy negatives are turned down")

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """y BCE(p, y) where y > 0, alpha p^gamma BCE(p, 0) elsewhere."""
        logits = full_precision(logits)
        p = logits.sigmoid().clamp(min=torch.finfo(logits.dtype).tiny)  # as in quality_focal, for a gamma below 1
        factor = torch.where(target > 0, target, self.alpha * p**self.gamma)
        return factor * binary_cross_entropy_with_logits(logits, target, reduction="none")


ClassLoss = Annotated[FocalLoss | QualityFocalLoss | VarifocalLoss, ByName()]
