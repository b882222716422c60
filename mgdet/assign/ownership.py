"""Which object owns which prior under a quality criterion: the step that every IoU-style assigner shares.

A criterion is a `[G, A]` matrix of qualities for each image. Holding it for a whole batch would take tens of gigabytes
(16 images x 100 objects x 200k anchors x 4 bytes = 1.3 GB for one matrix, and an assigner needs several), yet after
"an anchor is a candidate only of its best object" a single `[B, A]` row is left. So the matrix is made in chunks of
objects and folded into that row at once: memory is bounded by `chunk_elements`, the result does not depend on it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mgdet.assign.geometry import footprints
from mgdet.boxes import is_degenerate, pairwise_diou
from mgdet.structures import Priors, Targets

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Quality `[B, g, A]` of some objects, given their boxes `[B, g, 4]` and labels `[B, g]`; 0 means "no overlap"."""

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
    rank: Tensor  # [B, A] int64, place of the prior among its owner's, 0 = best; ties by prior index

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
    force: bool = True,
    adopt: bool = True,
    enough: float = 0.0,
) -> Ownership:
    """Mutual Guidance's matching (docs/papers/assignment.md, "Ownership") for one criterion.

    1. With `force` each object's best prior gets quality 1.
    2. Each prior belongs to the object with the largest quality in its column (ties: first object), or to none.
    3. With `adopt` an object left without a prior of at least `enough` quality, for instance because its best one was
       also another's best, takes the best prior that is not another object's best. The official code leaves such an
       object without a positive.

    Best is the largest quality; of priors without any, the one with the largest DIoU (Zheng et al., AAAI 2020).
    """
    batch, num_priors = targets.boxes.shape[0], priors.boxes.shape[0]
    usable = usable_objects(targets)
    device = priors.boxes.device
    owner = torch.full((batch, num_priors), -1, dtype=torch.int64, device=device)
    quality = torch.zeros(batch, num_priors, device=device)
    raw = torch.zeros(batch, num_priors, device=device)

    num_objects = targets.boxes.shape[1]
    chunk = max(1, chunk_elements // max(1, batch * num_priors))
    for start in range(0, num_objects, chunk):
        part = slice(start, min(start + chunk, num_objects))
        chunk_raw = criterion(targets.boxes[:, part], targets.labels[:, part])
        boosted = chunk_raw
        if force:
            key = _preference(chunk_raw, targets.boxes[:, part], priors)
            boosted = chunk_raw.scatter(2, key.argmax(dim=2, keepdim=True), 1.0)
        boosted = torch.where(usable[:, part, None], boosted, 0.0)
        best, index = boosted.max(dim=1)
        better = best > quality  # strict: the earlier object keeps a tie
        owner = torch.where(better, index + start, owner)
        raw = torch.where(better, chunk_raw.gather(1, index[:, None]).squeeze(1), raw)
        quality = torch.where(better, best, quality)

    if adopt and num_objects:
        orphan = usable & (_scatter_count(owner, (owner >= 0) & (quality >= enough), num_objects) == 0)
        owner, quality, raw = _adopt(criterion, priors, targets, orphan, (owner, quality, raw), chunk)
    return Ownership(owner, quality, raw, _rank_within_owner(owner, quality, num_objects))


def _preference(quality: Tensor, boxes: Tensor, priors: Priors) -> Tensor:
    """The key `[B, g, A]` by which an object chooses a prior: the quality, and below all of it the DIoU."""
    return torch.where(quality > 0, quality, pairwise_diou(boxes, footprints(priors)) - 1)


def _adopt(
    criterion: Criterion,
    priors: Priors,
    targets: Targets,
    orphan: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give every orphan `[B, G]`, in order, a prior that no other object depends on (see `find_owners`, step 3)."""
    owner, quality, raw = state
    if owner.device.type == "cpu" and not bool(orphan.any()):  # free here; on an accelerator it would wait for it
        return owner, quality, raw

    num_objects = targets.boxes.shape[1]
    provided = (owner >= 0) & ~orphan.gather(1, owner.clamp(min=0))
    kept = provided & (_rank_within_owner(owner, quality, num_objects) == 0)
    order = torch.argsort(~orphan, dim=1, stable=True)[:, :MAX_ORPHANS]  # orphans first, in index order
    for start in range(0, order.shape[1], chunk):
        part = order[:, start : start + chunk]
        waiting = orphan.gather(1, part)
        boxes = targets.boxes.gather(1, part[..., None].expand(-1, -1, 4))
        part_raw = criterion(boxes, targets.labels.gather(1, part))
        key = _preference(part_raw, boxes, priors)
        for slot in range(part.shape[1]):
            free_key = key[:, slot].masked_fill(kept, -torch.inf)
            choice = free_key.argmax(dim=1, keepdim=True)
            adopts = waiting[:, slot, None] & (free_key.gather(1, choice) > -torch.inf)
            taken = torch.zeros_like(kept).scatter(1, choice, adopts)
            owner = torch.where(taken, part[:, slot, None], owner)
            quality = torch.where(taken, 1.0, quality)
            raw = torch.where(taken, part_raw[:, slot], raw)
            kept = kept | taken
    return owner, quality, raw


def _rank_within_owner(owner: Tensor, quality: Tensor, num_objects: int) -> Tensor:
    """Place of each prior among the priors of its owner, best quality first, `[B, A]`."""
    by_quality = torch.argsort(quality, dim=1, descending=True, stable=True)
    by_owner = torch.argsort(owner.gather(1, by_quality), dim=1, stable=True)
    order = by_quality.gather(1, by_owner)  # grouped by owner, best first in each group
    group = owner.gather(1, order) + 1  # 0: without an owner
    sizes = torch.zeros(owner.shape[0], num_objects + 1, dtype=torch.int64, device=owner.device)
    sizes = sizes.scatter_add(1, group, torch.ones_like(group))
    first = (sizes.cumsum(dim=1) - sizes).gather(1, group)
    position = torch.arange(owner.shape[1], device=owner.device).expand_as(owner)
    return torch.empty_like(owner).scatter(1, order, position - first)


def _scatter_count(owner: Tensor, selected: Tensor, num_objects: int) -> Tensor:
    counts = torch.zeros(owner.shape[0], num_objects, dtype=torch.int64, device=owner.device)
    if num_objects == 0:
        return counts
    return counts.scatter_add(1, owner.clamp(min=0), selected.long())
