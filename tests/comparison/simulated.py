"""Detections of detectors that are as good as their `skill`, on images that are drawn at random."""

import numpy as np

from mgdet.comparison.judged import Judged
from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Category


def scenes(rng, images=80, classes=2):
    """Objects of two classes, one to five in an image, no two of them near each other."""
    counts = rng.integers(1, 6, images)
    image = np.repeat(np.arange(images), counts)
    place = np.concatenate([rng.permutation(9)[:n] for n in counts])
    corner = np.stack([place % 3, place // 3], axis=1) * 100.0 + rng.uniform(0, 20, (len(image), 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 70, (len(image), 2))], axis=1)
    return GroundTruth(
        image_ids=np.arange(images) + 1,
        heights=np.full(images, 300),
        widths=np.full(images, 300),
        box_image=image,
        boxes=boxes,
        labels=rng.integers(0, classes, len(image)),
        iscrowd=np.zeros(len(image), dtype=bool),
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        categories=tuple(Category(k + 1, f"c{k}") for k in range(classes)),
    )


def detector(rng, gt, skill=0.0, name="a"):
    """Finds most objects, the better placed ones with higher scores, and adds two wrong detections an image."""
    quality = rng.normal(skill, 1, len(gt.boxes))
    found = quality > -1
    size = (gt.boxes[:, 2:] - gt.boxes[:, :2]).repeat(2, axis=1).reshape(-1, 2, 2).swapaxes(1, 2).reshape(-1, 4)
    shift = rng.normal(0, 0.08, gt.boxes.shape) * size * np.exp(-0.4 * quality)[:, None]
    wrong = 2 * len(gt.image_ids)
    corner = rng.uniform(0, 250, (wrong, 2))
    boxes = np.concatenate([(gt.boxes + shift)[found], np.concatenate([corner, corner + 40], axis=1)])
    scores = 1 / (1 + np.exp(-np.r_[quality[found] + rng.normal(0, 0.7, found.sum()), rng.normal(-1, 1, wrong)]))
    image = np.r_[gt.box_image[found], rng.integers(0, len(gt.image_ids), wrong)]
    labels = np.r_[gt.labels[found], rng.integers(0, len(gt.categories), wrong)]
    files = tuple(f"{i}.jpg" for i in gt.image_ids)
    return Judged(name, gt, files, DetectionArrays(image, boxes, scores, labels), {})
