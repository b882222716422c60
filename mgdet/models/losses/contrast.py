"""Task contrast: score and localization of a positive should agree (Wang and Zhang, ICCV 2021)."""

from typing import Literal

import torch
from pydantic import Field

from mgdet.boxes import iou
from mgdet.models.losses.base import LossInputs, LossTerm, Term
from mgdet.models.losses.targets import box_targets, class_of
from mgdet.structures import Predictions

TINY = 1e-7
"""Bound of a score from 0 and 1 in its entropy."""


class TaskContrastLoss(LossTerm):
    """max(0, |p - u| - margin) / (1 + exp(H)), the mean over the positives of classification.

    p is the score of the object's class, u the IoU of the predicted box, H the entropy of the score, so that uncertain
    scores count less. The formula and the margin are second-hand (notes on HarmonicDet, "Reconcile Prediction
    Consistency for Balanced Object Detection"); that H is that of p alone, -p log p - (1 - p) log(1 - p), without a
    gradient, is inferred for sigmoid scores. The paper's harmonic weights of the two losses and its HIoU loss are not
    part of this.
    """

    margin: float = Field(default=0.2, ge=0, le=1, description="difference of score and IoU that costs nothing")
    moves: Literal["scores", "both"] = Field(
        default="both", description="what the gradient changes: the scores alone, or the boxes too"
    )

    def term(self, inputs: LossInputs) -> Term:
        """See `LossTerm`."""
        predictions, labels = inputs.predictions, inputs.assignment.cls
        boxes, positive = box_targets(labels, inputs.targets, predictions.priors)
        p = _own_score(predictions, class_of(labels, inputs.targets))
        overlap = iou(predictions.boxes, boxes)
        if self.moves == "scores":
            overlap = overlap.detach()
        bounded = p.detach().clamp(TINY, 1 - TINY)
        entropy = -bounded * bounded.log() - (1 - bounded) * (1 - bounded).log()
        loss = ((p - overlap).abs() - self.margin).clamp(min=0) / (1 + entropy.exp())
        return Term(torch.where(positive, loss, 0.0).sum(), positive.sum())


def _own_score(predictions: Predictions, label: torch.Tensor) -> torch.Tensor:
    """Score `[B, A]` of each prior for one class `[B, A]`."""
    return predictions.logits.gather(2, label[..., None]).squeeze(2).sigmoid()
