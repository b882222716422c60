"""Overlapping tiles of a picture that is larger than the network's input, and their detections put together again."""

import math
from typing import TypeAlias

import torch
from torch import Tensor
from torchvision.ops import batched_nms

Frame: TypeAlias = tuple[int, int, int, int]
"""Corners (x1, y1, x2, y2) of a tile, in pixels of the whole picture."""
OVERLAP = 0.2
EDGE = 2.0
"""Pixels from an inner border of a tile within which a detection counts as cut by it."""


def grid(height: int, width: int, tile: int, overlap: float = OVERLAP) -> list[Frame]:
    """The tiles of a picture, row by row: all of one size, evenly spaced, neighbours share at least `overlap`.

    A side of the picture that is not longer than `tile` is not cut.
    """
    return [
        (x, y, min(width, x + tile), min(height, y + tile))
        for y in _starts(height, tile, overlap)
        for x in _starts(width, tile, overlap)
    ]


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    if side <= tile:
        return [0]
    steps = math.ceil((side - tile) / max(1, math.floor(tile * (1 - overlap))))
    return [round(i * (side - tile) / steps) for i in range(steps + 1)]


def keep_of_tiles(
    boxes: Tensor, scores: Tensor, labels: Tensor, tile: Tensor, frames: Tensor, nms_iou: float
) -> Tensor:
    """Which detections of all tiles of a picture are those of the picture: indices, best score first.

    An inner border of a tile cuts objects. Where a detection ends at one and lies within another tile that does not cut
    it, that tile sees at least as much of the object, and the detection is left out. Then one non-maximum suppression
    runs over all that is left.

    Args:
        boxes: `[n, 4]` in pixels of the whole picture.
        scores: `[n]`.
        labels: `[n]`; classes do not suppress each other.
        tile: `[n]` the tile of each.
        frames: `[t, 4]` the tiles; together they reach the borders of the picture.
        nms_iou: IoU above which the lower score is suppressed.
    """
    inner = _inner(frames)
    uncut = ((boxes[:, None] - inner) * boxes.new_tensor([1, 1, -1, -1]) > EDGE).all(dim=2)  # [n, t]
    own = uncut.gather(1, tile[:, None])[:, 0]
    whole = (own | ~uncut.any(dim=1)).nonzero()[:, 0]
    # In double precision: classes are set apart by adding to the coordinates, which are large already
    return whole[batched_nms(boxes[whole].double(), scores[whole].double(), labels[whole], nms_iou)]


def _inner(frames: Tensor) -> Tensor:
    """The tiles with borders at infinity where they are those of the picture, which cut nothing."""
    low, high = frames[:, :2].amin(dim=0), frames[:, 2:].amax(dim=0)
    far = torch.full_like(frames, torch.inf)
    far[:, :2] *= -1
    outer = torch.cat([frames[:, :2] <= low, frames[:, 2:] >= high], dim=1)
    return torch.where(outer, far, frames)
