"""The loss of a branch that predicts how well a prior's box fits."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mgdet.models.losses.base import LossInputs, LossTerm, Term
from mgdet.models.losses.targets import box_targets, centerness, own_iou
from mgdet.structures import Predictions

QualityKind = Literal["none", "centerness", "iou", "objectness"]
"""What a quality branch predicts; `none`: there is no such branch. An objectness has no target of its own."""


class QualityLoss(LossTerm):
    """Binary cross-entropy between predicted and actual quality of the localization positives.

    `centerness` is FCOS's (Tian et al., ICCV 2019, equation 3). `iou` is that of IoU-aware RetinaNet (Wu et al., 2020),
    except that they let a gradient flow through the actual IoU and we do not: a box must not get worse to be as
    predicted.
    """

    def __call__(self, kind: str, predictions: Predictions, boxes: Tensor) -> Tensor:
        """Loss `[B, A]` of every prior whose target is `boxes` `[B, A, 4]`; `predictions.quality` must be there."""
        if predictions.quality is None:
            raise TypeError(f"a quality loss on {kind} needs a detector that predicts it")
        target = centerness(predictions.priors, boxes) if kind == "centerness" else own_iou(predictions, boxes)
        logits = predictions.quality
        return binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")

    def term(self, inputs: LossInputs) -> Term | None:
        """The mean over the localization positives; None for a detector without a quality branch that has a target."""
        if inputs.quality in ("none", "objectness"):
            return None
        predictions = inputs.predictions
        boxes, positive = box_targets(inputs.assignment.loc, inputs.targets, predictions.priors)
        loss = torch.where(positive, self(inputs.quality, predictions, boxes), 0.0)
        return Term(loss.sum(), positive.sum())
