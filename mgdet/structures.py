"""The values that flow from images on disk to losses and metrics.

Everything is batched and padded, so that no stage loops over images: `B` images, `G` objects of the fullest image,
`A` priors (anchors or points) over all pyramid levels, `C` classes, `D` detections kept per image.
Boxes are `(x1, y1, x2, y2)` in pixels of the padded network input unless said otherwise.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor

NEGATIVE = -1
"""`Labels.gt_index` of a background sample."""
IGNORED = -2
"""`Labels.gt_index` of a sample that takes no part in the task's loss."""

ScoreFunction = Callable[[Tensor, Tensor | None], dict[str, Tensor]]


class Value:
    """Base of the batched values: frozen dataclasses of tensors whose first dimension is the image.

    `value[i]`, `value[a:b]` and `value[mask]` choose images in every field at once. A value is not iterable: its
    fields and its images would be equally good guesses.
    """

    __iter__: ClassVar[None] = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same value with `change` applied to each of its tensors, those of nested values included."""
        return self.replace(**{name: _changed(value, change) for name, value in self.fields().items()})

    def fields(self) -> dict[str, Any]:
        """Its fields by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(cast(Any, self))}

    def replace(self, **changes: Any) -> Self:
        """The same value with other values of some fields."""
        return dataclasses.replace(cast(Any, self), **changes)  # type: ignore[no-any-return]  # of its own class

    def to(self, device: torch.device | str) -> Self:
        """The same value on another device; the copy is asynchronous where the memory is pinned."""
        return self.map(lambda t: t.to(device, non_blocking=True))

    def cpu(self) -> Self:
        """The same value in the host's memory, complete when this returns."""
        return self.map(lambda t: t.cpu())

    def __getitem__(self, images: Any) -> Self:
        """The images that the index selects, as of a tensor; an integer drops the batch dimension."""
        chosen = {k: v if isinstance(v, Shared) else _selected(v, images) for k, v in self.fields().items()}
        return self.replace(**chosen)


class Shared(Value):
    """Base of values that all images of a batch have in common: choosing images leaves them as they are."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """See `Value`; the very same value where `change` returns each tensor as it is."""
        new = super().map(change)
        return self if all(getattr(new, name) is value for name, value in self.fields().items()) else new


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Value):
        return value.map(change)
    return change(value) if isinstance(value, Tensor) else value


def _selected(value: Any, images: Any) -> Any:
    return value[images] if isinstance(value, Value | Tensor) else value


_NOT_GIVEN = cast(Tensor, None)


@dataclass(frozen=True, eq=False)
class Targets(Value):
    """The objects of a batch, padded to the fullest image. `G` may be 0."""

    boxes: Tensor  # [B, G, 4] float32
    labels: Tensor  # [B, G] int64, contiguous classes from 0
    valid: Tensor  # [B, G] bool, False for padding
    regions: Tensor = _NOT_GIVEN  # [B, R, 4] float32 crowds, padded with zeros; without it R is 0

    def __post_init__(self) -> None:
        if self.regions is None:
            object.__setattr__(self, "regions", self.boxes.new_zeros((*self.boxes.shape[:-2], 0, 4)))


@dataclass(frozen=True, eq=False)
class Batch(Value):
    """What the loader hands to the network."""

    images: Tensor  # [B, 3, H, W] uint8 RGB, zero-padded at the right and bottom
    sizes: Tensor  # [B, 2] int64 (height, width) of the unpadded network input
    original_sizes: Tensor  # [B, 2] int64 (height, width) of the image file
    targets: Targets
    image_ids: Tensor  # [B] int64, the data set's own image ids
    positions: Tensor  # [B] int64, row of the image in its split, 0..N-1; -1: it only fills a place and counts nothing

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; called by the DataLoader."""
        return self.map(lambda t: t.pin_memory())


class PriorLayout(NamedTuple):
    """What kind of priors a detector has."""

    points: bool  # True: locations without a size (FCOS); False: anchor boxes (RetinaNet)
    per_location: int  # priors at each place of a feature map

    def __str__(self) -> str:
        kind = "point" if self.points else "anchor"
        return f"{self.per_location} {kind}{'s' * (self.per_location > 1)} per location"


ONE_ANCHOR = PriorLayout(points=False, per_location=1)


@dataclass(frozen=True, eq=False)
class Priors(Shared):
    """Where the network predicts: the same for every image of a batch.

    On each level the priors of one location stand together, locations row by row. `priors[level]` are those of one
    level of the pyramid, 0 the finest.
    """

    boxes: Tensor  # [A, 4] float32, anchor boxes (for points: a square of one stride around the point)
    strides: Tensor  # [A] float32, pixels between neighbouring locations of the prior's level
    level_counts: tuple[int, ...]  # priors on each level, finest first; sums to A
    layout: PriorLayout = ONE_ANCHOR

    def __getitem__(self, level: int) -> Self:
        """The priors of one level. Raises `IndexError` where there is no such level."""
        count = self.level_counts[level]
        first = sum(self.level_counts[: range(len(self.level_counts))[level]])
        part = slice(first, first + count)
        return self.replace(boxes=self.boxes[part], strides=self.strides[part], level_counts=(count,))

    def take(self, index: Tensor | slice) -> Self:
        """Some of the priors, ascending `[n]`; the host waits for their number on each level."""
        if isinstance(index, slice):
            return self
        ends = torch.tensor(self.level_counts, device=index.device).cumsum(0)
        upto = [0, *torch.searchsorted(index, ends).tolist()]
        counts = tuple(after - before for before, after in itertools.pairwise(upto))
        return self.replace(boxes=self.boxes[index], strides=self.strides[index], level_counts=counts)


