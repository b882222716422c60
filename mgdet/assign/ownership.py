"""Which object owns which prior under a quality criterion: the step that every IoU-style assigner shares.

A criterion is a `[G, A]` matrix of qualities for each image. Holding it for a whole batch would take tens of gigabytes
(16 images x 100 objects x 200k anchors x 4 bytes = 1.3 GB for one matrix, and an assigner needs several), yet after
"an anchor is a candidate only of its best object" a single `[B, A]` row is left. So the matrix is made in chunks of
objects and folded into that row at once: memory is bounded by `chunk_elements`, the result does not depend on it.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mgdet.assign.geometry import first_best, footprints, known_empty, nearness
from mgdet.boxes import diou, is_degenerate
from mgdet.structures import Priors, Targets

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Quality `[B, g, A]` of some objects, given their boxes `[B, g, 4]` and labels `[B, g]`; 0 means "no overlap"."""

Force = Literal["none", "best", "ties"]
"""What is positive whatever its quality: nothing, each object's best prior, or all that are equally good."""

MAX_ORPHANS = 32
"""Objects of one image that may be helped to a prior of their own; fixed ahead, to need no host sync."""


class Counts(NamedTuple):
    """How many priors each object gets in a task, `[B, G]` int64."""

    positive: Tensor
    not_negative: Tensor  # positive or ignored


class Ownership(NamedTuple):
    """The candidates of every object under one criterion."""

    owner: Tensor  # [B, A] int64, object that the prior belongs to, -1 for none
    quality: Tensor  # [B, A] float32, criterion of (owner, prior); 1 where the prior was given to its object by force
    raw: Tensor  # [B, A] float32, the same without the force
    rank: Tensor  # [B, A] int64, place of the prior among its owner's, 0 = best; ties by DIoU, then by prior index

    def count_owned(self, selected: Tensor, num_objects: int) -> Tensor:
        """Number of `selected` `[B, A]` priors that each object owns, `[B, G]`."""
        return _scatter_count(self.owner, selected & (self.owner >= 0), num_objects)

    def dynamic_counts(self, top_k: int, num_objects: int) -> Counts:
        """max(1, floor(sum of the `top_k` largest raw qualities of the object)), none ignored (Ge et al., OTA, CVPR
        2021, section 3.3, on the priors that the object owns)."""
        counted = torch.where((self.owner >= 0) & (self.rank < top_k), self.raw, 0.0)
        total = torch.zeros(self.owner.shape[0], num_objects, dtype=torch.int64, device=counted.device)
        if num_objects:
            total = total.scatter_add(1, self.owner.clamp(min=0), to_fixed(counted))
        count = floor_fixed(total).clamp(min=1)
        return Counts(count, count)

    def of_owner(self, per_object: Tensor) -> Tensor:
        """Value `[B, G]` of each prior's owner, `[B, A]`; 0 where it has none."""
        if per_object.shape[1] == 0:
            return torch.zeros_like(self.owner, dtype=per_object.dtype)
        return torch.where(self.owner >= 0, per_object.gather(1, self.owner.clamp(min=0)), 0)


def to_fixed(values: Tensor) -> Tensor:
    """Values in [0, 1] in units of 2^-30: integers add up to the same sum in any order, floats on a GPU do not."""
    return (values * 2.0**30).long()


def floor_fixed(total: Tensor) -> Tensor:
    """Whole part of a sum of `to_fixed` values."""
    return total >> 30


def usable_objects(targets: Targets) -> Tensor:
    """Objects that can own priors, `[B, G]` bool: not padding and not degenerate."""
    return targets.valid & ~is_degenerate(targets.boxes)


def find_owners(
    criterion: Criterion,
    priors: Priors,
    targets: Targets,
    *,
    chunk_elements: int,
    force: Force = "none",
    adopt: bool = True,
    enough: float = 0.0,
) -> Ownership:
    """Who owns each prior (docs/papers/assignment.md, "Ownership") under one criterion.

    1. With `force: best` each object's best prior gets quality 1 for it.
    2. Each prior belongs to the object with the largest quality in its column, or to none where all are 0.
    3. With `force: ties` every prior that is some object's best, equally good ones included, gets quality 1 for its
       owner, whichever object that is.
    4. With `adopt` an object left without a prior of at least `enough` quality, for instance because its best one was
       also another's best, takes the best prior that no other object depends on.

    Best is the largest criterion; of equal ones the largest DIoU of object and footprint (Zheng et al., AAAI 2020), of
    those the lowest index. So an object without any overlap prefers what lies nearest in relation to the sizes.
    """
    batch, num_priors = targets.boxes.shape[0], priors.boxes.shape[0]
    usable = usable_objects(targets)
    places = footprints(priors)
    forced = torch.zeros(batch, num_priors, dtype=torch.bool, device=priors.boxes.device)
    claims = _Claims.none(batch, num_priors, priors.boxes.device)

    num_objects = targets.boxes.shape[1]
    for part in _chunks(priors, targets, chunk_elements):
        boxes = targets.boxes[:, part]
        able = usable[:, part, None]
        near = cache(partial(nearness, boxes, priors))
        quality = raw = torch.where(able, criterion(boxes, targets.labels[:, part]), 0.0)
        if force == "best":
            quality = raw.scatter(2, first_best([raw], near, dim=2), able.to(raw.dtype))
        elif force == "ties":
            forced |= ((raw > 0) & (raw == raw.amax(dim=2, keepdim=True))).any(dim=1)
        keys = [raw] if force != "best" else [quality, raw]
        index = first_best(keys, near, dim=1, above=0)
        here = boxes.gather(1, index.squeeze(1)[..., None].expand(-1, -1, 4))
        best, best_raw = (key.gather(1, index).squeeze(1) for key in (quality, raw))
        claims = claims.or_better(_Claims(index.squeeze(1) + part.start, best, best_raw, diou(here, places)))

    claims = claims._replace(quality=torch.where(forced & (claims.owner >= 0), 1.0, claims.quality))
    if adopt and num_objects:
        enough_of_it = (claims.owner >= 0) & (claims.quality >= enough)
        orphan = usable & (_scatter_count(claims.owner, enough_of_it, num_objects) == 0)
        claims = _adopt(criterion, priors, targets, orphan, claims, chunk_elements)
    return Ownership(claims.owner, claims.quality, claims.raw, claims.rank(num_objects))


