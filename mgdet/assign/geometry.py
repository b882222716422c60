"""Where priors lie with respect to objects: boxes `[B, g, 4]` against priors, each result `[B, g, A]`."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mgdet.assign.places import ALL, At, Places, host_may_look, indices, known_empty, put
from mgdet.boxes import pairwise_diou
from mgdet.structures import Priors

SQUARE = 8.0
"""Side in strides of the square that stands for a point: ATSS's only anchor (Zhang et al., CVPR 2020, section 3.1)."""
MARGIN = 0.01
"""Pixels that a centre must lie within an object to count as inside, where a method's code asks for more than 0."""

CandidateKind = Literal["locations", "anchors"]
"""What ATSS's number of candidates counts, where a location has several anchors."""
TieBreak = Callable[[At], Tensor]
"""Makes the key that decides between equal values: of all, or of a single row's values at some places.

It is only made where some are equal."""


def footprints(priors: Priors) -> Tensor:
    """The box `[A, 4]` that a prior stands for: the anchor, or `SQUARE` strides around a point."""
    if not priors.layout.points:
        return priors.boxes
    half = 0.5 * SQUARE * priors.strides[:, None]
    centres = box_centres(priors.boxes)
    return torch.cat([centres - half, centres + half], dim=-1)


@lru_cache(maxsize=8)
def footprint_places(priors: Priors) -> Places:
    """Where the footprints lie; remembered, because the priors of a training are the same in every step."""
    return Places(footprints(priors))


def box_centres(boxes: Tensor) -> Tensor:
    """`[..., 4] -> [..., 2]`."""
    return 0.5 * (boxes[..., :2] + boxes[..., 2:])


