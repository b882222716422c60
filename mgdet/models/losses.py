"""The training losses: one for each task, each normalised by that task's own positives over all workers."""

import math
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from mgdet.boxes import giou
from mgdet.config_base import Config
from mgdet.models.coder import AnchorCoder
from mgdet.structures import IGNORED, Assignment, Labels, Predictions, Priors, Targets

MeanOverWorkers = Callable[[Tensor], Tensor]
"""Mean of a tensor over all workers (the identity for one worker)."""


class FocalLoss(Config):
    """Sigmoid focal loss (Lin et al., ICCV 2017, equation 5); Mutual Guidance uses gamma 1, RetinaNet 2."""

    name: Literal["focal"] = "focal"
    alpha: float = Field(default=0.25, ge=-1, le=1, description="weight of positives; negative: no balancing")
    gamma: float = Field(default=2.0, ge=0, description="how much easy samples are turned down")
    weight: float = Field(default=1.0, ge=0)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Elementwise loss of logits `[B, A, C]` against targets in [0, 1] of the same shape."""
        return sigmoid_focal_loss(logits, target, self.alpha, self.gamma)  # type: ignore[no-any-return]  # untyped


class _CodedLoss(Config):
    """Box losses on encoded offsets: `__call__` takes the difference `[B, A, 4]` and returns `[B, A]`."""

    weight: float = Field(default=1.0, ge=0)

    def of_difference(self, difference: Tensor) -> Tensor:
        """Elementwise penalty."""
        raise TypeError("a box loss defines `of_difference`")

    def __call__(self, predictions: Predictions, boxes: Tensor, priors: Priors, coder: AnchorCoder) -> Tensor:
        """Loss `[B, A]` of every prior against one box per prior `[B, A, 4]`, summed over the four offsets."""
        return self.of_difference((predictions.deltas - coder.encode(boxes, priors)).abs()).sum(dim=-1)


class L1Loss(_CodedLoss):
    """Mean absolute difference of the offsets; torchvision's and mmdetection's RetinaNet."""

    name: Literal["l1"] = "l1"

    def of_difference(self, difference: Tensor) -> Tensor:
        """|x|."""
        return difference


class SmoothL1Loss(_CodedLoss):
    """Huber-like L1 (Girshick, ICCV 2015, equation 3), quadratic below `beta`."""

    name: Literal["smooth_l1"] = "smooth_l1"
    beta: float = Field(default=1.0 / 9, gt=0)

    def of_difference(self, difference: Tensor) -> Tensor:
        """0.5 x^2 / beta below beta, |x| - 0.5 beta above."""
        return torch.where(difference < self.beta, 0.5 * difference**2 / self.beta, difference - 0.5 * self.beta)


class BalancedL1Loss(_CodedLoss):
    """Balanced L1 (Pang et al., CVPR 2019, equations 9 and 10); Mutual Guidance's box loss.

    The authors of Mutual Guidance divide by 4 times the positives: `weight: 0.25` gives theirs.
    """

    name: Literal["balanced_l1"] = "balanced_l1"
    alpha: float = Field(default=0.5, gt=0)
    gamma: float = Field(default=1.5, gt=0)
    beta: float = Field(default=0.11, gt=0)

    def of_difference(self, difference: Tensor) -> Tensor:
        """alpha/b (b x + 1) ln(b x / beta + 1) - alpha x below beta, gamma x + C above, b = e^(gamma/alpha) - 1."""
        b = math.exp(self.gamma / self.alpha) - 1
        x = difference.clamp(max=self.beta)  # keeps the unused branch, and so its gradient, finite
        curved = self.alpha / b * (b * x + 1) * torch.log(b * x / self.beta + 1) - self.alpha * x
        # C makes the two branches meet at beta
        constant = self.gamma / b - self.alpha * self.beta
        return torch.where(difference < self.beta, curved, self.gamma * difference + constant)


class GIoULoss(Config):
    """1 - GIoU of the decoded box (Rezatofighi et al., CVPR 2019, Algorithm 1)."""

    name: Literal["giou"] = "giou"
    weight: float = Field(default=1.0, ge=0)

    def __call__(self, predictions: Predictions, boxes: Tensor, priors: Priors, coder: AnchorCoder) -> Tensor:
        """Loss `[B, A]` of every prior against one box per prior `[B, A, 4]`."""
        return 1 - giou(predictions.boxes, boxes)


BoxLoss = Annotated[L1Loss | SmoothL1Loss | BalancedL1Loss | GIoULoss, Field(discriminator="name")]


class LossConfig(Config):
    """The two losses; total = cls + box, each with its own `weight`."""

    cls: FocalLoss = FocalLoss()
    box: BoxLoss = L1Loss()

    def __call__(
        self,
        priors: Priors,
        predictions: Predictions,
        targets: Targets,
        assignment: Assignment,
        coder: AnchorCoder,
        mean_over_workers: MeanOverWorkers,
    ) -> "Losses":
        """Scalars of this worker, for a gradient that is *averaged* over workers.

        Each task is divided by the mean number of its positives per worker, at least 1, so that (with one positive or
        more per worker) the averaged gradient is that of one worker with the whole batch. Every prior takes part,
        masked: a batch without objects runs the same graph and the same collectives. Nothing waits for the device.
        """
        positives = torch.stack([_positive(assignment.cls).sum(), _positive(assignment.loc).sum()]).float()
        normaliser = mean_over_workers(positives).clamp(min=1)

        cls = self.cls(predictions.logits, class_targets(assignment.cls, targets, predictions.logits))
        taking_part = assignment.cls.gt_index != IGNORED
        loss_cls = self.cls.weight * (cls.sum(dim=-1) * taking_part).sum() / normaliser[0]

        boxes, positive = box_targets(assignment.loc, targets, priors)
        box = self.box(predictions, boxes, priors, coder)
        box = torch.where(positive, box * assignment.loc.weight, 0.0)
        loss_box = self.box.weight * box.sum() / normaliser[1]

        both = (_positive(assignment.cls) & _positive(assignment.loc)).sum()
        return Losses(
            loss_cls + loss_box, loss_cls.detach(), loss_box.detach(), positives[0], positives[1], both.float()
        )


class Losses(NamedTuple):
    """Scalar tensors on the device of the batch."""

    total: Tensor  # to be differentiated
    cls: Tensor
    box: Tensor
    positives_cls: Tensor  # this worker's, summed over its images
    positives_loc: Tensor
    positives_both: Tensor  # positive for both tasks


def _positive(labels: Labels) -> Tensor:
    return labels.gt_index >= 0


def class_targets(labels: Labels, targets: Targets, like: Tensor) -> Tensor:
    """Classification target `[B, A, C]`: the label's weight at the class of its object, 0 elsewhere."""
    out = torch.zeros_like(like)
    if targets.labels.shape[1] == 0:
        return out
    positive = _positive(labels)
    label = targets.labels.gather(1, labels.gt_index.clamp(min=0))
    return out.scatter_(2, label[..., None], torch.where(positive, labels.weight, 0.0)[..., None].to(out.dtype))


def box_targets(labels: Labels, targets: Targets, priors: Priors) -> tuple[Tensor, Tensor]:
    """The box `[B, A, 4]` that each prior regresses to, and who is positive `[B, A]`.

    Priors that are not positive get their own box, whose encoding is finite: a masked NaN would still poison gradients.
    """
    positive = _positive(labels)
    own = priors.boxes.expand(*positive.shape, 4)
    if targets.boxes.shape[1] == 0:
        return own, positive
    boxes = targets.boxes.gather(1, labels.gt_index.clamp(min=0)[..., None].expand(-1, -1, 4))
    return torch.where(positive[..., None], boxes, own), positive
