"""Detections of detectors that are as good as their `skill`, on images that are drawn at random."""

import numpy as np
from numpy.random import Generator

from mgdet.comparison.judged import Judged
from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Category

CELL = 200.0
"""Pixels from one place of an object to the next; an image has three times three."""


def scenes(rng: Generator, images: int = 80, classes: int = 2) -> GroundTruth:
    """Objects of some classes and of all of COCO's sizes, one to five in an image, no two of them near each other."""
    counts = rng.integers(1, 6, images)
    image = np.repeat(np.arange(images), counts)
    place = np.concatenate([rng.permutation(9)[:n] for n in counts])
    corner = np.stack([place % 3, place // 3], axis=1) * CELL + rng.uniform(0, 20, (len(image), 2))
    boxes = np.concatenate([corner, corner + np.exp(rng.uniform(np.log(18), np.log(160), (len(image), 2)))], axis=1)
    return GroundTruth(
        image_ids=np.arange(images) + 1,
        heights=np.full(images, 3 * CELL),
        widths=np.full(images, 3 * CELL),
        box_image=image,
        boxes=boxes,
        labels=rng.integers(0, classes, len(image)),
        iscrowd=np.zeros(len(image), dtype=np.bool_),
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        categories=tuple(Category(k + 1, f"c{k}") for k in range(classes)),
    )


def detector(rng: Generator, gt: GroundTruth, skill: float = 0.0, name: str = "a") -> Judged:
    """Finds most objects, the better placed ones with higher scores, and makes errors of all types.

    Of what it finds a tenth lies badly, a tenth has another class, and an eighth is found twice; two wrong detections
    an image are added.
    """
    quality = rng.normal(skill, 1, len(gt.boxes))
    rows = np.flatnonzero(quality > -1)
    rows = np.concatenate([rows, rows[rng.random(len(rows)) < 0.125]])
    found = len(rows)
    size = np.tile(gt.boxes[rows, 2:] - gt.boxes[rows, :2], 2)
    spread = 0.08 * np.exp(-0.4 * quality[rows]) + 0.2 * (rng.random(found) < 0.1)
    shifted = gt.boxes[rows] + rng.normal(0, 1, (found, 4)) * size * spread[:, None]
    shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 1)
    wrong = 2 * len(gt.image_ids)
    corner = rng.uniform(0, 3 * CELL - 80, (wrong, 2))
    boxes = np.concatenate([shifted, np.concatenate([corner, corner + 80], axis=1)])
    scores = 1 / (1 + np.exp(-np.r_[quality[rows] + rng.normal(0, 0.7, found), rng.normal(-1, 1, wrong)]))
    image = np.r_[gt.box_image[rows], rng.integers(0, len(gt.image_ids), wrong)]
    classes = len(gt.categories)
    labels = np.r_[
        (gt.labels[rows] + (rng.random(found) < 0.1)) % classes,
        rng.integers(0, classes, wrong),
    ]
    files = tuple(f"{i}.jpg" for i in gt.image_ids)
    return Judged(name, gt, files, DetectionArrays(image, boxes, scores, labels), {})
