"""Average precision of many samples of images: detections are matched and ordered once, images are weighted.

A bootstrap sample draws each image a number of times. Matches do not change by that, so that a sample is a weight for
each image, and its AP follows from cumulative sums over detections that are sorted already.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mgdet.evaluation.average_precision import IOU_THRESHOLDS, RECALL_THRESHOLDS, DetectionArrays
from mgdet.evaluation.coco import xywh
from mgdet.evaluation.matching import Bools, Floats, Ints, Matches, Overlaps, match, overlaps
from mgdet.ground_truth import GroundTruth

ELEMENTS_AT_ONCE = 1 << 22
"""Most weights of detections that are held at once."""
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""COCO's ranges of areas, both ends included."""


class Ranking(NamedTuple):
    """The detections of one class, best score first, and what they are in each of `V` variants: IoU thresholds, say."""

    image: Ints  # [n] row of the image
    right: Bools  # [V, n]
    counted: Bools  # [V, n] neither ignored nor taken out; includes the right ones
    objects: Floats  # [V, N] objects of the class to be found in each image


def rankings(gt: GroundTruth, det: DetectionArrays, matches: Matches, ignored: Bools) -> list[Ranking]:
    """The ranking of each class, whose variants are the `T` thresholds of the matches.

    Equal scores stand in the order in which pycocotools has them: by the id of the image, then as they came.

    Args:
        gt: `M` objects.
        det: `D` detections.
        matches: `[T, D]`.
        ignored: `[M]` objects that are not to be found, crowds included.
    """
    images = len(gt.image_ids)
    out = []
    for label in range(len(gt.categories)):
        mine = ranked(gt, det, np.flatnonzero(det.labels == label))
        there = gt.box_image[(gt.labels == label) & ~ignored]
        objects = np.bincount(there, minlength=images).astype(np.float64)
        right = matches.right[:, mine]
        counted = ~matches.ignored[:, mine]
        out.append(Ranking(det.image[mine], right, counted, np.tile(objects, (len(right), 1))))
    return out


def ranked(gt: GroundTruth, det: DetectionArrays, chosen: Ints) -> Ints:
    """Some detections, `[n]`, best score first; equal scores by the id of the image, then as they came."""
    number = np.argsort(np.argsort(gt.image_ids))
    return chosen[np.lexsort((number[det.image[chosen]], -det.scores[chosen].astype(np.float64)))]


def size_rankings(
    gt: GroundTruth, det: DetectionArrays, found: Overlaps, max_dets: int = 100
) -> dict[str, list[Ranking]]:
    """The rankings of COCO's protocol at its ten IoUs, for objects of `all` sizes and of each of `SIZES`."""
    size = xywh(det.boxes)
    area = size[:, 2] * size[:, 3]
    out = {}
    for name, (low, high) in {"all": (-np.inf, np.inf), **SIZES}.items():
        ignored = gt.iscrowd | (gt.area < low) | (gt.area > high)
        matches = match(gt, det, found, IOU_THRESHOLDS, ignored=ignored, max_dets=max_dets)
        outside = (area < low) | (area > high)
        matches = matches._replace(ignored=matches.ignored | (outside & (matches.object < 0)))
        out[name] = rankings(gt, det, matches, ignored)
    return out


def coco_rankings(gt: GroundTruth, det: DetectionArrays, max_dets: int = 100) -> dict[str, list[Ranking]]:
    """`size_rankings` of detections that have not been compared with the objects yet."""
    return size_rankings(gt, det, overlaps(gt, det, float(IOU_THRESHOLDS[0])), max_dets)


def average_precisions(classes: Sequence[Ranking], weights: NDArray[np.floating]) -> Floats:
    """AP of each sample, variant and class, as COCO defines it: the mean precision at 101 recalls.

    Args:
        classes: `K` rankings of `V` variants.
        weights: `[S, N]` how often each image is in each of `S` samples.

    Returns:
        `[S, V, K]`; NaN where a sample has no object of the class.
    """
    variants = len(classes[0].right) if classes else 0
    out = np.full((len(weights), variants, len(classes)), np.nan)
    for k, ranking in enumerate(classes):
        for rows in _chunks(len(weights), max(1, len(ranking.image))):
            out[rows, :, k] = _of_class(ranking, weights[rows].astype(np.float64))
    return out


def _chunks(samples: int, width: int) -> Iterator[slice]:
    step = max(1, ELEMENTS_AT_ONCE // width)
    return (slice(start, start + step) for start in range(0, samples, step))


def _of_class(ranking: Ranking, weights: Floats) -> Floats:
    """AP `[s, V]` of one class for the weights `[s, N]`."""
    variants = len(ranking.right)
    out = np.full((len(weights), variants), np.nan)
    last = int(np.flatnonzero(np.any(ranking.right, axis=0)).max(initial=-1)) + 1  # what comes after changes nothing
    mine = weights[:, ranking.image[:last]]  # [s, n]
    known: dict[bytes, Floats] = {}
    for v in range(variants):
        objects = weights @ ranking.objects[v]  # [s]
        right, counted = np.flatnonzero(ranking.right[v, :last]), ranking.counted[v, :last]
        key = counted.tobytes()
        if key not in known:
            known = {key: np.cumsum(mine * counted, axis=1)}
        found = np.cumsum(mine[:, right], axis=1)  # [s, p]: only a right detection raises the recall
        shown = known[key][:, right]
        precision = np.divide(found, shown, out=np.zeros_like(found), where=shown > 0)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = np.divide(found, objects[:, None], out=np.zeros_like(found), where=objects[:, None] > 0)
        reached = np.searchsorted(RECALL_THRESHOLDS, recall, "right")  # of the 101 recalls
        steps = np.diff(reached, axis=1, prepend=0)
        out[:, v] = np.where(objects > 0, (precision * steps).sum(axis=1) / len(RECALL_THRESHOLDS), np.nan)
    return out


def mean_defined(values: Floats, axis: int | tuple[int, ...]) -> Floats:
    """The mean of what is not NaN along some axes; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))
