"""PASCAL VOC's average precision (Everingham et al., IJCV 2010, section 4.2), at ten IoUs instead of one.

It is the measure of published VOC tables: from the best score down, a detection goes to the object of its class and
image that it overlaps most, whether or not that one is taken. It is right if the IoU exceeds the threshold and the
object is free, and wrong otherwise, but where that object is difficult it counts as neither. `voc07` averages the
interpolated precision at the recalls 0, 0.1, ..., 1; `voc12` is the area under it. All classes weigh alike, and there
is no limit of detections.

The details are those of the Python evaluation that published tables come from: scores count as they are written to its
result files, with three decimals; an IoU has to exceed its threshold, not only to reach it; the recalls of `voc07` are
`arange(0, 1.1, 0.1)`. Detections of equal score come in order of image and, within one, as the detector ranked them.
One detail differs: there, boxes hold whole pixels from corner to corner, both included; those of mgdet are continuous.

Objects with the flag `iscrowd` are VOC's difficult ones.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from mgdet.boxes import iou
from mgdet.evaluation.average_precision import (
    IOU_THRESHOLDS,
    RECALL_THRESHOLDS,
    APResult,
    DetectionArrays,
    Protocol,
    check_detections,
    defined_mean,
)
from mgdet.ground_truth import GroundTruth
from mgdet.structures import unique_names

DECIMALS = 3
"""Of the scores in VOC's result files."""
RECALLS_07: NDArray[np.float64] = np.arange(0.0, 1.1, 0.1)


def voc_ap(gt: GroundTruth, det: DetectionArrays, protocol: Protocol = "voc07") -> APResult:
    """Average precision of `det` against `gt` by `voc07` or `voc12`, at each of COCO's IoU thresholds.

    A class without an object that is not difficult has no AP. Without any such object everything is None, without
    detections 0. The numbers by size and the recalls are not VOC's and are None.

    Raises:
        DataError: an image row or a label of `det` is out of range, or its arrays differ in length.
        NonFiniteError: a box or score of `det` is NaN or infinite.
    """
    check_detections(gt, det)
    scores = np.array([float(f"{score:.{DECIMALS}f}") for score in det.scores.tolist()])
    overlap, nearest = _nearest(gt, det)
    counted = np.bincount(gt.labels[~gt.iscrowd], minlength=len(gt.categories))
    area = _area_07 if protocol == "voc07" else _area_12
    shape = (len(IOU_THRESHOLDS), len(gt.categories))
    ap, precision = np.full(shape, np.nan), np.full((shape[0], len(RECALL_THRESHOLDS), shape[1]), -1.0)
    for k in np.flatnonzero(counted):
        mine = np.flatnonzero(det.labels == k)
        order = mine[np.lexsort((det.image[mine], -scores[mine]))]
        for t, threshold in enumerate(IOU_THRESHOLDS):
            right, wrong = _outcomes(overlap[order] > threshold, nearest[order], gt.iscrowd)
            hits = np.cumsum(right)
            curve = hits / counted[k], hits / np.maximum(hits + np.cumsum(wrong), 1)
            ap[t, k], precision[t, :, k] = area(*curve), _interpolated(*curve, RECALL_THRESHOLDS)
    return _result(gt, det, protocol, ap, precision, counted)


def _nearest(gt: GroundTruth, det: DetectionArrays) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """IoU of each detection with, and number of, the object of its image and class that it overlaps most, both `[D]`.

    The first of equals; -1 and an IoU of 0 where there is none.
    """
    k = len(gt.categories)
    order = np.argsort(gt.box_image * k + gt.labels, kind="stable")
    group, wanted = (gt.box_image * k + gt.labels)[order], det.image * k + det.labels
    first, last = np.searchsorted(group, wanted, "left"), np.searchsorted(group, wanted, "right")
    count = last - first
    pair_det = np.repeat(np.arange(len(wanted)), count)
    start = np.cumsum(count) - count
    pair_object = order[np.arange(len(pair_det)) - start[pair_det] + first[pair_det]]
    boxes = det.boxes[pair_det].astype(np.float64), gt.boxes[pair_object].astype(np.float64)
    values = iou(*(torch.from_numpy(b).reshape(-1, 4) for b in boxes)).numpy()
    best = np.lexsort((pair_object, -values, pair_det))[start[count > 0]]
    overlap, nearest = np.zeros(len(wanted)), np.full(len(wanted), -1)
    overlap[count > 0], nearest[count > 0] = values[best], pair_object[best]
    return overlap, nearest


def _outcomes(
    found: NDArray[np.bool_], nearest: NDArray[np.int64], difficult: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections of a class, best score first, are right and which wrong, both `[d]`; the others are ignored.

    `found` says whether a detection overlaps the object `nearest` enough.
    """
    ignored, right = np.zeros_like(found), np.zeros_like(found)
    ignored[found] = difficult[nearest[found]]
    candidates = np.flatnonzero(found & ~ignored)
    right[candidates[np.unique(nearest[candidates], return_index=True)[1]]] = True  # the first of each object
    return right, ~right & ~ignored


def _interpolated(
    recall: NDArray[np.float64], precision: NDArray[np.float64], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The highest precision at a recall of at least `at [R]`; 0 where that recall is not reached."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return np.append(best, 0.0)[np.searchsorted(recall, at, "left")]


def _area_07(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    return float(_interpolated(recall, precision, RECALLS_07).mean())


def _area_12(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    steps = np.diff(recall, prepend=0.0)
    return float((steps * _interpolated(recall, precision, recall)).sum())


def _result(
    gt: GroundTruth,
    det: DetectionArrays,
    protocol: Protocol,
    ap: NDArray[np.float64],
    precision: NDArray[np.float64],
    counted: NDArray[np.int64],
) -> APResult:
    table = np.where(np.isnan(ap), -1.0, ap)
    names = unique_names(gt.categories)
    return APResult(
        AP=defined_mean(table),
        AP50=defined_mean(table[0]),
        AP75=defined_mean(table[5]),
        per_class={name: defined_mean(table[:, k]) for k, name in enumerate(names)},
        class_boxes={name: int(counted[k]) for k, name in enumerate(names)},
        ap=ap,
        precision=precision,
        n_images=len(gt.image_ids),
        n_boxes=int(counted.sum()),
        detections=det,
        protocol=protocol,
    )
