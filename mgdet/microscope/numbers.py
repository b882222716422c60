"""What the microscope shows, as numbers: of one image and one state of the network, under several assigners.

Shown are the priors that matter: positives and ignored ones of any assigner, and of each object the best by each
criterion. The counts are those of all priors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgdet.assign import Assigner
from mgdet.assign.criteria import class_score
from mgdet.assign.geometry import box_centres, footprints, nearness
from mgdet.assign.ignore import ignore_regions
from mgdet.assign.places import ALL
from mgdet.boxes import pairwise_iou
from mgdet.microscope.criteria import Ranking, rankings
from mgdet.structures import IGNORED, Labels, Predictions, Priors, Targets

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
TASKS = ("cls", "loc")


class Judged(NamedTuple):
    """A criterion at the `N` pairs that are shown."""

    name: str
    value: Floats  # [N]
    rank: Integers  # [N], 1 for the best of all priors of the object; equal values share it; 0 where the value is 0


@dataclass(frozen=True)
class Task:
    """What one task learns under one assigner."""

    owner: Integers  # [P] object that each shown prior is positive for, NEGATIVE or IGNORED
    weight: Floats  # [P] weight or soft target of a positive
    judged: Judged | None
    positives: Integers  # [levels, G], of all priors
    ignored: Integers  # [levels], of all priors

    def without(self) -> list[int]:
        """The objects that no prior is positive for."""
        return [int(g) for g in np.flatnonzero(self.positives.sum(axis=0) == 0)]


@dataclass(frozen=True)
class Learning:
    """What both tasks learn under one assigner."""

    cls: Task
    loc: Task
    both: Integers  # [levels], priors that are positive for both tasks
    warming: str | None  # name of the assigner that a training has in the place of this one while it warms up


@dataclass(frozen=True)
class Shown:
    """One image and one state of the network: `G` objects, `P` priors that are shown, `N` pairs of both.

    A pair is shown if the prior is positive for the object, or near it, under any assigner; an ignored one is paired
    with the object of the largest DIoU.
    """

    priors: Integers  # [P] indices, ascending
    level: Integers  # [P], 0 the finest
    strides: tuple[int, ...]  # of the levels, pixels
    anchors: Floats  # [P, 4] anchor boxes; for points the squares of 8 strides that stand for them
    places: Floats  # [P, 2] where a prior is drawn: its centre, or beside it where a location has several
    boxes: Floats  # [P, 4] predicted boxes
    pair_prior: Integers  # [N] position in `priors`
    pair_object: Integers  # [N]
    score: Floats  # [N] of the object's class
    iou_before: Floats  # [N] of the object with the anchor
    iou_after: Floats  # [N] of the object with the predicted box
    learning: Mapping[str, Learning]  # by assigner


@dataclass(frozen=True)
class Picture:
    """An image as the network sees it, and its `G` objects."""

    id: int
    file_name: str
    pixels: Tensor  # [3, h, w] uint8 RGB, without padding
    boxes: Floats  # [G, 4]
    labels: Integers  # [G]
    crowds: Floats  # [R, 4]


class Moment(NamedTuple):
    """A state of the network."""

    name: str
    step: int
    epoch: int


@dataclass(frozen=True)
class Findings:
    """All that is shown: some images at some moments, under some assigners."""

    about: Mapping[str, str]  # what is shown, in words
    classes: tuple[str, ...]
    points: bool  # the priors are points, not anchors
    assigners: Mapping[str, Assigner]
    pictures: tuple[Picture, ...]
    moments: tuple[Moment, ...]
    shown: Mapping[tuple[int, int], Shown]  # by position in `moments` and in `pictures`


@torch.no_grad()
def examine(
    predictions: Predictions,
    targets: Targets,
    assigners: Mapping[str, Assigner],
    *,
    near: int,
    ignore_overlap: float = 2.0,
    epoch: float = float("inf"),
) -> Shown:
    """The labels that the assigners give to one image, with what led to them.

    Args:
        predictions: of a batch of one image.
        targets: its `G` objects, without padding.
        assigners: by the name under which they are shown. Each is asked for its own labels, also while a training
            would have another one in its place.
        near: priors of each object that are shown by each criterion.
        ignore_overlap: `train.ignore_overlap`.
        epoch: epochs that the network has been trained.

    Raises `ConfigError` where an assigner is not defined for such priors.
    """
    predictions, priors = predictions.detach(), predictions.priors
    boxes, labels = targets.boxes, targets.labels
    found = {name: _assigned(each, predictions, targets, ignore_overlap) for name, each in assigners.items()}
    judging = {}
    for name, each in assigners.items():
        judging[name] = rankings(each.resolved_for(priors.layout), predictions)
    values: dict[int, Tensor] = {}  # both tasks of most assigners have one criterion
    for ranking in (r for both in judging.values() for r in both if r):
        if id(ranking) not in values:
            values[id(ranking)] = ranking.criterion.quality(boxes, labels, ALL)[0]

    pairs = _pairs(priors, targets, [task for tasks in found.values() for task in tasks], list(values.values()), near)
    shown = pairs.any(dim=0)
    for cls, loc in found.values():
        shown |= (cls.gt_index[0] == IGNORED) | (loc.gt_index[0] == IGNORED)
    index = shown.nonzero()[:, 0]
    obj, pair_prior = pairs[:, index].nonzero().unbind(1)
    prior = index[pair_prior]
    judged = {key: _ranks(value, obj, prior) for key, value in values.items()}

    def of_pairs(matrix: Tensor) -> Floats:
        return _floats(matrix[0, obj, prior])

    def task(ranking: Ranking | None, assigned: Labels) -> Task:
        by = Judged(ranking.name, *judged[id(ranking)]) if ranking else None
        return _task(by, assigned, priors, targets, index)

    learning = {}
    for name, (cls, loc) in found.items():
        both = (cls.gt_index[0] >= 0) & (loc.gt_index[0] >= 0)
        now = assigners[name].at(epoch, priors.layout)
        warming = None if now is assigners[name] else now.name  # type: ignore[attr-defined]  # every assigner has one
        by = judging[name]
        learning[name] = Learning(task(by.cls, cls), task(by.loc, loc), _by_level(both, priors), warming)
    levels = torch.arange(len(priors.level_counts)).repeat_interleave(torch.tensor(priors.level_counts))
    return Shown(
        priors=index.cpu().numpy(),
        level=levels[index.cpu()].numpy(),
        strides=tuple(round(float(priors[i].strides[0])) for i in range(len(priors.level_counts))),
        anchors=_floats(footprints(priors)[index]),
        places=_floats(_places(priors)[index]),
        boxes=_floats(predictions.boxes[0, index]),
        pair_prior=pair_prior.cpu().numpy(),
        pair_object=obj.cpu().numpy(),
        score=of_pairs(class_score(predictions).quality(boxes, labels, ALL)),
        iou_before=of_pairs(pairwise_iou(boxes, footprints(priors))),
        iou_after=of_pairs(pairwise_iou(boxes, predictions.boxes)),
        learning=learning,
    )


def _assigned(assigner: Assigner, predictions: Predictions, targets: Targets, overlap: float) -> tuple[Labels, Labels]:
    """The labels of both tasks, as a training takes them."""
    assignment = assigner(predictions, targets)
    assignment = ignore_regions(assignment, predictions.priors, targets.regions, overlap)
    return assignment.cls, assignment.loc


def _pairs(priors: Priors, targets: Targets, labels: list[Labels], values: list[Tensor], near: int) -> Tensor:
    """Which pairs `[G, A]` are shown."""
    objects, count = targets.boxes.shape[1], len(priors.boxes)
    pairs = torch.zeros(objects, count, dtype=torch.bool, device=priors.boxes.device)
    if not objects:
        return pairs
    for value in values:
        best = value.topk(min(near, count), dim=1)
        pairs.scatter_(1, best.indices, pairs.gather(1, best.indices) | (best.values > 0))
    nearest = nearness(targets.boxes, priors)[0].argmax(dim=0)
    for each in labels:
        owner = torch.where(each.gt_index[0] == IGNORED, nearest, each.gt_index[0])
        prior = (owner >= 0).nonzero()[:, 0]
        pairs[owner[prior], prior] = True
    return pairs


def _ranks(value: Tensor, obj: Tensor, prior: Tensor) -> tuple[Floats, Integers]:
    """Of a criterion `[G, A]` at some pairs: its value, and one more than the priors that are better for the object."""
    found = value[obj, prior]
    ascending = value.sort(dim=1).values
    rank = torch.zeros_like(prior)
    for g in range(len(value)):
        of_object = obj == g
        not_better = torch.searchsorted(ascending[g], found[of_object], right=True)
        rank[of_object] = value.shape[1] - not_better + 1
    return _floats(found), torch.where(found > 0, rank, 0).cpu().numpy()


def _task(judged: Judged | None, labels: Labels, priors: Priors, targets: Targets, shown: Tensor) -> Task:
    owner = labels.gt_index[0]
    objects = range(targets.boxes.shape[1])
    positives = [_by_level(owner == g, priors) for g in objects]
    return Task(
        owner=owner[shown].cpu().numpy(),
        weight=_floats(labels.weight[0, shown]),
        judged=judged,
        positives=np.stack(positives, axis=1) if positives else np.zeros((len(priors.level_counts), 0), dtype=np.int64),
        ignored=_by_level(owner == IGNORED, priors),
    )


def _by_level(chosen: Tensor, priors: Priors) -> Integers:
    """How many of the priors `[A]` are chosen on each level."""
    return np.array([int(part.sum()) for part in torch.split(chosen, list(priors.level_counts))], dtype=np.int64)


def _places(priors: Priors) -> Tensor:
    """The centres `[A, 2]`; the priors of one location are spread over a grid within its cell, row by row."""
    n = priors.layout.per_location
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    first = torch.cat([torch.arange(count, device=priors.boxes.device) for count in priors.level_counts]) % n
    steps = torch.stack([first % columns - (columns - 1) / 2, first // columns - (rows - 1) / 2], dim=1)
    return box_centres(priors.boxes) + steps * priors.strides[:, None] / (columns + 0.5) * (n > 1)


def _floats(values: Tensor) -> Floats:
    return values.float().cpu().numpy()
