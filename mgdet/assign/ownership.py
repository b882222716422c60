"""Which object owns which prior under a quality criterion: the step that every IoU-style assigner shares.

After "an anchor is a candidate only of its best object" a single `[B, A]` row is left of a criterion's matrix. So each
piece of it (`mgdet.assign.pieces`) is folded into that row at once, and the result does not depend on the pieces.
"""

from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mgdet.assign.geometry import first_best, footprint_places, largest
from mgdet.assign.pieces import Criterion, Piece, pieces, usable_objects
from mgdet.assign.places import ALL, At, among, indices, known_empty, one_at_a_time, put, take
from mgdet.boxes import diou
from mgdet.structures import Priors, Targets

Force = Literal["none", "best", "ties"]
"""What is positive whatever its quality: nothing, each object's best prior, or all that are equally good."""

MAX_ORPHANS = 32
"""Objects of one image that may be helped to a prior of their own; fixed ahead, to need no host sync."""


class Counts(NamedTuple):
    """How many priors each object gets in a task, `[B, G]` int64."""

    positive: Tensor
    not_negative: Tensor  # positive or ignored


class Ownership:
    """The candidates of every object under one criterion."""

    def __init__(self, claims: "_Claims", quality: Tensor):
        self._claims = claims  # not changed any more
        self.owner = claims.owner  # [B, A] int64, object that the prior belongs to, -1 for none
        self.raw = claims.raw  # [B, A] float32, criterion of (owner, prior)
        self.quality = quality  # [B, A] float32, the same; 1 where the prior was given to its object by force

    @cached_property
    def rank(self) -> Tensor:
        """Place of each prior among its owner's, 0 = best; ties by DIoU, then by prior index, `[B, A]` int64."""
        return self._claims.rank()

    def rank_by(self, value: Tensor) -> Tensor:
        """The same by another `value` `[B, A]` of each prior for its owner."""
        return self.rank_in(self.owner, self._claims.num_objects, value)

    def rank_in(self, group: Tensor, groups: int, value: Tensor) -> Tensor:
        """Likewise in other groups than the owners, for instance an owner's priors on one level; see `ranks`."""
        return ranks(group, groups, value, self._claims.near(ALL))

    def best(self, limit: Tensor) -> Tensor:
        """Each object's best priors by rank, as many as `limit` `[B, G]` says or as it owns, `[B, A]` bool."""
        if not one_at_a_time(limit, self.owner.shape[1]):
            return (self.owner >= 0) & (self.rank < self.of_owner(limit))
        chosen = torch.zeros_like(self.owner, dtype=torch.bool)
        for mine, count in zip(self._owned, limit[0].tolist(), strict=True):
            if count and len(mine):
                raw = take(self.raw, mine)
                put(chosen, mine, largest(raw, lambda tied: self._claims.near(among(mine, tied)), count))  # noqa: B023
        return chosen

    @cached_property
    def _owned(self) -> list[Tensor]:
        """The priors of each object of the only image, ascending."""
        owner = self.owner.int()
        return [indices(owner == g) for g in range(self._claims.num_objects)]

    def count_owned(self, selected: Tensor, num_objects: int) -> Tensor:
        """Number of `selected` `[B, A]` priors that each object owns, `[B, G]`."""
        return _scatter_count(self.owner, selected & (self.owner >= 0), num_objects)

    def dynamic_counts(self, top_k: int, num_objects: int) -> Counts:
        """max(1, floor(sum of the `top_k` largest raw qualities of the object)), none ignored (Ge et al., OTA, CVPR
        2021, section 3.3, on the priors that the object owns)."""
        total = torch.zeros(self.owner.shape[0], num_objects, dtype=torch.int64, device=self.owner.device)
        counted = torch.where(self.best(torch.full_like(total, top_k)), self.raw, 0.0)
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
    usable = usable_objects(targets)
    claims = _Claims(priors, targets)
    forced = torch.zeros_like(claims.owner, dtype=torch.bool)
    preferred, worth = torch.zeros_like(targets.labels), torch.zeros_like(targets.boxes[..., 0])
    for piece in pieces(criterion, priors, targets, usable, chunk_elements):
        claims.offer(piece)
        if force == "best":
            whole = piece.with_all() if piece.lacks_best() else piece
            preferred[:, piece.objects], worth[:, piece.objects] = whole.best()
        elif force == "ties" and piece.raw.shape[2]:
            best = (piece.raw > 0) & (piece.raw == piece.raw.amax(dim=2, keepdim=True))
            put(forced, piece.at, take(forced, piece.at) | best.any(dim=1))
    if force == "best":
        forced = claims.give(preferred, worth, usable)
    quality = torch.where(forced & (claims.owner >= 0), 1.0, claims.raw)

    if adopt and usable.shape[1]:
        enough_of_it = (claims.owner >= 0) & (quality >= enough)
        orphan = usable & (_scatter_count(claims.owner, enough_of_it, usable.shape[1]) == 0)
        if not known_empty(orphan):
            adopted = _adopt(criterion, priors, targets, orphan, claims, chunk_elements)
            quality = torch.where(adopted, 1.0, quality)
    return Ownership(claims, quality)


