"""Which detection found which object, by COCO's rule, and the operating points of each class that follow from it.

Few of all pairs of a detection and an object overlap. These are found once (`overlaps`), and then serve every IoU
threshold and every choice of objects that are ignored: `match` lets the detections of all images and classes advance
together, one rank of the score at a time.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.coco import xywh
from mgdet.ground_truth import GroundTruth
from mgdet.structures import unique_names

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PAIRS_AT_ONCE = 1 << 21
"""Most pairs of a detection and an object whose IoU is computed at a time."""


class Overlaps(NamedTuple):
    """`P` pairs of a detection and an object of one image, by detection and then by object."""

    detection: Ints  # [P]
    object: Ints  # [P]
    iou: Floats  # [P]; with a crowd the intersection over the area of the detection

    def take(self, index: Ints | Bools) -> "Overlaps":
        """Some of the pairs."""
        return Overlaps(self.detection[index], self.object[index], self.iou[index])


class Matches(NamedTuple):
    """The outcome of each of `D` detections, at one or at `T` thresholds. Neither right nor ignored is wrong."""

    right: Bools  # [D] or [T, D]: it found an object
    ignored: Bools  # [D] or [T, D]: it found an ignored object, or is beyond the limit of its image and class
    object: Ints  # [D] or [T, D]: the object or the crowd; -1: none


def overlaps(gt: GroundTruth, det: DetectionArrays, floor: float, same_class: bool = True) -> Overlaps:
    """The pairs whose IoU, computed as pycocotools does, is at least `floor` (above 0).

    Args:
        gt: `M` objects.
        det: `D` detections of the same images and classes.
        floor: least IoU.
        same_class: only of detections with objects of their class; else with those of all classes.
    """
    owner, mine = (_groups(gt, image, labels, same_class) for image, labels in _sides(gt, det))
    order = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[order], mine, "left")
    count = np.searchsorted(owner[order], mine, "right") - first
    boxes, objects = xywh(det.boxes), xywh(gt.boxes)
    ends = np.cumsum(count)
    parts: list[Overlaps] = []
    start = 0
    while start < len(mine):
        done = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, "right")))
        n = count[start:end]
        d = np.repeat(np.arange(start, end), n)
        place = np.arange(len(d)) - np.repeat(np.cumsum(n) - n, n)
        o = order[first[d] + place]
        iou = _iou(boxes[d], objects[o], gt.iscrowd[o])
        near = iou >= floor
        parts.append(Overlaps(d[near], o[near], iou[near]))
        start = end
    if not parts:
        return Overlaps(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    return Overlaps(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def match(
    gt: GroundTruth,
    det: DetectionArrays,
    found: Overlaps,
    thresholds: Floats,
    *,
    ignored: Bools | None = None,
    max_dets: int = 100,
    same_class: bool = True,
) -> Matches:
    """Match as `evaluateImg` of pycocotools does: the detections of an image and class, best score first.

    Each takes the free object of the highest IoU that reaches the threshold, the last of equals. Where there is none it
    may lie in an ignored object; crowds, which are always ignored, take any number of detections.

    Args:
        gt: `M` objects.
        det: `D` detections.
        found: their overlaps down to the lowest threshold.
        thresholds: `T` IoUs above 0 and up to 1.
        ignored: `[M]` further objects that are neither to be found nor wrong to find.
        max_dets: best detections of an image and class that count.
        same_class: as for `found`; if not, all classes of an image are one.

    Returns:
        Matches `[T, D]`.
    """
    t, d, m = len(thresholds), len(det.scores), len(gt.boxes)
    passed_over = gt.iscrowd if ignored is None else gt.iscrowd | ignored
    group = _groups(gt, det.image, det.labels, same_class)
    order = np.lexsort((-det.scores.astype(np.float64), group))  # stable
    rank = np.empty(d, dtype=np.int64)
    rank[order] = _places(group[order])
    out = Matches(np.zeros((t, d), dtype=np.bool_), np.tile(rank >= max_dets, (t, 1)), np.full((t, d), -1))
    pairs = found.take(np.flatnonzero(rank[found.detection] < max_dets))
    if not len(pairs.iou):
        return out
    # The best pair of a detection is its last one: objects that count, by IoU, then by their order
    place = np.empty(d, dtype=np.int64)
    place[order] = np.arange(d)
    pairs = pairs.take(np.lexsort((pairs.object, pairs.iou, ~passed_over[pairs.object], place[pairs.detection])))
    starts = np.flatnonzero(np.r_[True, pairs.detection[1:] != pairs.detection[:-1]])
    turn = _places(group[pairs.detection[starts]])  # of each detection with a pair, among those of its group
    length = np.diff(np.r_[starts, len(pairs.iou)])
    by_turn = np.argsort(np.repeat(turn, length), kind="stable")
    pairs = pairs.take(by_turn)
    bounds = np.cumsum(np.r_[0, np.bincount(np.repeat(turn, length))])
    taken = np.zeros((m, t), dtype=np.bool_)
    reaches = pairs.iou[:, None] >= thresholds[None]
    for start, end in itertools.pairwise(bounds.tolist()):
        mine, objects = pairs.detection[start:end], pairs.object[start:end]
        free = reaches[start:end] & (~taken[objects] | gt.iscrowd[objects][:, None])
        heads = np.flatnonzero(np.r_[True, mine[1:] != mine[:-1]])
        best = np.maximum.reduceat(np.where(free, np.arange(len(mine))[:, None], -1), heads, axis=0)  # [d, T]
        row, column = np.nonzero(best >= 0)
        chosen, detection = objects[best[row, column]], mine[heads[row]]
        taken[chosen, column] = True
        out.object[column, detection] = chosen
        out.right[column, detection] = ~passed_over[chosen]
        out.ignored[column, detection] = passed_over[chosen]
    return out


def coco_matches(gt: GroundTruth, det: DetectionArrays, threshold: float = 0.5, max_dets: int = 100) -> Matches:
    """The matches `[D]` of COCO's evaluation of all sizes at one IoU threshold, see `match`."""
    found = match(gt, det, overlaps(gt, det, threshold), np.array([threshold]), max_dets=max_dets)
    return Matches(*(column[0] for column in found))


