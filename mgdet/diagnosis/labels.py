"""Objects that are probably labelled wrongly, by the detections of a trained detector.

The three kinds are those of ObjectLab (Tkachenko, Thyagarajan and Mueller, "ObjectLab: Automated Diagnosis of
Mislabeled Images in Object Detection Data", 2023, arXiv 2309.00832): objects that were *overlooked*, whose class was
*swapped*, or whose box is *badly placed*. Only confident detections accuse. What is confident differs by class, as in
confident learning (Northcutt, Jiang and Chuang, JAIR 2021): the mean score of the detections of that class that match
an object of it.

Differences from ObjectLab: boxes are compared by their IoU alone (there: 0.9 IoU + 0.1 exp(-distance / 10)), a
detection belongs to one object only, so that its neighbours are not accused, and the confident score is by class
(there: 0.95).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mgdet.diagnosis.annotations import ious
from mgdet.diagnosis.base import Cases, Data, Finding, Split

LEAST_SCORE = 0.1
"""Detections below it say nothing."""
SAME_OBJECT = 0.5
"""The IoU from which a detection is one of an object."""
TOUCHES = 0.1
"""The IoU below which a detection has nothing to do with an object."""
WELL_PLACED = 0.7
"""An object that a detection of its class overlaps so much is well placed."""
SUSPICIOUS = 0.1
"""Less suspicion is not told."""


class Detected(NamedTuple):
    """The `D` detections of an image with a score of at least `LEAST_SCORE`, in pixels of its upright file."""

    boxes: NDArray[np.float64]  # [D, 4], each with an area
    scores: NDArray[np.float64]  # [D]
    labels: NDArray[np.int64]  # [D]


class Suspect(NamedTuple):
    """An object, or a detection without one, that looks wrong."""

    kind: str
    """overlooked, swapped or badly_placed."""
    thing: int
    """The object; -1 where it was overlooked."""
    detection: int
    suspicion: float
    """From 0 to 1."""


Detect = Callable[[Split], Iterator[tuple[int, Detected]]]
"""The detections of each image of a split that can be read, with its row."""


class Judged(NamedTuple):
    """An image with its `n` objects outside of crowds, and what was detected outside of crowds."""

    boxes: NDArray[np.float64]  # [n, 4]
    labels: NDArray[np.int64]  # [n]
    seen: Detected


def labels(detect: Detect) -> Callable[[Data], Iterator[Finding]]:
    """The check of objects against what `detect` finds."""

    def check(data: Data) -> Iterator[Finding]:
        places: list[tuple[Split, int, NDArray[np.int64]]] = []
        images: list[Judged] = []
        for split in data.splits.values():
            for row, seen in detect(split):
                things = split.things(row)
                crowd = split.truth.iscrowd[things]
                places.append((split, row, things[~crowd]))
                boxes, kinds = split.truth.boxes[things], split.truth.labels[things]
                images.append(Judged(boxes[~crowd], kinds[~crowd], _outside(seen, boxes[crowd])))
        confident = confident_scores(images, len(data.categories))
        cases = Cases()
        for (split, row, things), image in zip(places, images, strict=True):
            for suspect in suspects(image, confident):
                label, score = int(image.seen.labels[suspect.detection]), image.seen.scores[suspect.detection]
                detail = f"{data.categories[label].name} detected with score {score:.2f}"
                box = image.seen.boxes[suspect.detection]
                thing = int(things[suspect.thing]) if suspect.thing >= 0 else None
                if thing is not None:
                    detail = f"{data.categories[int(split.truth.labels[thing])].name}, {detail}"
                case = split.case(row, thing, detail, score=suspect.suspicion)
                cases.add(suspect.kind, case.with_box(box))
        for finding in cases.findings():
            yield Finding(finding.kind, tuple(sorted(finding.cases, key=lambda case: -(case.score or 0))))

    return check


def _outside(seen: Detected, crowds: NDArray[np.float64]) -> Detected:
    """The detections of which less than half lies in a crowd."""
    if not len(crowds) or not len(seen.scores):
        return seen
    corners = seen.boxes[:, None]
    overlap = (np.minimum(corners[..., 2:], crowds[:, 2:]) - np.maximum(corners[..., :2], crowds[:, :2])).clip(0)
    area = (seen.boxes[:, 2:] - seen.boxes[:, :2]).prod(axis=1)
    outside = overlap.prod(axis=-1).max(axis=1) < 0.5 * area
    return Detected(*(values[outside] for values in seen))


def confident_scores(images: Sequence[Judged], classes: int) -> NDArray[np.float64]:
    """The score from which a detection of each class is confident: the mean of those that match an object of it.

    Without any, no detection of the class is confident (infinity).
    """
    total, count = np.zeros(classes), np.zeros(classes)
    for boxes, kinds, seen in images:
        if not len(boxes) or not len(seen.scores):
            continue
        overlap = ious(seen.boxes[:, None], boxes) * (seen.labels[:, None] == kinds)
        good = overlap.max(axis=1) >= SAME_OBJECT
        best = np.zeros(len(kinds))  # of each object the best scored detection alone: the others are suppressed slowly
        np.maximum.at(best, overlap.argmax(axis=1)[good], seen.scores[good])
        np.add.at(total, kinds[best > 0], best[best > 0])
        np.add.at(count, kinds[best > 0], 1)
    return np.asarray(np.divide(total, count, out=np.full(classes, np.inf), where=count > 0))


def suspects(image: Judged, confident: NDArray[np.float64]) -> list[Suspect]:
    """What the detections of an image say against its objects, each object and detection at most once.

    With the score s of a detection and its IoU with the object:

    - overlooked: a detection that overlaps no free object; the suspicion is s (1 - IoU with the nearest object);
    - swapped: IoU >= `SAME_OBJECT` with an object of another class, for which its own class is detected with a score
      s' < s at most; the suspicion is s IoU (1 - s');
    - badly placed: an object of its class that no detection of this class overlaps by `WELL_PLACED`; the suspicion is
      s (1 - IoU).
    """
    boxes, kinds, seen = image
    overlap = ious(seen.boxes[:, None], boxes) if len(boxes) else np.zeros((len(seen.scores), 0))
    same = seen.labels[:, None] == kinds
    good = overlap >= SAME_OBJECT
    own = np.where(same & good, seen.scores[:, None], 0).max(axis=0, initial=0)  # of each object
    placed = np.where(same, overlap, 0).max(axis=0, initial=0)
    found: list[Suspect] = []
    accused: set[int] = set()
    for d in np.argsort(-seen.scores, kind="stable").tolist():
        score = float(seen.scores[d])
        if score < confident[seen.labels[d]]:
            continue
        nearest = int(overlap[d].argmax()) if len(boxes) else -1
        iou = float(overlap[d, nearest]) if len(boxes) else 0.0
        if iou >= SAME_OBJECT and not same[d, nearest]:
            if not (same[d] & good[d]).any() and own[nearest] < score and nearest not in accused:
                found.append(Suspect("swapped", nearest, d, score * iou * (1 - float(own[nearest]))))
                accused.add(nearest)
            continue
        mine = np.where(same[d], overlap[d], 0)
        nearest = int(mine.argmax()) if len(boxes) else -1
        if len(boxes) and mine[nearest] >= TOUCHES and placed[nearest] < WELL_PLACED:
            if nearest not in accused:
                found.append(Suspect("badly_placed", nearest, d, score * (1 - float(mine[nearest]))))
                accused.add(nearest)
        elif iou < SAME_OBJECT:
            found.append(Suspect("overlooked", -1, d, score * (1 - iou)))
    return [suspect for suspect in found if suspect.suspicion >= SUSPICIOUS]
