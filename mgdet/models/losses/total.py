"""All losses of a batch, each normalised by its own positives over all workers."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mgdet.config_base import Config
from mgdet.models.coder import Coder
from mgdet.models.losses.box import BoxLoss, L1Loss
from mgdet.models.losses.classification import ClassLoss, FocalLoss
from mgdet.models.losses.correlation import CorrelationLoss
from mgdet.models.losses.quality import QualityKind, QualityLoss
from mgdet.models.losses.targets import box_targets, class_of, class_targets, full_precision, is_positive, own_iou
from mgdet.structures import IGNORED, Assignment, Labels, Predictions, Priors, Targets

MeanOverWorkers = Callable[[Tensor], Tensor]
"""Mean of a tensor over all workers (the identity for one worker)."""


class LossConfig(Config):
    """The losses; total = cls + box + quality + correlation, each with its own `weight`."""

    cls: ClassLoss = FocalLoss()
    box: BoxLoss = L1Loss()
    quality: QualityLoss = QualityLoss()
    correlation: CorrelationLoss | None = Field(
        default=None, description="adds 1 - correlation of score and IoU over the positives; null: no such term"
    )

    def __call__(
        self,
        priors: Priors,
        predictions: Predictions,
        targets: Targets,
        assignment: Assignment,
        coder: Coder,
        mean_over_workers: MeanOverWorkers,
        quality: QualityKind = "none",
    ) -> "Losses":
        """Scalars of this worker, for a gradient that is *averaged* over workers; `quality` says what the branch is.

        Classification is divided by the sum of its positives' assigned weights, boxes by the sum of their positives'
        final weights, quality by the number of those positives: sums over all workers per worker, at least 1. So (with
        that much in the mean) the averaged gradient is that of one worker with the whole batch, except for the
        correlation, which each worker takes over its own positives. Every prior takes part, masked: a batch without
        objects runs the same graph and the same collective. Nothing waits for the device.
        """
        predictions = _in_full_precision(predictions)
        boxes, positive = box_targets(assignment.loc, targets, priors)
        weights = self.box.weights(assignment.loc, predictions, boxes, priors)
        sums = [_assigned(assignment.cls).sum(), weights.sum(), positive.sum().to(weights.dtype)]
        of_cls, of_box, of_quality = mean_over_workers(torch.stack(sums)).clamp(min=1).unbind()

        cls = self._cls(priors, predictions, targets, assignment.cls) / of_cls
        box = self.box(predictions, boxes, priors, coder)
        box = self.box.weight * torch.where(positive, box * weights, 0.0).sum() / of_box
        total, off = cls + box, torch.zeros_like(box)
        branch = correlation = off
        if quality != "none":
            branch = torch.where(positive, self.quality(quality, predictions, boxes, priors), 0.0)
            branch = self.quality.weight * branch.sum() / of_quality
            total = total + branch
        if self.correlation is not None:
            correlation = self._correlation(self.correlation, priors, predictions, targets, assignment.cls)
            total = total + correlation
        terms = [term.detach() for term in (cls, box, branch, correlation)]
        return Losses(total, *terms[:2], *_counts(assignment), *terms[2:])

    def _cls(self, priors: Priors, predictions: Predictions, targets: Targets, labels: Labels) -> Tensor:
        taking_part = labels.gt_index != IGNORED
        if self.cls.target == "iou":
            labels = labels._replace(weight=own_iou(predictions, box_targets(labels, targets, priors)[0]))
        loss = self.cls(predictions.logits, class_targets(labels, targets, predictions.logits))
        return self.cls.weight * torch.where(taking_part, loss.sum(dim=-1), 0.0).sum()

    @staticmethod
    def _correlation(
        loss: CorrelationLoss, priors: Priors, predictions: Predictions, targets: Targets, labels: Labels
    ) -> Tensor:
        boxes, positive = box_targets(labels, targets, priors)
        score = predictions.logits.gather(2, class_of(labels, targets)[..., None]).squeeze(2).sigmoid()
        return loss.weight * loss(score, own_iou(predictions, boxes), positive)


class Losses(NamedTuple):
    """Scalar tensors on the device of the batch."""

    total: Tensor  # to be differentiated
    cls: Tensor
    box: Tensor
    positives_cls: Tensor  # how many this worker has, summed over its images
    positives_loc: Tensor
    positives_both: Tensor  # positive for both tasks
    quality: Tensor  # 0 where there is no such term
    correlation: Tensor


def _assigned(labels: Labels) -> Tensor:
    return torch.where(is_positive(labels), labels.weight, 0.0)


def _counts(assignment: Assignment) -> list[Tensor]:
    cls, loc = is_positive(assignment.cls), is_positive(assignment.loc)
    return [mask.sum().float() for mask in (cls, loc, cls & loc)]


def _in_full_precision(predictions: Predictions) -> Predictions:
    quality = predictions.quality
    return Predictions(
        full_precision(predictions.logits),
        full_precision(predictions.deltas),
        full_precision(predictions.boxes),
        None if quality is None else full_precision(quality),
    )
