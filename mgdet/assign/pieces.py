"""What a criterion is, and its matrix of qualities in pieces.

A criterion is a `[G, A]` matrix for each image. Holding it for a whole batch would take tens of gigabytes (16 images x
100 objects x 200k anchors x 4 bytes = 1.3 GB for one matrix, and an assigner needs several), and nearly all of it is 0.
On a CPU a piece is one object with the priors within its reach. Elsewhere the host would have to wait to learn how many
these are, so a piece is a chunk of objects with all priors of all images.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mgdet.assign.geometry import first_best, footprint_places
from mgdet.assign.places import ALL, At, Places, among, indices, known_empty, one_at_a_time, put, take
from mgdet.boxes import is_degenerate, pairwise_diou
from mgdet.structures import Priors, Targets

Quality = Callable[[Tensor, Tensor, At], Tensor]
"""`[B, g, n]`, at least 0, of objects, given their boxes `[B, g, 4]` and labels `[B, g]`, and of `n` of the priors."""
Reach = Callable[[Tensor], At]
"""The priors that can be worth more than 0 to an object of the only image, given its box `[4]`."""


class Criterion(NamedTuple):
    """How well priors suit objects; 0 means "not at all"."""

    quality: Quality  # is asked for all priors, or for one object and all the priors within its reach
    reach: Reach | None = None  # None: all priors


class Piece(NamedTuple):
    """The qualities of some objects. Priors that it leaves out are worth 0 to them."""

    objects: slice
    boxes: Tensor  # [B, g, 4]
    at: At  # the n priors
    raw: Tensor  # [B, g, n], 0 for objects that are not usable
    places: Places  # of the footprints of all priors

    def near(self, tied: At) -> Tensor:
        """DIoU of the objects and the footprints of some of the priors `[B, g, ...]`: it decides where they tie."""
        return pairwise_diou(self.boxes, self.places.at(among(self.at, tied)))

    def of(self, slot: int) -> "Piece":
        """The part of one of the objects."""
        here, start = slice(slot, slot + 1), self.objects.start + slot
        return self._replace(objects=slice(start, start + 1), boxes=self.boxes[:, here], raw=self.raw[:, here])

    def without(self, priors: Tensor) -> "Piece":
        """The same in which some priors `[B, A]` are worth less than nothing."""
        return self._replace(raw=self.raw.masked_fill(take(priors, self.at).unsqueeze(1), -torch.inf))

    def with_all(self) -> "Piece":
        """The same for all priors."""
        raw = self.raw.new_zeros(*self.raw.shape[:2], len(self.places.boxes))
        put(raw, self.at, self.raw)
        return self._replace(at=ALL, raw=raw)

    def best(self) -> tuple[Tensor, Tensor]:
        """Each object's best prior and its quality, `[B, g]`; of equal ones the nearest, then the first."""
        choice = first_best(self.raw, self.near)
        place = choice.squeeze(2)
        prior = place if isinstance(self.at, slice) else self.at[place]
        return prior, self.raw.gather(2, choice).squeeze(2)

    def lacks_best(self) -> bool:
        """Nothing is worth anything to the object: then the nearest of all priors is its best."""
        return not isinstance(self.at, slice) and known_empty(self.raw > 0)


def usable_objects(targets: Targets) -> Tensor:
    """Objects that can own priors, `[B, G]` bool: not padding and not degenerate."""
    return targets.valid & ~is_degenerate(targets.boxes)


def pieces(
    criterion: Criterion, priors: Priors, targets: Targets, usable: Tensor, chunk_elements: int
) -> Iterator[Piece]:
    """The qualities of the usable objects, in order of their index."""
    places = footprint_places(priors)
    if one_at_a_time(targets.boxes, len(priors.boxes)):
        for g in indices(usable).tolist():
            boxes, labels = targets.boxes[:, g : g + 1], targets.labels[:, g : g + 1]
            at: At = criterion.reach(boxes[0, 0]) if criterion.reach else ALL
            nothing = isinstance(at, Tensor) and not len(at)
            raw = boxes.new_zeros(1, 1, 0) if nothing else criterion.quality(boxes, labels, at)
            yield Piece(slice(g, g + 1), boxes, at, raw, places)
    else:
        size, total = max(1, chunk_elements // max(1, len(targets.boxes) * len(priors.boxes))), targets.boxes.shape[1]
        for start in range(0, total, size):
            part = slice(start, min(start + size, total))
            boxes, labels = targets.boxes[:, part], targets.labels[:, part]
            raw = torch.where(usable[:, part, None], criterion.quality(boxes, labels, ALL), 0.0)
            yield Piece(part, boxes, ALL, raw, places)