def owned_by(
    owner: Tensor,
    value: Tensor,
    criterion: Criterion,
    priors: Priors,
    targets: Targets,
    *,
    adopt: bool,
    chunk_elements: int,
) -> Ownership:
    """The ownership of a method that has decided by itself who owns each prior, `[B, A]`, -1 for none.

    `value` `[B, A]` ranks what an object owns. With `adopt` an object that owns nothing takes the prior that is best by
    the criterion and that no other object depends on (step 4 of `find_owners`).
    """
    usable = usable_objects(targets)
    claims = _Claims(priors, targets)
    claims.owner, claims.raw = owner.clone(), torch.where(owner >= 0, value, 0.0)
    quality = claims.raw
    if adopt and usable.shape[1]:
        orphan = usable & (_scatter_count(owner, owner >= 0, usable.shape[1]) == 0)
        if not known_empty(orphan):
            adopted = _adopt(criterion, priors, targets, orphan, claims, chunk_elements)
            quality = torch.where(adopted, 1.0, claims.raw)
    return Ownership(claims, quality)


def count_claims(criterion: Criterion, priors: Priors, targets: Targets, *, chunk_elements: int) -> Tensor:
    """To how many usable objects each prior is worth more than 0, `[B, A]` int64."""
    count = torch.zeros(len(targets.boxes), len(priors.boxes), dtype=torch.int64, device=priors.boxes.device)
    for piece in pieces(criterion, priors, targets, usable_objects(targets), chunk_elements):
        put(count, piece.at, take(count, piece.at) + (piece.raw > 0).sum(dim=1))
    return count


class _Claims:
    """The best claim to each prior so far."""

    def __init__(self, priors: Priors, targets: Targets):
        batch, self.num_objects = targets.labels.shape
        self.owner = torch.full((batch, len(priors.boxes)), -1, device=priors.boxes.device)
        self.raw = torch.zeros(self.owner.shape, device=self.owner.device)
        self._objects, self._places = targets.boxes, footprint_places(priors)

    def near(self, at: At, owner: Tensor | None = None) -> Tensor:
        """DIoU `[B, n]` of the footprints of some priors and their owners' boxes, or those of the given owners."""
        owner = take(self.owner, at) if owner is None else owner
        if not self.num_objects:
            return torch.zeros_like(owner, dtype=self.raw.dtype)
        boxes = self._objects.gather(1, owner.clamp(min=0)[..., None].expand(-1, -1, 4))
        return diou(boxes, self._places.at(at))

    def offer(self, piece: Piece) -> None:
        """Each prior goes to an object that is worth more to it; of equal ones the nearer, then the first keeps it."""
        before, owner, at = take(self.raw, piece.at), take(self.owner, piece.at), piece.at
        if piece.raw.shape[1] == 1:
            raw, new = piece.raw.squeeze(1), torch.full_like(owner, piece.objects.start)
        else:
            columns = piece.raw.transpose(1, 2)  # [B, A, g]
            index = first_best(columns, lambda tied: take(piece.near(ALL).transpose(1, 2), tied), above=0)
            raw, new = columns.gather(2, index).squeeze(2), index.squeeze(2) + piece.objects.start
        better, tied = raw > before, (raw == before) & (raw > 0)
        if not known_empty(tied):
            better |= tied & (self.near(at, new) > self.near(at, owner))
        put(self.raw, at, torch.where(better, raw, before))
        put(self.owner, at, torch.where(better, new, owner))

    def give(self, preferred: Tensor, worth: Tensor, usable: Tensor) -> Tensor:
        """Give each usable object the prior that it prefers `[B, G]`, and say which these are `[B, A]`.

        Of several that prefer one prior, it goes to the one to which it is worth most, then the nearest, then the
        first. A prior that has an owner to which it is worth 1 keeps it.
        """
        count, left = self.num_objects, usable
        nobody = torch.full_like(self.raw, -torch.inf)
        for key in (worth, diou(self._objects, self._places.at(ALL)[preferred])):
            key = torch.where(left, key, -torch.inf)
            left = left & (key == nobody.scatter_reduce(1, preferred, key, "amax").gather(1, preferred))
        index = torch.where(left, torch.arange(count, device=left.device), count)
        first = torch.full_like(self.owner, count).scatter_reduce(1, preferred, index, "amin")
        given = first < count
        if count:
            new = given & (self.raw < 1)
            self.raw = torch.where(new, worth.gather(1, first.clamp(max=count - 1)), self.raw)
            self.owner = torch.where(new, first, self.owner)
        return given

    def rank(self) -> Tensor:
        """Place of each prior among the priors of its owner, best first, `[B, A]`.

        What an object was given by force or by adoption is the best that it has, so it comes first by the criterion.
        """
        return ranks(self.owner, self.num_objects, self.raw, self.near(ALL))


