"""SimOTA, YOLOX's assigner (Ge et al., arXiv 2107.08430, section 2.1), a one-pass form of OTA (CVPR 2021)."""

from collections.abc import Callable
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.base import Assigner, owned_labels
from mgdet.assign.criteria import of_label, over_classes, regressed_iou, tie_safe_dtype
from mgdet.assign.geometry import Sides, around, largest, near_centre, nearness
from mgdet.assign.ownership import floor_fixed, to_fixed
from mgdet.assign.pieces import Criterion, Reach
from mgdet.assign.places import ALL, At, put, take, where_set
from mgdet.config_base import resolved
from mgdet.structures import Assignment, Predictions, PriorLayout, Priors, Targets

Version = Literal["mgdet", "yolox-0.3.0", "yolox-2023"]
Choice = Callable[[Tensor, Tensor, At], tuple[Tensor, Tensor]]
"""Of objects, boxes `[B, g, 4]` and labels `[B, g]`: the quality of `n` priors, and which ones each chooses."""


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
        priors = predictions.priors
        choice, reach = self._choice(predictions, targets)

        def chosen(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
            quality, own = choice(boxes, labels, at)
            return torch.where(own, quality, 0.0)

        criterion = Criterion(chosen, reach)
        if self.version != "mgdet":
            contested = self.count_claims(criterion, priors, targets) > 1

            def chosen_or_contested(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
                quality, own = choice(boxes, labels, at)
                return torch.where(own | take(contested, at).unsqueeze(1), quality, 0.0)

            criterion = Criterion(chosen_or_contested, reach)
        labels = owned_labels(self.find_owners(criterion, priors, targets))
        return Assignment(labels, labels)

    def cost(self, predictions: Predictions) -> Callable[[Tensor, Tensor], Tensor]:
        """Of objects, labels `[B, g]` and IoUs `[B, g, A]` with the predicted boxes: the cost of the priors."""
        absent = _absent(predictions.logits, ALL).unsqueeze(1)

        def cost(labels: Tensor, overlap: Tensor) -> Tensor:
            return self._cost(absent, of_label(predictions.logits, labels), overlap)

        return cost

    def _cost(self, absent: Tensor, logits: Tensor, overlap: Tensor) -> Tensor:
        """From the cross-entropy of "no class" `[B, 1, n]`, and the objects' own logits and IoUs `[B, g, n]`."""
        classification = absent + _present(logits)
        return self.cls_weight * classification - self.iou_weight * torch.log(overlap.to(absent.dtype) + 1e-8)

    def _regions(self, boxes: Tensor, priors: Priors) -> tuple[Tensor, Tensor]:
        """An object's own candidates, and those of them that come before all others, `[B, g, A]` each."""
        central = near_centre(boxes, priors, resolved(self.radius))
        if self.version == "yolox-2023":
            return central, central
        inside = Sides.of(boxes, priors).nearest() > 0
        return inside | central, inside & central

    def _choice(self, predictions: Predictions, targets: Targets) -> tuple[Choice, Reach]:
        priors, logits, overlap = predictions.priors, predictions.logits, regressed_iou(predictions)
        around_centres = around(priors, resolved(self.radius))

        def own(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
            return self._regions(boxes, priors.take(at))[0].float()

        shared = self.count_claims(Criterion(own, around_centres.touching), priors, targets) > 0
        absent, of_any = (
            torch.zeros(shared.shape, dtype=tie_safe_dtype(logits), device=shared.device),
            where_set(shared),
        )
        put(absent, of_any, _absent(logits, of_any))

        def choice(boxes: Tensor, labels: Tensor, at: At) -> tuple[Tensor, Tensor]:
            here = priors.take(at)
            candidate, first = self._regions(boxes, here)
            if self.version != "mgdet":
                candidate = take(shared, at).unsqueeze(1)
            u = torch.where(candidate, overlap.quality(boxes, labels, at), 0.0)
            cost = self._cost(take(absent, at).unsqueeze(1), of_label(logits, labels, at), u)
            # the centre of the object comes first: costs lie in (0, 1), those of the centre in (1, 2)
            quality = torch.where(candidate, first + 1 / (1 + cost), 0.0).float()
            best = u.topk(min(self.top_k, u.shape[-1]), dim=-1).values
            wanted = floor_fixed(to_fixed(best).sum(dim=-1)).clamp(min=1)

            def near(tied: At) -> Tensor:
                return nearness(boxes, here.take(tied))

            return quality, largest(quality, near, wanted, self.top_k, above=0)

        return choice, around_centres.touching if self.version == "mgdet" else lambda box: of_any


def _absent(logits: Tensor, at: At) -> Tensor:
    """Binary cross-entropy of sqrt(p) against "no class", summed over the classes, `[B, n]`."""
    return over_classes(lambda some: _negative(_root(some)), logits, at)


def _present(logits: Tensor) -> Tensor:
    """What a class adds to that when it is the one."""
    root = _root(logits)
    return -torch.log(root).clamp(min=-100) - _negative(root)


def _root(logits: Tensor) -> Tensor:
    """sqrt(p)."""
    return logits.to(tie_safe_dtype(logits)).sigmoid().nan_to_num(nan=0.0).sqrt()


def _negative(root: Tensor) -> Tensor:
    """Cross-entropy of sqrt(p) against 0."""
    return -torch.log1p(-root).clamp(min=-100)
