"""Where boxes of priors lie: those that an object may touch are found without comparing it with every one."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

At = Tensor | slice
"""Some priors of one image, `[n]` int64 in ascending order; or `ALL` of every image."""
ALL = slice(None)

SMALL = 2**16
"""Elements of the matrix of objects and priors up to which it is made as a whole on a CPU too."""
BLOCK = 64
"""Priors whose hull is looked at first. Neighbours on a level lie near each other, so the hulls are small."""


def host_may_look(tensor: Tensor) -> bool:
    """True where the host sees values for free, on a CPU; elsewhere it would have to wait for them."""
    return tensor.device.type == "cpu"


def known_empty(mask: Tensor) -> bool:
    """True if nothing is set and the host may look; False where it may not."""
    return host_may_look(mask) and not bool(mask.any())


def is_small(objects: Tensor, priors: int) -> bool:
    """True where so few objects `[B, G, ...]` meet so few priors that a loop over them would not pay."""
    return objects.shape[0] * objects.shape[1] * priors <= SMALL


def one_at_a_time(objects: Tensor, priors: int) -> bool:
    """True where one object is looked at after the other, and only the priors that it can reach (`At`).

    That is where the host may look, there is only one image, and not little to do.
    """
    return host_may_look(objects) and len(objects) == 1 and not is_small(objects, priors)


def take(values: Tensor, at: At) -> Tensor:
    """Values of the priors `at`, `[..., A] -> [..., n]`, where a choice of them means that there is one row only."""
    if isinstance(at, slice):
        return values
    return values.view(-1).index_select(0, at).view(*values.shape[:-1], -1)  # faster than gather


def put(values: Tensor, at: At, new: Tensor) -> None:
    """Replace the values `[..., A]` of the priors `at` by `new` `[..., n]`, in place."""
    if isinstance(at, slice):
        values.copy_(new)
    else:
        values.scatter_(-1, at.expand_as(new), new)


def indices(mask: Tensor) -> Tensor:
    """Where a mask in the host's memory is set, `[n]` of the flattened mask; NumPy looks at several at a time."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def where_set(mask: Tensor) -> At:
    """The priors of the only image that are set in `[1, A]`; all where the host may not look or has several images."""
    return indices(mask) if host_may_look(mask) and len(mask) == 1 else ALL


def among(at: At, some: At) -> At:
    """Of the priors `at` those at the places `some`."""
    if isinstance(some, slice):
        return at
    return some if isinstance(at, slice) else at[some]


class Places:
    """Boxes `[A, 4]` that all images share, or `[B, A, 4]`; each of the coordinates lies together in memory."""

    def __init__(self, boxes: Tensor):
        self.boxes = boxes

    @cached_property
    def _planes(self) -> Tensor:
        return self.boxes.movedim(-1, 0).contiguous()  # [4, A] or [4, B, A]

    def at(self, at: At) -> Tensor:
        """The boxes of some priors, `[n, 4]` or `[B, n, 4]`."""
        planes = self._planes if isinstance(at, slice) else torch.stack([take(plane, at) for plane in self._planes])
        return planes.movedim(0, -1)

    def touching(self, box: Tensor) -> Tensor:
        """The priors `[n]`, ascending, whose boxes in the only image have a point in common with `box` `[4]`.

        What it leaves out has no overlap with the box, in floating point either: comparisons round nothing.
        """
        x1, y1, x2, y2 = box.tolist()
        blocks, hulls = self._blocks
        near = indices(_touch(hulls, x1, y1, x2, y2))
        touch = _touch(blocks.index_select(0, near), x1, y1, x2, y2)
        index = near[:, None] * BLOCK + torch.arange(BLOCK, device=near.device)
        return index.flatten().index_select(0, indices(touch))

    @cached_property
    def _blocks(self) -> tuple[Tensor, Tensor]:
        """The boxes in blocks, `[n, 4, 64]` filled up with NaN, and the sides of each block's hull, `[n, 4]`."""
        planes = self._planes.reshape(4, -1)
        spare = -planes.shape[1] % BLOCK
        filled = torch.nn.functional.pad(planes, (0, spare), value=torch.nan)
        blocks = filled.view(4, (planes.shape[1] + spare) // BLOCK, BLOCK).transpose(0, 1).contiguous()
        inf = torch.inf  # boxes with a NaN touch nothing
        low = blocks[:, :2].nan_to_num(nan=inf, posinf=inf, neginf=-inf).amin(dim=2)
        high = blocks[:, 2:].nan_to_num(nan=-inf, posinf=inf, neginf=-inf).amax(dim=2)
        return blocks, torch.cat([low, high], dim=1)


def _touch(boxes: Tensor, x1: float, y1: float, x2: float, y2: float) -> Tensor:
    """Which boxes, their coordinates in dimension 1, have a point in common with one."""
    left, top, right, bottom = boxes.unbind(1)
    return (left <= x2).logical_and_(right >= x1).logical_and_(top <= y2).logical_and_(bottom >= y1)
