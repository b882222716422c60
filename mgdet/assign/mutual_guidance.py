"""Mutual Guidance: each task chooses the samples of the other (Zhang et al., ACCV 2020, arXiv 2009.14085)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.base import hard_labels
from mgdet.assign.max_iou import IoUThresholds, anchor_iou
from mgdet.assign.ownership import Criterion, Ownership
from mgdet.boxes import pairwise_iou
from mgdet.structures import Assignment, Labels, Predictions, Priors, Targets


class MutualGuidance(IoUThresholds):
    """Positives of classification by IoU_regressed, positives of localization by IoU_amplified.

    For object i and anchor j, with p the score that anchor j now gives to the class of i:

    - *Localize to Classify*: anchors ranked by IoU_regressed, the overlap of the box now predicted with the object.
    - *Classify to Localize*: anchors ranked by IoU_amplified = IoU_anchor ^ ((sigma - p) / sigma) (`power`, the
      paper's), or min(1, IoU_anchor * exp(p / sigma)) (`exponential`, the authors' code since November 2021).

    How many (`count`): with `iou` as many as the plain anchor IoU gives to that object (Np from `positive_iou`, and as
    ignored in classification the next up to Ni from `negative_iou`), so only *which* anchors learn changes; with
    `dynamic_k` each task takes max(1, floor(sum of its `top_k` largest qualities)) and ignores none (the authors' code
    since October 2021). Deviations from the official code: docs/papers.md.
    """

    name: Literal["mutual_guidance"] = "mutual_guidance"
    sigma: float = Field(default=2.0, ge=1, description="the larger, the less the score amplifies an anchor's IoU")
    amplify: Literal["power", "exponential"] = "power"
    count: Literal["iou", "dynamic_k"] = "iou"
    top_k: int = Field(default=15, ge=1, description="qualities summed by count=dynamic_k; 5 with one prior per cell")
    direction: Literal["both", "loc_to_cls", "cls_to_loc", "none"] = Field(
        default="both", description="which task is guided by the other; `none` is the plain max_iou assignment"
    )

    def assign(self, priors: Priors, predictions: Predictions, targets: Targets) -> Assignment:
        """Labels of the two tasks, independent of each other: an anchor may be positive for one of them only."""
        anchors = self.owners(anchor_iou(priors), priors, targets)
        cls = loc = self.labels_by_anchor(anchors)
        if self.direction in ("both", "loc_to_cls"):
            cls = self._labels(regressed_iou(predictions), anchors, priors, targets, ignore=True)
        if self.direction in ("both", "cls_to_loc"):
            loc = self._labels(self.amplified_iou(priors, predictions), anchors, priors, targets, ignore=False)
        return Assignment(cls, loc)

    def _labels(
        self, criterion: Criterion, anchors: Ownership, priors: Priors, targets: Targets, ignore: bool
    ) -> Labels:
        owners = self.owners(criterion, priors, targets)
        num_objects = targets.boxes.shape[1]
        if self.count == "dynamic_k":
            wanted = _dynamic_k(owners, self.top_k, num_objects)
            return hard_labels(owners.owner, (owners.owner >= 0) & (owners.rank < owners.of_owner(wanted)))
        num_positive = anchors.count_owned(anchors.quality >= self.positive_iou, num_objects)
        num_not_negative = anchors.count_owned(anchors.quality >= self.negative_iou, num_objects)
        owned = owners.owner >= 0
        positive = owned & (owners.rank < owners.of_owner(num_positive))
        ignored = owned & ~positive & (owners.rank < owners.of_owner(num_not_negative)) if ignore else None
        return hard_labels(owners.owner, positive, ignored)

    def amplified_iou(self, priors: Priors, predictions: Predictions) -> Criterion:
        """IoU_amplified; it is at least IoU_anchor, and 0 exactly where that is 0."""

        scores = predictions.logits.sigmoid()
        # pow and exp of one number differ in the last bit between SIMD lanes and a loop's remainder, so on a CPU two
        # identical objects would not tie for every chunk size; in float64 the difference is rounded away
        dtype = torch.float64 if scores.device.type == "cpu" else torch.float32

        def criterion(boxes: Tensor, labels: Tensor) -> Tensor:
            overlap = pairwise_iou(boxes, priors.boxes).to(dtype)
            score = score_of_label(scores, labels).to(dtype)
            if self.amplify == "power":
                amplified = overlap ** ((self.sigma - score) / self.sigma)
            else:
                amplified = (overlap * torch.exp(score / self.sigma)).clamp(max=1)
            return torch.where(overlap > 0, amplified, 0.0).float()

        return criterion


def regressed_iou(predictions: Predictions) -> Criterion:
    """IoU_regressed: overlap of the objects with the boxes that are now predicted."""

    def criterion(boxes: Tensor, labels: Tensor) -> Tensor:
        return pairwise_iou(boxes, predictions.boxes)

    return criterion


def score_of_label(scores: Tensor, labels: Tensor) -> Tensor:
    """Score `[B, g, A]` that each prior gives to the class of each object, from scores `[B, A, C]` and `[B, g]`."""
    index = labels[:, :, None].expand(-1, -1, scores.shape[1])
    return scores.transpose(1, 2).gather(1, index).nan_to_num(nan=0.0)


def _dynamic_k(owners: Ownership, top_k: int, num_objects: int) -> Tensor:
    """max(1, floor(sum of the `top_k` largest qualities of the object)), `[B, G]`."""
    if num_objects == 0:
        return torch.zeros(owners.owner.shape[0], 0, dtype=torch.int64, device=owners.owner.device)
    counted = torch.where((owners.owner >= 0) & (owners.rank < top_k), owners.raw, 0.0)
    fixed = (counted * 2.0**30).long()  # integers add up to the same sum in any order, floats on a GPU do not
    total = torch.zeros(owners.owner.shape[0], num_objects, dtype=torch.int64, device=counted.device)
    return (total.scatter_add(1, owners.owner.clamp(min=0), fixed) >> 30).clamp(min=1)
