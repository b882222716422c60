"""Where priors lie with respect to objects: boxes `[B, g, 4]` against priors, each result `[B, g, A]`."""

from typing import NamedTuple

import torch
from torch import Tensor

from mgdet.structures import Priors

SQUARE = 8.0
"""Side in strides of the square that stands for a point: ATSS's only anchor (Zhang et al., CVPR 2020, section 3.1)."""
MARGIN = 0.01
"""Pixels that a centre must lie within an object to count as inside, where a method's code asks for more than 0."""


def footprints(priors: Priors) -> Tensor:
    """The box `[A, 4]` that a prior stands for: the anchor, or `SQUARE` strides around a point."""
    if not priors.layout.points:
        return priors.boxes
    half = 0.5 * SQUARE * priors.strides[:, None]
    centres = box_centres(priors.boxes)
    return torch.cat([centres - half, centres + half], dim=-1)


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


def nearest_per_level(boxes: Tensor, priors: Priors, count: int) -> Tensor:
    """On each level the priors of the `count` locations nearest to the object's centre; ties by index."""
    per_location = priors.layout.per_location
    centres = box_centres(boxes).unsqueeze(-2)
    chosen = []
    for level in torch.split(box_centres(priors.boxes), list(priors.level_counts)):
        dx, dy = (centres - level[::per_location]).unbind(-1)
        nearest = largest(-(dx * dx + dy * dy), min(count, dx.shape[-1]))
        chosen.append(nearest.repeat_interleave(per_location, dim=-1))
    return torch.cat(chosen, dim=-1)


def largest(values: Tensor, count: int | Tensor, at_most: int | None = None) -> Tensor:
    """Mask of the `count` largest of the last dimension, the lower index first among equal ones.

    `count` is one number or one for each row (at least 1), then bounded by `at_most`. `torch.topk` alone does not say
    which of several equal values it takes.
    """
    bound = min(count if isinstance(count, int) else (at_most or values.shape[-1]), values.shape[-1])
    top = values.topk(bound, dim=-1).values
    if isinstance(count, int):
        wanted = torch.full_like(values[..., :1], bound, dtype=torch.int64)
    else:
        wanted = count.clamp(1, bound).unsqueeze(-1)
    edge = top.gather(-1, wanted - 1)
    above, level = values > edge, values == edge
    return above | (level & (level.cumsum(dim=-1) <= wanted - above.sum(dim=-1, keepdim=True)))