def count_claims(criterion: Criterion, priors: Priors, targets: Targets, *, chunk_elements: int) -> Tensor:
    """To how many usable objects each prior is worth more than 0, `[B, A]` int64."""
    usable = usable_objects(targets)
    count = torch.zeros(len(targets.boxes), len(priors.boxes), dtype=torch.int64, device=priors.boxes.device)
    for part in _chunks(priors, targets, chunk_elements):
        worth = criterion(targets.boxes[:, part], targets.labels[:, part]) > 0
        count += (worth & usable[:, part, None]).sum(dim=1)
    return count


def _chunk_size(priors: Priors, targets: Targets, chunk_elements: int) -> int:
    """How many objects of all images make a matrix of at most `chunk_elements`, at least 1."""
    return max(1, chunk_elements // max(1, len(targets.boxes) * len(priors.boxes)))


def _chunks(priors: Priors, targets: Targets, chunk_elements: int) -> Iterator[slice]:
    """The objects, a chunk at a time."""
    size, total = _chunk_size(priors, targets, chunk_elements), targets.boxes.shape[1]
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


class _Claims(NamedTuple):
    """The best claim to each prior so far, `[B, A]` each."""

    owner: Tensor
    quality: Tensor
    raw: Tensor
    near: Tensor  # DIoU of the owner with the prior's footprint

    @classmethod
    def none(cls, batch: int, num_priors: int, device: torch.device) -> "_Claims":
        """Nobody owns anything."""
        zeros = torch.zeros(batch, num_priors, device=device)
        return cls(torch.full((batch, num_priors), -1, dtype=torch.int64, device=device), zeros, zeros, zeros)

    def or_better(self, later: "_Claims") -> "_Claims":
        """The larger claim to each prior; of equal ones that of the earlier objects, these."""
        better = later.near > self.near
        for new, old in ((later.raw, self.raw), (later.quality, self.quality)):
            better = (new > old) | ((new == old) & better)
        better &= later.quality > 0
        return _Claims(*(torch.where(better, new, old) for new, old in zip(later, self, strict=True)))

    def rank(self, num_objects: int) -> Tensor:
        """Place of each prior among the priors of its owner, best first, `[B, A]`.

        What an object was given by force or by adoption is the best that it has, so it comes first by the criterion.
        """
        order = torch.argsort(self.near, dim=1, descending=True, stable=True)
        order = order.gather(1, torch.argsort(self.raw.gather(1, order), dim=1, descending=True, stable=True))
        order = order.gather(1, torch.argsort(self.owner.gather(1, order), dim=1, stable=True))
        group = self.owner.gather(1, order) + 1  # 0: without an owner
        sizes = torch.zeros(self.owner.shape[0], num_objects + 1, dtype=torch.int64, device=self.owner.device)
        sizes = sizes.scatter_add(1, group, torch.ones_like(group))
        first = (sizes.cumsum(dim=1) - sizes).gather(1, group)
        position = torch.arange(self.owner.shape[1], device=self.owner.device).expand_as(self.owner)
        return torch.empty_like(self.owner).scatter(1, order, position - first)


def _adopt(
    criterion: Criterion, priors: Priors, targets: Targets, orphan: Tensor, claims: _Claims, chunk_elements: int
) -> _Claims:
    """Give every orphan `[B, G]`, in order, a prior that no other object depends on (see `find_owners`, step 4)."""
    if known_empty(orphan):
        return claims

    provided = (claims.owner >= 0) & ~orphan.gather(1, claims.owner.clamp(min=0))
    kept = provided & (claims.rank(targets.boxes.shape[1]) == 0)
    order = torch.argsort(~orphan, dim=1, stable=True)[:, :MAX_ORPHANS]  # orphans first, in index order
    for part in torch.split(order, _chunk_size(priors, targets, chunk_elements), dim=1):
        waiting = orphan.gather(1, part)
        if known_empty(waiting):
            break  # orphans come first
        boxes = targets.boxes.gather(1, part[..., None].expand(-1, -1, 4))
        raw, near = criterion(boxes, targets.labels.gather(1, part)), nearness(boxes, priors)
        for slot in range(part.shape[1]):
            if known_empty(waiting[:, slot]):
                break
            free = raw[:, slot].masked_fill(kept, -torch.inf)
            choice = first_best([free], partial(near.select, 1, slot), dim=1)
            adopts = waiting[:, slot, None] & (free.gather(1, choice) > -torch.inf)
            taken = torch.zeros_like(kept).scatter(1, choice, adopts)
            new = (part[:, slot, None], claims.quality.new_ones(()), raw[:, slot], near[:, slot])
            claims = _Claims(*(torch.where(taken, here, before) for here, before in zip(new, claims, strict=True)))
            kept = kept | taken
    return claims


def _scatter_count(owner: Tensor, selected: Tensor, num_objects: int) -> Tensor:
    counts = torch.zeros(owner.shape[0], num_objects, dtype=torch.int64, device=owner.device)
    if num_objects == 0:
        return counts
    return counts.scatter_add(1, owner.clamp(min=0), selected.long())
