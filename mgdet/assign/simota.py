"""SimOTA, YOLOX's assigner (Ge et al., arXiv 2107.08430, section 2.1), a one-pass form of OTA (CVPR 2021)."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.base import Assigner, owned_labels
from mgdet.assign.criteria import regressed_iou, score_of_label, tie_safe_dtype
from mgdet.assign.geometry import Sides, largest, near_centre, nearness
from mgdet.assign.ownership import Criterion, floor_fixed, to_fixed
from mgdet.config_base import resolved
from mgdet.structures import Assignment, Predictions, PriorLayout, Priors, Targets

Version = Literal["mgdet", "yolox-0.3.0", "yolox-2023"]
Choice = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of objects, boxes `[B, g, 4]` and labels `[B, g]`: the quality of the priors, and which ones each chooses."""


class SimOTA(Assigner):
    """The k priors with the smallest cost are positive for both tasks, k = floor(sum of the `top_k` largest IoUs).

    cost = BCE(sqrt(p), one-hot) - iou_weight * log(u). Numbers and the square root are those of the released code. By
    `version`:

    - `mgdet`: candidates are the priors in the object or within `radius` strides of its centre, those that are both
      before the others. Where several objects choose one prior the smallest of their costs wins.
    - `yolox-0.3.0`: the candidates of one object also serve the others, at a cost that puts them last, and a prior that
      several objects choose goes to the smallest cost of all objects of the image.
    - `yolox-2023` (YOLOX's code from 14c62a7, January 2023, on): the same, but candidates are the priors within
      `radius` strides of the centre, in the object or not.

    With `adopt: false` the last two are YOLOX's, for an objectness of 1: mgdet's detectors have no such branch.
    """

    name: Literal["simota"] = "simota"
    version: Version = Field(
        default="mgdet", description="whose candidates and conflicts: mgdet's, or those of a version of YOLOX"
    )
    radius: Annotated[float, Field(gt=0, le=1e6)] | Literal["auto"] = Field(
        default="auto", description="strides from the object's centre, in x and y; auto: 2.5, or yolox-2023's 1.5"
    )
    top_k: int = Field(default=10, ge=1, le=10_000, description="IoUs summed to find the number of positives")
    cls_weight: float = Field(default=1.0, ge=0, le=1e6, description="factor of the classification in the cost")
    iou_weight: float = Field(default=3.0, ge=0, le=1e6, description="factor of -log(IoU) in the cost")

    def resolved_for(self, layout: PriorLayout) -> Self:
        """`radius` as a number."""
        radius = (1.5 if self.version == "yolox-2023" else 2.5) if self.radius == "auto" else self.radius
        return self.model_copy(update={"radius": radius})

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Both tasks get the same labels."""
        priors, choice = predictions.priors, self._choice(predictions, targets)

        def chosen(boxes: Tensor, labels: Tensor) -> Tensor:
            quality, own = choice(boxes, labels)
            return torch.where(own, quality, 0.0)

        criterion: Criterion = chosen
        if self.version != "mgdet":
            contested = self.count_claims(chosen, priors, targets).unsqueeze(1) > 1

            def chosen_or_contested(boxes: Tensor, labels: Tensor) -> Tensor:
                quality, own = choice(boxes, labels)
                return torch.where(own | contested, quality, 0.0)

            criterion = chosen_or_contested
        labels = owned_labels(self.find_owners(criterion, priors, targets))
        return Assignment(labels, labels)

    def cost(self, predictions: Predictions) -> Callable[[Tensor, Tensor], Tensor]:
        """Of objects, labels `[B, g]` and IoUs `[B, g, A]` with the predicted boxes: the cost of the priors."""
        absent, present = _cross_entropies(predictions.logits)

        def cost(labels: Tensor, overlap: Tensor) -> Tensor:
            classification = absent[:, None] + score_of_label(present, labels)
            return self.cls_weight * classification - self.iou_weight * torch.log(overlap.to(absent.dtype) + 1e-8)

        return cost

    def _regions(self, boxes: Tensor, priors: Priors) -> tuple[Tensor, Tensor]:
        """An object's own candidates, and those of them that come before all others, `[B, g, A]` each."""
        central = near_centre(boxes, priors, resolved(self.radius))
        if self.version == "yolox-2023":
            return central, central
        inside = Sides.of(boxes, priors).nearest() > 0
        return inside | central, inside & central

    def _choice(self, predictions: Predictions, targets: Targets) -> Choice:
        priors, overlap = predictions.priors, regressed_iou(predictions)
        cost = self.cost(predictions)
        shared = None
        if self.version != "mgdet":
            own = self.count_claims(lambda boxes, labels: self._regions(boxes, priors)[0], priors, targets)
            shared = own.unsqueeze(1) > 0

        def choice(boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            candidate, first = self._regions(boxes, priors)
            candidate = candidate if shared is None else shared
            u = torch.where(candidate, overlap(boxes, labels), 0.0)
            # the centre of the object comes first: costs lie in (0, 1), those of the centre in (1, 2)
            quality = torch.where(candidate, first + 1 / (1 + cost(labels, u)), 0.0).float()
            best = u.topk(min(self.top_k, u.shape[-1]), dim=-1).values
            wanted = floor_fixed(to_fixed(best).sum(dim=-1)).clamp(min=1)
            return quality, largest(quality, partial(nearness, boxes, priors), wanted, self.top_k, above=0)

        return choice


def _cross_entropies(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of sqrt(p) against "no class" `[B, A]`, and what each class adds when it is the one."""
    root = logits.to(tie_safe_dtype(logits)).sigmoid().nan_to_num(nan=0.0).sqrt()
    negative = -torch.log1p(-root).clamp(min=-100)
    positive = -torch.log(root).clamp(min=-100)
    return negative.sum(dim=-1), positive - negative