class Sides(NamedTuple):
    """Distances from the priors' centres to the four sides of each object; negative outside of it."""

    left: Tensor
    top: Tensor
    right: Tensor
    bottom: Tensor

    @classmethod
    def of(cls, boxes: Tensor, priors: Priors) -> "Sides":
        """Sides of the objects `[B, g, 4]` seen from the priors, four tensors `[B, g, A]` in pixels."""
        x, y = box_centres(priors.boxes).unbind(-1)
        x1, y1, x2, y2 = boxes.unsqueeze(-1).unbind(-2)
        return cls(x - x1, y - y1, x2 - x, y2 - y)

    def nearest(self) -> Tensor:
        """Distance to the nearest side: positive inside the object."""
        return torch.minimum(torch.minimum(self.left, self.right), torch.minimum(self.top, self.bottom))

    def farthest(self) -> Tensor:
        """Distance to the farthest side: what FCOS's ranges bound."""
        return torch.maximum(torch.maximum(self.left, self.right), torch.maximum(self.top, self.bottom))

    def evenness(self) -> tuple[Tensor, Tensor]:
        """min / max of the two horizontal and of the two vertical distances; 1 at the centre, 0 from the side on."""
        horizontal = _ratio(self.left, self.right)
        vertical = _ratio(self.top, self.bottom)
        inside = self.nearest() > 0
        return torch.where(inside, horizontal, 0.0), torch.where(inside, vertical, 0.0)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return (torch.minimum(a, b) / torch.maximum(a, b)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def near_centre(boxes: Tensor, priors: Priors, radius: float) -> Tensor:
    """Priors less than `radius` strides from the object's centre, in both directions."""
    offset = (box_centres(boxes).unsqueeze(-2) - box_centres(priors.boxes)).abs().amax(dim=-1)
    return offset < radius * priors.strides


def in_scale_range(boxes: Tensor, priors: Priors, low: float, high: float) -> Tensor:
    """Priors whose level is made for a box as far-reaching as this one seen from them: FCOS's regression ranges.

    `low < max(l, t, r, b) <= high` in strides; the finest level has no lower and the coarsest no upper bound.
    """
    first, last = outer_levels(priors)
    reach = Sides.of(boxes, priors).farthest()
    return ((reach > low * priors.strides) | first) & ((reach <= high * priors.strides) | last)


def outer_levels(priors: Priors) -> tuple[Tensor, Tensor]:
    """Which priors `[A]` are on the finest level, and which on the coarsest."""
    index = torch.arange(len(priors.boxes), device=priors.boxes.device)
    return index < priors.level_counts[0], index >= len(priors.boxes) - priors.level_counts[-1]


def nearness(boxes: Tensor, priors: Priors) -> Tensor:
    """DIoU `[B, g, A]` of objects `[B, g, 4]` and footprints in [-1, 1]: it decides where a criterion ties."""
    return pairwise_diou(boxes, footprints(priors))


def around(priors: Priors, radius: float = 0.0) -> Places:
    """The squares within `radius` strides of the priors' centres: they touch what contains or comes near a centre."""
    centres, half = box_centres(priors.boxes), radius * priors.strides[:, None]
    return Places(torch.cat([centres - half, centres + half], dim=-1))


def nearest_per_level(boxes: Tensor, priors: Priors, count: int, of: CandidateKind = "locations") -> Tensor:
    """On each level the priors of the `count` locations, or the `count` priors, nearest to the object's centre.

    Of several at the same distance the one with the larger DIoU (of a location's best prior) comes first, then the
    index.
    """
    per_location = priors.layout.per_location if of == "locations" else 1
    centres = box_centres(boxes).unsqueeze(-2)

    def nearest(level: Priors) -> Tensor:
        dx, dy = (centres - box_centres(level.boxes[::per_location])).unbind(-1)

        def near(tied: At) -> Tensor:
            if not isinstance(tied, slice):
                tied = (tied[:, None] * per_location + torch.arange(per_location, device=tied.device)).flatten()
            each = nearness(boxes, level.take(tied))
            return each.view(*each.shape[:-1], -1, per_location).amax(dim=-1)

        chosen = largest(-(dx * dx + dy * dy), near, min(count, dx.shape[-1]))
        return chosen.repeat_interleave(per_location, dim=-1)

    return torch.cat([nearest(priors[level]) for level in range(len(priors.level_counts))], dim=-1)


def first_best(values: Tensor, near: TieBreak, above: float = -math.inf) -> Tensor:
    """Index `[..., 1]` of the largest of the last dimension; of equal ones that of the largest `near`, then lowest.

    `near` is not asked about ties at values that are not larger than `above`.
    """
    best = values.amax(dim=-1, keepdim=True)
    tied = values == best
    if not _is_single_row(tied):
        return torch.where(tied, near(ALL), -torch.inf).argmax(dim=-1, keepdim=True)
    row = indices(tied)
    choice = near(row).argmax(dim=-1) if len(row) > 1 and best.item() > above else 0
    return row[choice].view_as(best)


def largest(
    values: Tensor, near: TieBreak, count: int | Tensor, at_most: int | None = None, above: float = -math.inf
) -> Tensor:
    """Mask of the `count` largest of the last dimension; of equal ones those of the largest `near`, then lowest index.

    `count` is one number or one for each row (at least 1), then bounded by `at_most`. `torch.topk` alone does not say
    which of several equal values it takes. `near` is not asked about ties at values that are not larger than `above`.
    """
    bound = min(count if isinstance(count, int) else (at_most or values.shape[-1]), values.shape[-1])
    if isinstance(count, int):
        wanted = torch.full_like(values[..., :1], bound, dtype=torch.int64)
    else:
        wanted = count.clamp(1, bound).unsqueeze(-1)
    chosen, tied, left = _up_to_edge(values, wanted, bound)
    if not known_empty((tied & (values > above)).sum(dim=-1, keepdim=True) > left):
        nearest, tied, left = _up_to_edge(_near_of_tied(tied, near), left, bound)
        chosen |= nearest
    return chosen | (tied & (tied.cumsum(dim=-1) <= left))


def _up_to_edge(values: Tensor, wanted: Tensor, bound: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is larger than the value that ranks as `wanted` `[..., 1]`, what equals it, and how many of these belong."""
    edge = values.topk(bound, dim=-1).values.gather(-1, wanted - 1)
    larger = values > edge
    return larger, values == edge, wanted - larger.sum(dim=-1, keepdim=True)


def _near_of_tied(tied: Tensor, near: TieBreak) -> Tensor:
    """`near` where it has to decide between values of the last dimension, and less than that elsewhere."""
    if not _is_single_row(tied):
        return torch.where(tied, near(ALL), -torch.inf)
    key, row = torch.full(tied.shape, -torch.inf), indices(tied)
    put(key, row, near(row))
    return key


def _is_single_row(values: Tensor) -> bool:
    return host_may_look(values) and values.numel() == values.shape[-1]
