"""SimOTA, YOLOX's assigner (Ge et al., arXiv 2107.08430, section 2.1), a one-pass form of OTA (CVPR 2021)."""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.base import Assigner, owned_labels
from mgdet.assign.criteria import regressed_iou, score_of_label, tie_safe_dtype
from mgdet.assign.geometry import Sides, largest, near_centre, nearness
from mgdet.assign.ownership import Criterion, floor_fixed, to_fixed
from mgdet.structures import Assignment, Predictions, Targets


class SimOTA(Assigner):
    """The k priors with the smallest cost are positive for both tasks, k = floor(sum of the `top_k` largest IoUs).

    cost = BCE(sqrt(p), one-hot) - iou_weight * log(u). Candidates are the priors in the object or within `radius`
    strides of its centre, those that are both before the others. Where two objects choose one prior the smaller cost
    wins. Numbers and the square root are those of the released code; there the candidates of one object also serve the
    others, at a cost that puts them last.
    """

    name: Literal["simota"] = "simota"
    radius: float = Field(default=2.5, gt=0, description="strides from the object's centre, in x and y")
    top_k: int = Field(default=10, ge=1, description="IoUs summed to find the number of positives")
    cls_weight: float = Field(default=1.0, ge=0, description="factor of the classification in the cost")
    iou_weight: float = Field(default=3.0, ge=0, description="factor of -log(IoU) in the cost")

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Both tasks get the same labels."""
        labels = owned_labels(self.find_owners(self._selected(predictions), predictions.priors, targets))
        return Assignment(labels, labels)

    def _selected(self, predictions: Predictions) -> Criterion:
        priors, overlap = predictions.priors, regressed_iou(predictions)
        absent, present = _cross_entropies(predictions.logits)

        def criterion(boxes: Tensor, labels: Tensor) -> Tensor:
            inside = Sides.of(boxes, priors).nearest() > 0
            central = near_centre(boxes, priors, self.radius)
            candidate = inside | central
            u = torch.where(candidate, overlap(boxes, labels), 0.0)
            classification = absent[:, None] + score_of_label(present, labels)
            cost = self.cls_weight * classification - self.iou_weight * torch.log(u.to(absent.dtype) + 1e-8)
            # the centre of the object comes first: costs lie in (0, 1), those of the centre in (1, 2)
            quality = torch.where(candidate, (inside & central) + 1 / (1 + cost), 0.0).float()
            best = u.topk(min(self.top_k, u.shape[-1]), dim=-1).values
            wanted = floor_fixed(to_fixed(best).sum(dim=-1)).clamp(min=1)
            chosen = largest(quality, partial(nearness, boxes, priors), wanted, self.top_k, above=0)
            return torch.where(chosen, quality, 0.0)

        return criterion


def _cross_entropies(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of sqrt(p) against "no class" `[B, A]`, and what each class adds when it is the one."""
    root = logits.to(tie_safe_dtype(logits)).sigmoid().nan_to_num(nan=0.0).sqrt()
    negative = -torch.log1p(-root).clamp(min=-100)
    positive = -torch.log(root).clamp(min=-100)
    return negative.sum(dim=-1), positive - negative