def ranks(group: Tensor, groups: int, value: Tensor, near: Tensor) -> Tensor:
    """Place of each prior in its group, 0 = best, `[B, A]` int64: by `value`, then by `near`, then by prior index.

    `group` `[B, A]` is -1 to `groups` - 1; those of -1 are ranked among each other.
    """
    order = torch.argsort(near, dim=1, descending=True, stable=True)
    order = order.gather(1, torch.argsort(value.gather(1, order), dim=1, descending=True, stable=True))
    order = order.gather(1, torch.argsort(group.gather(1, order), dim=1, stable=True))
    place = group.gather(1, order) + 1  # 0: in no group
    sizes = torch.zeros(group.shape[0], groups + 1, dtype=torch.int64, device=group.device)
    sizes = sizes.scatter_add(1, place, torch.ones_like(place))
    first = (sizes.cumsum(dim=1) - sizes).gather(1, place)
    position = torch.arange(group.shape[1], device=group.device).expand_as(group)
    return torch.empty_like(group).scatter(1, order, position - first)


def _adopt(
    criterion: Criterion, priors: Priors, targets: Targets, orphan: Tensor, claims: _Claims, chunk_elements: int
) -> Tensor:
    """Give every orphan `[B, G]`, in order, a prior that no other object depends on (see `find_owners`, step 4).

    Returns which priors were adopted, `[B, A]`.
    """
    provided = (claims.owner >= 0) & ~orphan.gather(1, claims.owner.clamp(min=0))
    kept = provided & Ownership(claims, claims.raw).best(torch.ones_like(targets.labels))
    adopted = torch.zeros_like(kept)
    order = torch.argsort(~orphan, dim=1, stable=True)[:, :MAX_ORPHANS]  # orphans first, in index order
    boxes, labels = targets.boxes.gather(1, order[..., None].expand(-1, -1, 4)), targets.labels.gather(1, order)
    waiting = Targets(boxes, labels, valid=orphan.gather(1, order))
    for piece in pieces(criterion, priors, waiting, waiting.valid, chunk_elements):
        for slot in range(piece.raw.shape[1]):
            one = piece.of(slot).without(kept)
            waits = waiting.valid[:, one.objects]
            if known_empty(waits):
                return adopted  # orphans come first
            if one.lacks_best():
                one = piece.with_all().without(kept)
            choice, raw = one.best()
            adopts = waits & (raw > -torch.inf)
            orphan_here = order[:, one.objects]
            for values, new in ((claims.owner, orphan_here), (claims.raw, raw), (kept, adopts), (adopted, adopts)):
                values.scatter_(1, choice, torch.where(adopts, new, values.gather(1, choice)))
    return adopted


def _scatter_count(owner: Tensor, selected: Tensor, num_objects: int) -> Tensor:
    counts = torch.zeros(owner.shape[0], num_objects, dtype=torch.int64, device=owner.device)
    if num_objects == 0:
        return counts
    return counts.scatter_add(1, owner.clamp(min=0), selected.long())
