"""Which detection found which object, by COCO's rule, and the operating points of each class that follow from it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.ground_truth import GroundTruth
from mgdet.structures import unique_names


class Matches(NamedTuple):
    """The outcome of each of `D` detections. One that is neither right nor ignored is wrong."""

    right: NDArray[np.bool_]  # [D] it found an object
    ignored: NDArray[np.bool_]  # [D] it lies in a crowd, or beyond the limit of its image and class
    object: NDArray[np.int64]  # [D] the object or the crowd; -1: none


def coco_matches(gt: GroundTruth, det: DetectionArrays, threshold: float = 0.5, max_dets: int = 100) -> Matches:
    """Match as COCO's evaluation does (`evaluateImg` of pycocotools, all sizes), at one IoU threshold.

    Detections of an image and class, best score first, each take the free object of the highest IoU of at least
    `threshold`, the last of equals. Where there is none they may lie in a crowd, by intersection over their own area.

    Args:
        gt: the objects.
        det: the detections, of the same images and classes.
        threshold: of the IoU, above 0 and up to 1.
        max_dets: best detections of an image and class that count.
    """
    d = len(det.scores)
    out = Matches(np.zeros(d, dtype=np.bool_), np.zeros(d, dtype=np.bool_), np.full(d, -1))
    if not d:
        return out
    k = len(gt.categories)
    order = np.lexsort((-det.scores.astype(np.float64), det.image * k + det.labels))  # stable
    group = (det.image * k + det.labels)[order]
    objects = np.argsort(gt.box_image * k + gt.labels, kind="stable")
    owner = (gt.box_image * k + gt.labels)[objects]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    for start, end in zip(starts, np.r_[starts[1:], d], strict=True):
        mine = order[start:end]
        out.ignored[mine[max_dets:]] = True
        first, last = np.searchsorted(owner, group[start], "left"), np.searchsorted(owner, group[start], "right")
        if first < last:
            _match(gt, det, mine[:max_dets], objects[first:last], threshold, out)
    return out


def _match(
    gt: GroundTruth,
    det: DetectionArrays,
    mine: NDArray[np.int64],
    objects: NDArray[np.int64],
    threshold: float,
    out: Matches,
) -> None:
    """Match the detections `mine`, best first, with the objects of their image and class."""
    crowd = gt.iscrowd[objects]
    overlap = _overlap(det.boxes[mine].astype(np.float64), gt.boxes[objects], crowd)
    free = ~crowd
    for row in np.flatnonzero((overlap >= threshold).any(axis=1)):
        values = np.where(free, overlap[row], -1.0)
        best = len(values) - 1 - int(values[::-1].argmax())  # the last of equals
        if values[best] < threshold:
            values = np.where(crowd, overlap[row], -1.0)
            best = len(values) - 1 - int(values[::-1].argmax())
            if values[best] < threshold:
                continue
            out.ignored[mine[row]] = True
        else:
            free[best] = False
            out.right[mine[row]] = True
        out.object[mine[row]] = objects[best]


def _overlap(boxes: NDArray[np.float64], objects: NDArray[np.float64], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU `[d, g]`, with crowds the intersection over the area of the detection."""
    low = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], objects[None, :, 2:])
    inter = (high - low).clip(0).prod(axis=2)
    area, other = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, objects))
    union = area[:, None] + np.where(crowd, 0.0, other - inter)
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
