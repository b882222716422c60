"""Seconds of COCO AP on synthetic detections with both backends, and their largest difference.

python benchmarks/evaluation.py --images 5000 --objects 36200 --detections 500000
"""

import argparse
import time

import numpy as np

from mgdet.evaluation import DetectionArrays, coco_ap
from mgdet.evaluation.average_precision import APResult, Backend
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Category

CLASSES = 80


def timed(truth: GroundTruth, found: DetectionArrays, backend: Backend) -> tuple[APResult, float]:
    """The result of a backend and the seconds that it took."""
    start = time.perf_counter()
    result = coco_ap(truth, found, backend)
    return result, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36200)
    parser.add_argument("--detections", type=int, default=500_000)
    args = parser.parse_args()
    n, m, d = args.images, args.objects, args.detections
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 400, (m, 2)), np.exp(rng.normal(4, 0.8, (m, 2)))
    truth = GroundTruth(
        image_ids=np.arange(n),
        heights=np.full(n, 480),
        widths=np.full(n, 640),
        box_image=rng.integers(0, n, m),
        boxes=np.concatenate([corner, corner + size], axis=1),
        labels=rng.integers(0, CLASSES, m),
        iscrowd=rng.random(m) < 0.01,
        area=size.prod(axis=1),
        categories=tuple(Category(i + 1, f"class {i}") for i in range(CLASSES)),
    )
    source = rng.integers(0, m, d)
    boxes = truth.boxes[source] + rng.normal(0, 5, (d, 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = np.where(rng.random(d) < 0.5, truth.labels[source], rng.integers(0, CLASSES, d))
    found = DetectionArrays(truth.box_image[source], boxes, rng.random(d), labels)
    (fast, fast_s), (slow, slow_s) = timed(truth, found, "faster"), timed(truth, found, "pycocotools")
    theirs = slow.metrics()
    difference = max(abs(v - theirs[k]) for k, v in fast.metrics().items())
    print(f"faster {fast_s:.1f} s, pycocotools {slow_s:.1f} s, ratio {slow_s / fast_s:.1f}")
    print(f"largest difference of any number {difference:.1e}")


if __name__ == "__main__":
    main()
