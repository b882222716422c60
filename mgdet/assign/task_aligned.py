"""Task alignment learning, TOOD's assigner (Feng et al., ICCV 2021, arXiv 2108.07755)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.atss import ATSS
from mgdet.assign.base import Assigner, owned_labels
from mgdet.assign.criteria import class_score, own_pairs, product, regressed_iou, sigmoid, tie_safe_dtype
from mgdet.assign.geometry import MARGIN, Sides, largest, nearness
from mgdet.assign.pieces import Criterion
from mgdet.assign.places import At
from mgdet.boxes import iou
from mgdet.structures import Assignment, Labels, Predictions, PriorLayout, Targets


class TaskAligned(Assigner):
    """The `top_k` priors with the largest t = p^alpha * u^beta are positive for both tasks, with soft targets.

    p is the score of the object's class, u the IoU of the predicted box; the prior's centre must be inside. An object's
    targets are t scaled so that the largest is its largest u (section 3.3 of the paper). They belong to
    `loss.cls: {name: quality_focal, target: assigned}` and weigh the box loss. Where two objects choose one prior, the
    larger IoU wins. TOOD's code is `inside: after` with `adopt: false`; it starts with ATSS's labels for 4 epochs (its
    configuration, not the paper's text).
    """

    name: Literal["task_aligned"] = "task_aligned"
    alpha: float = Field(default=1.0, ge=0, le=1000, description="power of the class score")
    beta: float = Field(default=6.0, gt=0, le=1000, description="power of the IoU")
    top_k: int = Field(default=13, ge=1, le=10_000, description="positives of each object")
    inside: Literal["before", "after"] = Field(
        default="before",
        description="when centres outside the object are dropped: before its top_k are chosen, or from those (TOOD)",
    )
    warmup_epochs: float = Field(default=4.0, ge=0, le=1e9, description="epochs with the labels of atss before")

    def at(self, epoch: float, layout: PriorLayout) -> Assigner:
        """ATSS while `epoch < warmup_epochs`."""
        return ATSS(adopt=self.adopt, chunk_elements=self.chunk_elements) if epoch < self.warmup_epochs else self

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Both tasks get the same labels."""
        owners = self.find_owners(self._selected(predictions), predictions.priors, targets)
        labels = owned_labels(owners)
        labels = self._soft(labels, predictions, targets)
        return Assignment(labels, labels)

    def _selected(self, predictions: Predictions) -> Criterion:
        priors, overlap = predictions.priors, regressed_iou(predictions)
        alignment = product(class_score(predictions), overlap, (self.alpha, self.beta), predictions.logits)

        def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
            here = priors.take(at)
            inside = Sides.of(boxes, here).nearest() > MARGIN
            aligned = alignment.quality(boxes, labels, at)
            if self.inside == "before":
                aligned = torch.where(inside, aligned, 0.0)

            def near(tied: At) -> Tensor:
                return nearness(boxes, here.take(tied))

            chosen = largest(aligned, near, self.top_k, above=0)
            return torch.where(chosen & (aligned > 0) & inside, overlap.quality(boxes, labels, at), 0.0)

        return Criterion(quality, alignment.reach)

    def _soft(self, hard: Labels, predictions: Predictions, targets: Targets) -> Labels:
        """t / max(t) * max(u) over the positives of each object; 1 for an object whose best t is 0."""
        batch, objects = targets.labels.shape
        if not objects:
            return hard
        positive, owner = hard.gt_index >= 0, hard.gt_index.clamp(min=0)
        boxes, label = own_pairs(targets, owner)
        overlap = torch.where(positive, iou(predictions.boxes, boxes), 0.0)
        score = predictions.logits.gather(2, label[..., None]).squeeze(2)
        score = sigmoid(score).nan_to_num(nan=0.0)
        dtype = tie_safe_dtype(score)
        aligned = (score.to(dtype) ** self.alpha * overlap.to(dtype) ** self.beta).float()
        aligned = torch.where(positive, aligned, 0.0)
        nothing = torch.zeros(batch, objects, device=score.device)
        best_aligned = nothing.scatter_reduce(1, owner, aligned, "amax").gather(1, owner)
        best_overlap = nothing.scatter_reduce(1, owner, overlap, "amax").gather(1, owner)
        soft = torch.where(best_aligned > 0, aligned / best_aligned * best_overlap, 1.0)
        return Labels(hard.gt_index, torch.where(positive, soft, 0.0))
