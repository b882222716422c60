"""The divergence metric written as loops over images, objects and boxes, with scipy's Spearman."""

import math

import numpy as np
import torch
from scipy.stats import spearmanr

from mgdet.boxes import is_degenerate, pairwise_iou


def iou_of(a, b):
    """IoU of two xyxy boxes, Python floats."""
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union if union > 0 else 0.0


def rho_of(x, y):
    """Spearman's rho, None where it is undefined."""
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return float(spearmanr(x, y).statistic)


def mean_of(values):
    """Mean of what is defined and how many that are."""
    defined = [v for v in values if v is not None]
    return (math.fsum(defined) / len(defined), len(defined)) if defined else (None, 0)


def candidates_of(boxes, objects, usable):
    """For each box `(index of its best object, IoU)`, or None."""
    out = []
    for box in boxes:
        best = None
        for g, obj in enumerate(objects):
            degenerate = not (np.isfinite(obj).all() and obj[2] > obj[0] and obj[3] > obj[1])
            if not usable[g] or degenerate:
                continue
            iou = iou_of(box, obj)
            if best is None or iou > best[1]:
                best = (g, iou)
        out.append(best)
    return out


def best_objects(boxes, targets, floor):
    """`candidates_of` for tensors of any boxes, all pairs at once: the best IoU of at least `floor` and its object.

    `[B, A]` each; IoU 0 where there is none. Among equal ones the lowest object.
    """
    found = pairwise_iou(targets.boxes.to(boxes), boxes)
    found[~targets.valid | is_degenerate(targets.boxes)] = 0
    value, index = torch.zeros(boxes.shape[:2], dtype=boxes.dtype), torch.zeros(boxes.shape[:2], dtype=torch.int64)
    for g in range(found.shape[1]):
        better = (found[:, g] > value) & (found[:, g] >= floor)
        value[better], index[better] = found[:, g][better], g
    return value, index


def pre_nms(boxes, scores, objects, labels, usable, iou_floor=0.5, top_k=50, top_floor=0.1):
    """`{population: (rho, n)}` of nested lists: boxes [B][A][4], scores [B][A][C], objects [B][G][4]."""
    per_object, per_top, per_image = [], [], []
    for i in range(len(boxes)):
        best = candidates_of(boxes[i], objects[i], usable[i])
        image_score, image_iou = [], []
        for g in range(len(objects[i])):
            mine = [(scores[i][j][labels[i][g]], m[1]) for j, m in enumerate(best) if m is not None and m[0] == g]
            dense = [(s, u) for s, u in mine if u >= iou_floor]
            per_object.append(rho_of([s for s, _ in dense], [u for _, u in dense]))
            top = sorted((p for p in mine if p[1] > top_floor), key=lambda p: -p[0])[:top_k]  # stable, as ours
            per_top.append(rho_of([s for s, _ in top], [u for _, u in top]))
            image_score += [s for s, _ in dense]
            image_iou += [u for _, u in dense]
        per_image.append(rho_of(image_score, image_iou))
    return {"pre_nms": mean_of(per_object), f"pre_nms_top{top_k}": mean_of(per_top), "per_image": mean_of(per_image)}


def match(boxes, scores, labels, objects, object_labels, iou_floor=0.5):
    """COCO's greedy match of one image: IoU of each detection (best score first) with its object, 0 for none."""
    free = [True] * len(objects)
    out = [0.0] * len(boxes)
    for d in sorted(range(len(boxes)), key=lambda d: -scores[d]):
        best, best_iou = None, iou_floor
        for g, obj in enumerate(objects):
            iou = iou_of(boxes[d], obj)
            if free[g] and labels[d] == object_labels[g] and iou >= best_iou:
                best, best_iou = g, iou
        if best is not None:
            free[best] = False
            out[d] = best_iou
    return out


def of_matches(labels, scores, ious, least=3):
    """`{population: (rho, n)}` of matched detections, and under `boxes` how many the mean over classes stands on."""
    per_class, boxes = [], 0
    for label in sorted(set(labels)):
        mine = [i for i, other in enumerate(labels) if other == label]
        rho = rho_of([scores[i] for i in mine], [ious[i] for i in mine]) if len(mine) >= least else None
        per_class.append(rho)
        boxes += len(mine) if rho is not None else 0
    pooled = rho_of(scores, ious) if len(scores) >= least else None
    return {"per_class": mean_of(per_class), "post_nms": (pooled, 0 if pooled is None else len(scores)), "boxes": boxes}
