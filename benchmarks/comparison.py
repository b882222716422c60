"""CPU seconds of the numbers of a comparison, on simulated detections.

    python benchmarks/comparison.py --images 5000 --detections 100 --classes 80 --samples 100

Each line is one part of what `mgdet compare` does for one run: the analysis of its errors, and all of its numbers on
all samples of the images. The network is not part of it.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from mgdet.comparison.bootstrap import image_weights
from mgdet.comparison.judged import Judged
from mgdet.comparison.statistics import statistics
from mgdet.evaluation.analysis import analyse
from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.ranking import average_precisions, coco_rankings
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Category


def simulated(images: int, per_image: int, classes: int, seed: int = 0) -> tuple[GroundTruth, DetectionArrays]:
    """Seven objects an image, and as many detections as asked for, of which some lie near an object of their class."""
    rng = np.random.default_rng(seed)
    objects = 7 * images
    corner = rng.uniform(0, 400, (objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 200, (objects, 2))], axis=1)
    owner, labels = rng.integers(0, images, objects), rng.integers(0, classes, objects)
    gt = GroundTruth(
        image_ids=np.arange(images),
        heights=np.full(images, 640),
        widths=np.full(images, 640),
        box_image=owner,
        boxes=boxes,
        labels=labels,
        iscrowd=np.zeros(objects, dtype=np.bool_),
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        categories=tuple(Category(k, f"c{k}") for k in range(classes)),
    )
    count = images * per_image
    about = rng.integers(0, objects, count)
    found = boxes[about] + rng.normal(0, 15, (count, 4))
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    label = np.where(rng.random(count) < 0.5, labels[about], rng.integers(0, classes, count))
    return gt, DetectionArrays(owner[about], found, rng.random(count), label)


def cpu_seconds(name: str, work: Callable[[], object]) -> None:
    """Print how much CPU time the work took."""
    start = time.process_time()
    work()
    print(f"{name:<40} {time.process_time() - start:8.2f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--detections", type=int, default=100, help="of an image")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--samples", type=int, default=100)
    args = parser.parse_args()
    gt, det = simulated(args.images, args.detections, args.classes)
    weights = image_weights(args.images, args.samples, np.random.default_rng(0))
    cpu_seconds("analysis", lambda: analyse(gt, det))
    cpu_seconds("matches of all sizes and IoUs", lambda: coco_rankings(gt, det))
    classes = coco_rankings(gt, det)["all"]
    cpu_seconds(f"AP of {args.samples} samples", lambda: average_precisions(classes, weights))
    judged = Judged("simulated", gt, (), det, {})
    cpu_seconds(f"all numbers of {args.samples} samples", lambda: statistics(judged, weights))


if __name__ == "__main__":
    main()
