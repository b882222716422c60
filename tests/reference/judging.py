"""Errors by type, calibration and confusions of detections, and samples of images, as loops."""

import numpy as np

from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.ground_truth import GroundTruth
from tests.reference.matching import coco_matches, iou

TYPES = ("class", "location", "both", "duplicate", "background")


def error_types(gt, det, max_dets=100):
    """Type of each detection (None: right or ignored), what its correction finds, and the missed objects."""
    matches = coco_matches(gt, det, 0.5, max_dets)
    found = {g for outcome, g in matches.values() if outcome == "right"}
    kind, about = {}, {}
    for d, (outcome, _) in matches.items():
        kind[d] = None
        if outcome != "wrong":
            continue
        near = {
            g: iou(det.boxes[d], gt.boxes[g], False)
            for g in range(len(gt.boxes))
            if gt.box_image[g] == det.image[d] and not gt.iscrowd[g]
        }
        own = {g: v for g, v in near.items() if gt.labels[g] == det.labels[d]}
        other = {g: v for g, v in near.items() if gt.labels[g] != det.labels[d]}
        taken = {g: v for g, v in own.items() if g in found}
        if own and 0.1 <= max(own.values()) <= 0.5:
            kind[d], about[d] = "location", max(own, key=own.get)
        elif other and max(other.values()) >= 0.5:
            kind[d], about[d] = "class", max(other, key=other.get)
        elif taken and max(taken.values()) >= 0.5:
            kind[d] = "duplicate"
        elif not near or max(near.values()) <= 0.1:
            kind[d] = "background"
        else:
            kind[d] = "both"
    corrects = {}
    for g in range(len(gt.boxes)):
        able = [d for d, other in about.items() if other == g and g not in found]
        if able:
            corrects[min(able, key=lambda d: (-det.scores[d], d))] = g
    missed = {g for g in range(len(gt.boxes)) if not gt.iscrowd[g] and g not in found and g not in corrects.values()}
    return kind, corrects, missed, matches


def ap50(rows, objects):
    """AP of one class from (place in the order, right), for a number of objects; None without objects."""
    if objects == 0:
        return None
    points, hits = [], 0
    for n, (_, right) in enumerate(sorted(rows), start=1):
        hits += right
        points.append((hits / objects, hits / n))
    total = 0.0
    for recall in np.linspace(0, 1, 101):
        total += max((precision for r, precision in points if r >= recall), default=0.0)
    return total / 101


def error_costs(gt, det):
    """Rise of AP50 with the errors of a type corrected, by type."""
    kind, corrects, missed, matches = error_types(gt, det)
    classes = [k for k in range(len(gt.categories)) if any(~gt.iscrowd & (gt.labels == k))]

    def mean(corrected):
        values = []
        for k in classes:
            rows, objects = [], int((~gt.iscrowd & (gt.labels == k)).sum())
            for d, (outcome, _) in matches.items():
                if outcome == "ignored":
                    continue
                label, right, there = det.labels[d], outcome == "right", True
                if kind[d] is not None and kind[d] == corrected:
                    there = right = d in corrects
                    if right:
                        label = gt.labels[corrects[d]]
                if there and label == k:
                    rows.append(((-det.scores[d], gt.image_ids[det.image[d]], d), right))
            if corrected == "missed":
                objects -= sum(gt.labels[g] == k for g in missed)
            value = ap50(rows, objects)
            if value is None:
                value = 0.0 if rows else 1.0
            values.append(value)
        return sum(values) / len(values)

    base = mean(None)
    return base, {name: max(0.0, mean(name) - base) for name in (*TYPES, "missed")}


def sample(gt, det, weights):
    """The data set in which each image is there as often as its weight says."""
    rows = [row for row, n in enumerate(weights) for _ in range(int(n))]
    objects = [(new, g) for new, old in enumerate(rows) for g in np.flatnonzero(gt.box_image == old)]
    found = [(new, d) for new, old in enumerate(rows) for d in np.flatnonzero(det.image == old)]
    g, d = ([index for _, index in pairs] for pairs in (objects, found))
    drawn = GroundTruth(
        image_ids=np.arange(len(rows)) + 1,
        heights=gt.heights[rows],
        widths=gt.widths[rows],
        box_image=np.array([new for new, _ in objects], dtype=np.int64),
        boxes=gt.boxes[g],
        labels=gt.labels[g],
        iscrowd=gt.iscrowd[g],
        area=gt.area[g],
        categories=gt.categories,
    )
    image = np.array([new for new, _ in found], dtype=np.int64)
    return drawn, DetectionArrays(image, det.boxes[d], det.scores[d], det.labels[d])


def expected_error(scores, right, bins=10):
    """Expected calibration error."""
    total = 0.0
    for b in range(bins):
        mine = [i for i, s in enumerate(scores) if min(int(s * bins), bins - 1) == b]
        if mine:
            total += abs(sum(scores[i] for i in mine) - sum(right[i] for i in mine))
    return total / len(scores)


def confusion(gt, det, kept):
    """Confusion matrix at an IoU of 0.5: detections of all classes, best score first, take the best free object."""
    k = len(gt.categories)
    out = np.zeros((k + 1, k + 1), dtype=int)
    taken = set()
    for d in sorted(np.flatnonzero(kept), key=lambda d: -det.scores[d]):
        best, overlap, crowd = None, 0.5, False
        for g in range(len(gt.boxes)):
            if gt.box_image[g] != det.image[d]:
                continue
            value = iou(det.boxes[d], gt.boxes[g], gt.iscrowd[g])
            if gt.iscrowd[g]:
                crowd |= value >= 0.5
            elif g not in taken and value >= overlap:
                best, overlap = g, value
        if best is not None:
            taken.add(best)
            out[gt.labels[best], det.labels[d]] += 1
        elif not crowd:
            out[k, det.labels[d]] += 1
    for g in range(len(gt.boxes)):
        if not gt.iscrowd[g] and g not in taken:
            out[gt.labels[g], k] += 1
    return out