def _sides(gt: GroundTruth, det: DetectionArrays) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints]]:
    return (gt.box_image, gt.labels), (det.image, det.labels)


def _groups(gt: GroundTruth, image: Ints, labels: Ints, same_class: bool) -> Ints:
    """A number for each image, or each image and class."""
    return image * len(gt.categories) + labels if same_class else image


def _places(groups: Ints) -> Ints:
    """The place of each element in its group, from 0; elements of a group stand together."""
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else np.zeros(0, dtype=np.int64)
    return np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))


def _iou(boxes: Floats, objects: Floats, crowd: Bools) -> Floats:
    """IoU `[n]` of boxes in COCO's form, with crowds the intersection over the area of the detection."""
    low = np.maximum(boxes[:, :2], objects[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], objects[:, :2] + objects[:, 2:])
    side = high - low
    inter = np.where((side > 0).all(axis=1), side[:, 0] * side[:, 1], 0.0)
    area, other = (b[:, 2] * b[:, 3] for b in (boxes, objects))
    union = np.where(crowd, area, area + other - inter)
    return np.asarray(np.divide(inter, union, out=np.zeros_like(inter), where=inter > 0))


class OperatingPoint(NamedTuple):
    """Where a class has its best F1, the harmonic mean of precision and recall. None: it has no right detection."""

    objects: int  # crowds not counted
    detections: int  # that count
    f1: float | None
    score: float | None  # detections with at least this score are kept
    precision: float | None
    recall: float | None


def operating_points(gt: GroundTruth, det: DetectionArrays, matches: Matches) -> dict[str, OperatingPoint]:
    """The best F1 of each class by its name; of equal ones that with the highest score."""
    return {
        name: _operating_point(int((~gt.iscrowd & (gt.labels == label)).sum()), det.labels == label, det, matches)
        for label, name in enumerate(unique_names(gt.categories))
    }


def _operating_point(
    objects: int, of_class: NDArray[np.bool_], det: DetectionArrays, matches: Matches
) -> OperatingPoint:
    mine = np.flatnonzero(of_class & ~matches.ignored)
    scores = det.scores[mine].astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(matches.right[mine][order])
    taken = np.arange(1, len(mine) + 1)
    last = np.r_[scores[1:] != scores[:-1], True] if len(mine) else np.zeros(0, dtype=np.bool_)  # of equal scores
    f1 = np.where(last, 2 * hits / np.maximum(objects + taken, 1), -1.0)
    if not len(mine) or not hits[-1]:
        return OperatingPoint(objects, len(mine), None, None, None, None)
    best = int(f1.argmax())
    return OperatingPoint(
        objects,
        len(mine),
        float(f1[best]),
        float(scores[best]),
        float(hits[best] / taken[best]),
        float(hits[best] / objects),
    )
