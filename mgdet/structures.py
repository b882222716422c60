"""The values that flow from images on disk to losses and metrics.

Everything is batched and padded, so that no stage loops over images: `B` images, `G` objects of the fullest image,
`A` priors (anchors or points) over all pyramid levels, `C` classes, `D` detections kept per image.
Boxes are `(x1, y1, x2, y2)` in pixels of the padded network input unless said otherwise.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

NEGATIVE = -1
"""`Labels.gt_index` of a background sample."""
IGNORED = -2
"""`Labels.gt_index` of a sample that takes no part in the task's loss."""

T = TypeVar("T")


class Targets(NamedTuple):
    """The objects of a batch, padded to the fullest image. `G` may be 0."""

    boxes: Tensor  # [B, G, 4] float32
    labels: Tensor  # [B, G] int64, contiguous classes from 0
    valid: Tensor  # [B, G] bool, False for padding


class Batch(NamedTuple):
    """What the loader hands to the network."""

    images: Tensor  # [B, 3, H, W] uint8 RGB, zero-padded at the right and bottom
    sizes: Tensor  # [B, 2] int64 (height, width) of the unpadded network input
    original_sizes: Tensor  # [B, 2] int64 (height, width) of the image file
    targets: Targets
    image_ids: Tensor  # [B] int64, the data set's own image ids
    positions: Tensor  # [B] int64, row of the image in its split, 0..N-1

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device (asynchronously where the memory is pinned)."""
        return _map_tensors(self, lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; called by the DataLoader."""
        return _map_tensors(self, lambda t: t.pin_memory())


class PriorLayout(NamedTuple):
    """What kind of priors a detector has."""

    points: bool  # True: locations without a size (FCOS); False: anchor boxes (RetinaNet)
    per_location: int  # priors at each place of a feature map

    def __str__(self) -> str:
        kind = "point" if self.points else "anchor"
        return f"{self.per_location} {kind}{'s' * (self.per_location > 1)} per location"


class Priors(NamedTuple):
    """Where the network predicts: the same for every image of a batch.

    On each level the priors of one location stand together, locations row by row.
    """

    boxes: Tensor  # [A, 4] float32, anchor boxes (for points: a square of one stride around the point)
    strides: Tensor  # [A] float32, pixels between neighbouring locations of the prior's level
    level_counts: tuple[int, ...]  # priors on each level, finest first; sums to A
    layout: PriorLayout = PriorLayout(points=False, per_location=1)


class Predictions(NamedTuple):
    """What the network says, over all levels."""

    logits: Tensor  # [B, A, C] class logits
    deltas: Tensor  # [B, A, 4] raw box regression, in the coder's units
    boxes: Tensor  # [B, A, 4] decoded boxes, pixels
    quality: Tensor | None = None  # [B, A] logits of the predicted localization quality

    def detach(self) -> "Predictions":
        """The same values cut from the graph and in float32: what assigners see."""
        return _map_tensors(self, lambda t: t.detach().float())


class Labels(NamedTuple):
    """The training labels of one task."""

    gt_index: Tensor  # [B, A] int64: >= 0 positive for that object, NEGATIVE, or IGNORED
    weight: Tensor  # [B, A] float32: weight (or soft target) of a positive; 1 for hard labels


class Assignment(NamedTuple):
    """The labels of both tasks. A static assigner gives the same object twice."""

    cls: Labels
    loc: Labels


class Detections(NamedTuple):
    """Final detections, padded to `D`, best score first, in pixels of the ORIGINAL image file."""

    boxes: Tensor  # [B, D, 4] float32
    scores: Tensor  # [B, D] float32 in [0, 1]
    labels: Tensor  # [B, D] int64, contiguous classes from 0
    valid: Tensor  # [B, D] bool


@dataclass(frozen=True)
class Category:
    """A class of the data set: `id` is the source's own category id, its position in the list the contiguous label."""

    id: int
    name: str


def _map_tensors(value: T, f) -> T:  # type: ignore[no-untyped-def]  # f: Tensor -> Tensor, over any nested NamedTuple
    if isinstance(value, Tensor):
        return f(value)  # type: ignore[no-any-return]  # the Tensor case of T
    if isinstance(value, tuple):
        return type(value)(*(_map_tensors(v, f) for v in value))
    return value


def pad_targets(boxes: list[Tensor], labels: list[Tensor]) -> Targets:
    """Per-image `[n_i, 4]` boxes and `[n_i]` labels, padded to one `Targets` with `G = max(n_i)` (0 for no objects)."""
    g = max((len(b) for b in boxes), default=0)
    out = Targets(
        boxes=torch.zeros(len(boxes), g, 4),
        labels=torch.zeros(len(boxes), g, dtype=torch.int64),
        valid=torch.zeros(len(boxes), g, dtype=torch.bool),
    )
    for i, (b, lab) in enumerate(zip(boxes, labels, strict=True)):
        out.boxes[i, : len(b)] = b
        out.labels[i, : len(b)] = lab
        out.valid[i, : len(b)] = True
    return out