@dataclass(frozen=True, eq=False)
class CentrePrior(Shared):
    """Where the samples of each class lie: a learned Gaussian around the centres of its objects, in strides."""

    mean: Tensor  # [C, 2] x and y
    sigma: Tensor  # [C, 2]


@dataclass(frozen=True, eq=False)
class Predictions(Value):
    """What the network says about each prior, over all levels."""

    priors: Priors
    logits: Tensor  # [B, A, C] class logits
    deltas: Tensor  # [B, A, 4] raw box regression, in the coder's units; [B, A, 4 * (n + 1)] where it is distributions
    boxes: Tensor  # [B, A, 4] decoded boxes, pixels
    quality: Tensor | None = None  # [B, A] logits of the predicted localization quality
    centre_prior: CentrePrior | None = None  # of a detector that learns one

    def centre_of(self, labels: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Mean and width `[..., 2]` of the centre prior of classes `[...]`; 0 and `sigma` where none is learned."""
        if self.centre_prior is not None:
            return self.centre_prior.mean[labels], self.centre_prior.sigma[labels]
        mean = self.boxes.new_zeros(*labels.shape, 2)
        return mean, torch.full_like(mean, sigma)

    def detach(self) -> Self:
        """The same values cut from the graph and in float32: what assigners see."""
        return self.map(lambda t: t if t.dtype == torch.float32 and not t.requires_grad else t.detach().float())


class Scores(Mapping[str, Tensor]):
    """Scores of predictions by name, `[B, A, C]` each, computed when they are looked at: all, or some by `at`.

    `compute` makes them from class logits `[B, A, C]` and quality logits `[B, A]`, each from its own logits alone;
    `compute_some` does the same for few.
    """

    def __init__(self, predictions: Predictions, compute: ScoreFunction, compute_some: ScoreFunction) -> None:
        self._predictions, self._compute, self._compute_some = predictions, compute, compute_some
        nothing = predictions.map(lambda t: t[:0])
        self._names = tuple(compute_some(nothing.logits, nothing.quality))

    def __getitem__(self, name: str) -> Tensor:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def device(self) -> torch.device:
        """Where they are computed."""
        return self._predictions.logits.device

    def at(self, image: Tensor, prior: Tensor, label: Tensor) -> dict[str, Tensor]:
        """The scores `[n]` of the boxes `prior` of the images `image` for the classes `label`, each `[n]`."""
        logits, quality = self._predictions.logits, self._predictions.quality
        _, priors, classes = logits.shape
        row = image * priors + prior
        chosen = logits.take(row * classes + label)[None, :, None]
        found = self._compute_some(chosen, None if quality is None else quality.take(row)[None])
        return {name: score[0, :, 0] for name, score in found.items()}

    @cached_property
    def _all(self) -> dict[str, Tensor]:
        return self._compute(self._predictions.logits, self._predictions.quality)


@dataclass(frozen=True, eq=False)
class Labels(Value):
    """The training labels of one task."""

    gt_index: Tensor  # [B, A] int64: >= 0 positive for that object, NEGATIVE, or IGNORED
    weight: Tensor  # [B, A] float32: weight (or soft target) of a positive; 1 for hard labels


@dataclass(frozen=True, eq=False)
class Assignment(Value):
    """The labels of both tasks. A static assigner gives the same object twice."""

    cls: Labels
    loc: Labels


@dataclass(frozen=True, eq=False)
class Detections(Value):
    """Final detections, padded to `D`, best score first, in pixels of the ORIGINAL image file."""

    boxes: Tensor  # [B, D, 4] float32
    scores: Tensor  # [B, D] float32 in [0, 1]
    labels: Tensor  # [B, D] int64, contiguous classes from 0
    valid: Tensor  # [B, D] bool
    priors: Tensor  # [B, D] int64, index of the prediction that each one is


@dataclass(frozen=True)
class Category:
    """A class of the data set: `id` is the source's own category id, its position in the list the contiguous label."""

    id: int
    name: str


def read_categories(text: object) -> tuple[Category, ...]:
    """The classes that a checkpoint names, JSON `[[id, name], ...]` in order of the label.

    Raises `ValueError` where it is anything else.
    """
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except RecursionError:
        found = None
    if not isinstance(found, list) or not all(
        isinstance(pair, list) and [type(part) for part in pair] == [int, str] for pair in found
    ):
        raise ValueError("expected a list of pairs of an id and a name")
    return tuple(Category(id_, name) for id_, name in found)


def unique_names(categories: Sequence[Category]) -> list[str]:
    """Class names; where two classes share one, both carry their id, so that neither hides the other's AP."""
    names = [c.name for c in categories]
    return [c.name if names.count(c.name) == 1 else f"{c.name} ({c.id})" for c in categories]


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
