"""Boxes, priors and what each object is to each prior, one numpy float32 scalar at a time."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mgdet.structures import Predictions, PriorLayout, Priors, Targets

ZERO = np.float32(0)
HALF = np.float32(0.5)
ONE = np.float32(1)


def overlap(a, b):
    """IoU of two boxes given as four float32 scalars each; 0 for anything that is not a box."""
    for value in (*a, *b):
        if not math.isfinite(value):
            return ZERO
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = width * height if width > 0 and height > 0 else ZERO
    union = area(a) + area(b) - intersection
    if not union > 0:
        return ZERO
    ratio = intersection / union
    return ratio if math.isfinite(ratio) else ZERO


def area(box):
    """Width times height, 0 where either is negative."""
    return max(box[2] - box[0], ZERO) * max(box[3] - box[1], ZERO)


def centre_of(box):
    """The middle of a box."""
    return HALF * (box[0] + box[2]), HALF * (box[1] + box[3])


def squared_distance(a, b):
    """Of two places."""
    dx, dy = a[0] - b[0], a[1] - b[1]
    return dx * dx + dy * dy


def is_usable(box):
    """True for a box with finite coordinates, a positive width and a positive height."""
    return all(math.isfinite(value) for value in box) and box[2] > box[0] and box[3] > box[1]


@dataclass
class Prior:
    """One place at which the network predicts."""

    box: tuple
    footprint: tuple  # what stands for it in an IoU
    centre: tuple
    stride: np.float32
    level: int
    is_first: bool  # of the finest level
    is_last: bool  # of the coarsest level
    location: int  # on its level


@dataclass
class Sides:
    """Where the centre of a prior lies in the box of an object: distances to the left, top, right and bottom side."""

    l: np.float32  # noqa: E741
    t: np.float32
    r: np.float32
    b: np.float32

    @property
    def least(self):
        """Positive inside the box."""
        return min(self.l, self.t, self.r, self.b)

    @property
    def most(self):
        """What would have to be regressed."""
        return max(self.l, self.t, self.r, self.b)

    @property
    def balance(self):
        """min/max of left and right, min/max of top and bottom; for a centre inside the box."""
        return min(self.l, self.r) / max(self.l, self.r), min(self.t, self.b) / max(self.t, self.b)


@dataclass
class Image:
    """One image: its priors, the objects that count, and every pairwise quantity as object -> one value per prior."""

    layout: PriorLayout
    priors: list[Prior]
    boxes: dict[int, tuple]  # object -> box
    labels: dict[int, int]
    decoded: list[tuple]  # box now predicted at each prior
    scores: list[list]  # prior -> a probability of each class
    adopts: bool = True  # objects without a positive are given one
    close_calls: list[str] = field(default_factory=list)  # why the outcome may hinge on rounding
    order_matters: list[str] = field(default_factory=list)  # why the outcome may depend on the order of the objects

    @property
    def objects(self) -> list[int]:
        """Indices of the objects that count."""
        return list(self.boxes)

    @property
    def amount(self) -> int:
        """How many priors there are."""
        return len(self.priors)

    def pairwise(self, function) -> dict[int, list]:
        """`function(object, prior)` of all pairs, by index."""
        with np.errstate(all="ignore"):
            return {g: [function(g, a) for a in range(self.amount)] for g in self.objects}

    @cached_property
    def prior_iou(self):
        """Overlap of object and footprint."""
        return self.pairwise(lambda g, a: overlap(self.boxes[g], self.priors[a].footprint))

    @cached_property
    def regressed(self):
        """Overlap of predicted box and object."""
        return self.pairwise(lambda g, a: overlap(self.decoded[a], self.boxes[g]))

    @cached_property
    def probability(self):
        """Score of the object's class."""
        return self.pairwise(lambda g, a: self.scores[a][self.labels[g]])

    @cached_property
    def sides(self):
        """The prior's centre in the object's box."""
        return self.pairwise(self._sides)

    def _sides(self, g, a):
        (x, y), box = self.priors[a].centre, self.boxes[g]
        return Sides(x - box[0], y - box[1], box[2] - x, box[3] - y)

    @cached_property
    def distance(self):
        """Squared, between the centres."""
        return self.pairwise(lambda g, a: squared_distance(centre_of(self.boxes[g]), self.priors[a].centre))

    @cached_property
    def offset(self):
        """The larger of the horizontal and the vertical distance of the centres."""
        return self.pairwise(self._offset)

    def _offset(self, g, a):
        (x, y), (gx, gy) = self.priors[a].centre, centre_of(self.boxes[g])
        return max(abs(x - gx), abs(y - gy))

    @cached_property
    def diou(self):
        """Overlap of object and footprint, less the distance of the centres relative to the box around both."""
        return self.pairwise(self._diou)

    def _diou(self, g, a):
        box, other = self.boxes[g], self.priors[a].footprint
        width = max(box[2], other[2]) - min(box[0], other[0])
        height = max(box[3], other[3]) - min(box[1], other[1])
        value = self.prior_iou[g][a] - self.distance[g][a] / (width * width + height * height)
        return -ONE if math.isnan(value) else value


def read_priors(priors: Priors) -> list[Prior]:
    """The priors one by one, with the level and the location of each."""
    found: list[Prior] = []
    for level, count in enumerate(priors.level_counts):
        for i in range(count):
            box = tuple(np.float32(v) for v in priors.boxes[len(found)].tolist())
            stride = np.float32(priors.strides[len(found)].item())
            x, y = centre_of(box)
            half = np.float32(4) * stride
            found.append(
                Prior(
                    box=box,
                    footprint=(x - half, y - half, x + half, y + half) if priors.layout.points else box,
                    centre=(x, y),
                    stride=stride,
                    level=level,
                    is_first=level == 0,
                    is_last=level == len(priors.level_counts) - 1,
                    location=i // priors.layout.per_location,
                )
            )
    return found


def read_images(priors: Priors, predictions: Predictions, targets: Targets) -> list[Image]:
    """The batch image by image, without the objects that do not count."""
    places = read_priors(priors)
    scores = predictions.logits.detach().float().sigmoid().nan_to_num(nan=0.0)
    images = []
    for b in range(targets.boxes.shape[0]):
        boxes, labels = {}, {}
        for g in range(targets.boxes.shape[1]):
            box = tuple(np.float32(v) for v in targets.boxes[b, g].tolist())
            if targets.valid[b, g] and is_usable(box):
                boxes[g] = box
                labels[g] = int(targets.labels[b, g])
        images.append(
            Image(
                layout=priors.layout,
                priors=places,
                boxes=boxes,
                labels=labels,
                decoded=[tuple(np.float32(v) for v in box) for box in predictions.boxes[b].float().tolist()],
                scores=[[np.float32(v) for v in row] for row in scores[b].tolist()],
            )
        )
    return images
