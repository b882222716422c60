"""The predictions that overlap an object, each with its best one: what the correlations before suppression are taken
over."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from mgdet.boxes import iou, is_degenerate
from mgdet.structures import Scores, Targets

BLOCK = 32
"""Predictions that are passed over together where an object overlaps none of them."""
OBJECTS_PER_IMAGE = 1 << 20
"""Object indices are `image position * OBJECTS_PER_IMAGE + index in the padded targets`: unique over a data set."""


class CandidateBatch(NamedTuple):
    """`n` predicted boxes, each with its best object; sorted by image and prior."""

    image: NDArray[np.int64]  # [n] position of the image in its split
    object: NDArray[np.int64]  # [n] unique over the data set
    prior: NDArray[np.int64]  # [n] index of the prediction in its image
    label: NDArray[np.int64]  # [n] class of the object
    iou: NDArray[np.floating[Any]]  # [n] with the object
    scores: dict[str, NDArray[np.floating[Any]]]  # each [n], for the object's class


def match_candidates(
    boxes: Tensor,
    scores: Tensor | Mapping[str, Tensor],
    targets: Targets,
    iou_floor: float = 0.5,
    positions: Tensor | None = None,
    chunk_elements: int = 1 << 24,
    top: tuple[int, float] | None = None,
) -> CandidateBatch:
    """The predictions `[B, A, 4]` (pixels of `targets`) that overlap their best object by at least `iou_floor`.

    With `top = (k, floor)` also those that are among the `k` best of their object by any of the scores, of all whose
    IoU exceeds `floor`.

    Among objects of equal IoU the lowest index wins; padded and degenerate objects take no part. `scores` is one tensor
    (named `raw`) or several by name, each `[B, A, C]`, or `[B, A]` for a score that knows no class. `positions [B]`
    number the images (default 0..B-1). Runs on the device of `boxes`; only the result is copied to the host.
    """
    named = {"raw": scores} if isinstance(scores, Tensor) else scores
    low = iou_floor if top is None else min(iou_floor, top[1])
    image, prior, index, value = _best_objects(boxes, targets, low, chunk_elements)
    label = targets.labels.to(boxes.device)[image, index]
    found = pick(named, image, prior, label)
    if top is not None:  # the crowd of weak overlaps stays on the device
        keep, near = value >= iou_floor, torch.nonzero(value > top[1]).squeeze(1)
        group = image[near] * OBJECTS_PER_IMAGE + index[near]
        for score in found.values():
            keep[near[top_per_group(group, score[near], top[0])]] = True
        image, prior, index, label, value = (t[keep] for t in (image, prior, index, label, value))
        found = {name: score[keep] for name, score in found.items()}
    rows = torch.arange(len(boxes)) if positions is None else positions
    position = rows.to(boxes.device)[image]
    return CandidateBatch(
        image=position.cpu().numpy(),
        object=(position * OBJECTS_PER_IMAGE + index).cpu().numpy(),
        prior=prior.cpu().numpy(),
        label=label.cpu().numpy(),
        iou=value.cpu().numpy(),
        scores={name: score.cpu().numpy() for name, score in found.items()},
    )


def pick(scores: Mapping[str, Tensor], image: Tensor, prior: Tensor, label: Tensor) -> dict[str, Tensor]:
    """The scores of each box for its class, `[n]`, at least float32, on their own device.

    A score is `[B, A, C]`, or `[B, A]` for one that knows no class. Of `Scores` nothing else is computed.
    """
    if isinstance(scores, Scores):
        found = scores.at(*(i.to(scores.device) for i in (image, prior, label)))
    else:
        found = {name: _picked(score, image, prior, label) for name, score in scores.items()}
    return {name: score.detach().to(_precise(score.dtype)) for name, score in found.items()}


def _picked(score: Tensor, *index: Tensor) -> Tensor:
    return score[tuple(i.to(score.device) for i in index[: score.dim()])]


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)  # numpy has no bfloat16, and half ranks would tie


class _Overlaps(NamedTuple):
    """`n` predictions and the best object of each, sorted by image and prior."""

    image: Tensor  # [n] row in the batch
    prior: Tensor  # [n]
    object: Tensor  # [n] index in the padded targets
    iou: Tensor  # [n]


def _best_objects(boxes: Tensor, targets: Targets, floor: float, chunk_elements: int) -> _Overlaps:
    """The predictions `[B, A, 4]` that overlap an object by at least `floor`, each with its best object.

    Predictions of neighbouring priors lie near each other. So an object is compared only with those blocks of `BLOCK`
    predictions whose hull covers enough of it. At most `chunk_elements` IoUs are held at once (or those of one block).
    """
    boxes = boxes.detach().to(_precise(boxes.dtype))
    columns = pad(boxes.movedim(2, 0), (0, -boxes.shape[1] % BLOCK)).contiguous()  # [4, B, A]
    objects = targets.boxes.to(boxes)
    usable = targets.valid.to(boxes.device) & ~is_degenerate(objects)
    floor = max(floor, torch.finfo(boxes.dtype).tiny)  # a box without any overlap has no best object
    reached = (
        _may_reach(columns.view(*columns.shape[:2], columns.shape[2] // BLOCK, BLOCK), objects, floor)
        & usable.T[..., None]
    )
    object_, image, block = torch.nonzero(reached, as_tuple=True)
    blocks = columns.view(4, -1, BLOCK)
    taken, row = torch.unique(image * reached.shape[2] + block, return_inverse=True)
    best_iou = boxes.new_zeros(len(taken) * BLOCK)
    best = torch.zeros_like(best_iou, dtype=torch.int64)
    for chosen in torch.split(torch.arange(len(row), device=boxes.device), max(1, chunk_elements // BLOCK)):
        mine, g = row[chosen], object_[chosen]
        near = blocks.index_select(1, taken[mine]).movedim(0, 2)
        overlap = iou(objects[image[chosen], g][:, None], near)
        pair, lane = torch.nonzero(overlap >= floor, as_tuple=True)
        value, index, place = overlap[pair, lane], g[pair], mine[pair] * BLOCK + lane
        before = best_iou[place]  # of lower objects, which keep what they tie for
        best_iou.scatter_reduce_(0, place, value, "amax")
        better = (value > before) & (value == best_iou[place])
        best.scatter_reduce_(0, place[better], index[better], "amin", include_self=False)
    found = torch.nonzero(best_iou).squeeze(1)
    place, length = taken[found // BLOCK] * BLOCK + found % BLOCK, columns.shape[2]
    return _Overlaps(place // length, place % length, best[found], best_iou[found])


def _may_reach(blocks: Tensor, objects: Tensor, floor: float) -> Tensor:
    """Whether a box in a block `[4, B, N, BLOCK]` can have an IoU of `floor` with an object `[B, G, 4]`: `[G, B, N]`.

    What a box shares with an object lies in the hull of its block, and has to be `floor` of the object's own area, or
    the IoU is less (by more than rounding, so the last bits are left out of account). True where the hull is NaN.
    """
    (x1, y1), (x2, y2) = blocks[:2].amin(dim=3), blocks[2:].amax(dim=3)  # [B, N]
    left, top, right, bottom = objects.permute(2, 1, 0)[..., None]  # [G, B, 1]
    width = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp(min=0)
    height = (torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp(min=0)
    shared = width * height
    too_little: Tensor = (shared < 0.999 * floor * (right - left) * (bottom - top)) | (shared == 0)
    return ~too_little


def top_per_group(group: Tensor, score: Tensor, k: int) -> Tensor:
    """Indices of the `k` best scored elements of each group, `[n] -> [m]`; among equal scores the earlier ones."""
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    ordered = group[order]
    rank = torch.arange(len(group), device=group.device) - torch.searchsorted(ordered, ordered)  # place in its group
    return order[rank < k]
