"""OTA: assignment as optimal transport (Ge et al., CVPR 2021, arXiv 2103.14259)."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.base import Assigner, owned_labels
from mgdet.assign.criteria import focal_absent, focal_present, of_label, over_classes, prior_iou, regressed_iou
from mgdet.assign.geometry import MARGIN, Sides, first_best, near_centre, nearness
from mgdet.assign.ownership import floor_fixed, to_fixed
from mgdet.assign.pieces import usable_objects
from mgdet.assign.places import At, put, where_set
from mgdet.structures import Assignment, Predictions, Targets

LEAST_IOU = 1.1920929e-07
"""The bound of the IoU in its logarithm: float32's epsilon."""
SUPPLY = math.log(1 + 1e-8)
"""Logarithm of what each prior takes; the small number is the authors'."""


class OTA(Assigner):
    """Each prior goes to the object, or to the background, from which the cheapest plan brings it the most.

    Object i has k_i = max(1, floor(sum of its `top_k` largest u)) units to give and the background the rest; each
    prior takes one. A unit costs focal loss - `iou_weight` * log(u), from the background focal loss against "no class"
    (equations 1 to 3 of the paper), and objects give only to priors inside, within `radius` strides of their centre.
    The plan is Sinkhorn's (equation 5 and algorithm 1: `iterations`, regularised by `epsilon`). Each row is divided by
    its largest entry, and a prior belongs to the largest in its column (verified: the authors' `fcos.py`).

    Differences: an object without a candidate is left to adoption instead of to the cost of 10^6 of any prior; of
    objects that want a prior as much, which are all that prefer it to others, the one with the larger share of the plan
    has it, not the first. The whole matrix of objects and priors is held, whatever `chunk_elements`, for the candidates
    of one image on a CPU.
    """

    name: Literal["ota"] = "ota"
    radius: float = Field(default=2.5, gt=0, le=1e6, description="strides from the object's centre, in x and y")
    top_k: int = Field(default=20, ge=1, le=10_000, description="IoUs summed to find the number of positives")
    iou_weight: float = Field(default=1.5, ge=0, le=1e6, description="factor of -log(IoU) in the cost")
    epsilon: float = Field(default=0.1, ge=0.001, le=1e3, description="the larger, the more even the plan")
    iterations: int = Field(default=50, ge=1, le=10_000, description="of Sinkhorn's algorithm")

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Both tasks get the same labels."""
        priors = predictions.priors
        owner = torch.full(predictions.boxes.shape[:2], -1, device=priors.boxes.device)
        share = torch.zeros(owner.shape, device=owner.device)
        if targets.boxes.shape[1]:
            inside = Sides.of(targets.boxes, priors).nearest() > MARGIN
            region = inside & near_centre(targets.boxes, priors, self.radius) & usable_objects(targets).unsqueeze(-1)
            at = where_set(region.any(dim=1))
            found, planned = self._planned(predictions, targets, region[..., at], at)
            put(owner, at, found)
            put(share, at, planned)
        labels = owned_labels(self.owned_by(owner, share, prior_iou(priors), priors, targets))
        return Assignment(labels, labels)

    def _planned(self, predictions: Predictions, targets: Targets, region: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """Owner and share of the plan `[B, n]` of the priors `at`, of which `region` `[B, G, n]` are the candidates."""
        if not region.shape[2]:
            nothing = region.new_zeros(len(region), 0)
            return nothing.long(), nothing.float()
        u = torch.where(region, regressed_iou(predictions).quality(targets.boxes, targets.labels, at), 0.0)
        absent = over_classes(focal_absent, predictions.logits, at).double().unsqueeze(1)
        own = of_label(predictions.logits, targets.labels, at)
        cost = absent - focal_absent(own) + focal_present(own) - self.iou_weight * u.double().clamp(min=LEAST_IOU).log()
        kernel = torch.cat([torch.where(region, -cost, -torch.inf), -absent], dim=1) / self.epsilon
        wanted = floor_fixed(to_fixed(u.topk(min(self.top_k, u.shape[2]), dim=2).values).sum(dim=2)).clamp(min=1)
        plan, rest = self._sinkhorn(kernel, torch.where(region.any(dim=2), wanted, 0), predictions.boxes.shape[1])
        most = torch.maximum(plan.amax(dim=2), rest)
        scaled = (plan - torch.where(most > -torch.inf, most, 0.0).unsqueeze(2)).float().transpose(1, 2)
        objects, shares = scaled[..., :-1], plan[:, :-1].exp().float().transpose(1, 2)
        here = predictions.priors.take(at)

        def near(tied: At) -> Tensor:
            first = shares.double() + 2.0**-30 * nearness(targets.boxes, here).transpose(1, 2)
            return first if isinstance(tied, slice) else first.flatten()[tied]

        best = first_best(objects, near)
        wins = objects.gather(2, best).squeeze(2)
        owner = torch.where((wins >= scaled[..., -1]) & (wins > -torch.inf), best.squeeze(2), -1)
        return owner, shares.gather(2, best).squeeze(2)

    def _sinkhorn(self, kernel: Tensor, wanted: Tensor, priors: int) -> tuple[Tensor, Tensor]:
        """The logarithm of the plan `[B, G + 1, n]`, and in each row that of the priors that are not among the n.

        These are nobody's candidates: each takes what it takes from the background alone, and they are all equal.
        """
        left_out = priors - kernel.shape[2]
        total = torch.cat([wanted, priors - wanted.sum(dim=1, keepdim=True)], dim=1).double()
        supply = torch.log(total.clamp(min=0) + 1e-8)
        others = torch.full_like(supply, -torch.inf)
        others[:, -1] = math.log(left_out) + SUPPLY if left_out else -torch.inf
        has_any = (kernel > -torch.inf).any(dim=2)
        row = torch.zeros_like(supply)
        for _ in range(self.iterations):
            column = SUPPLY - (kernel + row.unsqueeze(2)).logsumexp(dim=1, keepdim=True)
            given = torch.logaddexp((kernel + column).logsumexp(dim=2), others - row)
            before, row = row, torch.where(has_any, supply - given, 0.0)
        one = torch.where(others > -torch.inf, SUPPLY + row - before, -torch.inf)
        return kernel + row.unsqueeze(2) + column, one
