"""CPU seconds and peak memory of post-processing, divergence and COCO AP on synthetic predictions, each in a process.

python benchmarks/evaluation.py
python benchmarks/evaluation.py --backends faster hotcoco pycocotools --images 5000 --objects 36200 --detections 500000
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch

from mgdet.evaluation import DetectionArrays, DivergenceAccumulator, DivergenceConfig, coco_ap
from mgdet.evaluation.average_precision import Backend
from mgdet.ground_truth import GroundTruth
from mgdet.models import Detector, FCOSConfig, RetinaNetConfig
from mgdet.structures import Category, Predictions, Targets

CLASSES = 80
HEIGHT, WIDTH, OBJECTS, BATCH = 800, 1344, 8, 2


class Cost:
    """CPU seconds of each call, the median of several, and what the peak of memory grew by, in GiB."""

    def __init__(self, call: Callable[[], object], repeats: int, warm: bool) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now on
        before, seconds = peak(), []
        if warm:
            call()
        for _ in range(repeats):
            start = time.process_time()
            call()
            seconds.append(time.process_time() - start)
        self.seconds, self.memory = median(seconds), peak() - before


def peak() -> float:
    """The most memory that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def dense(name: str) -> tuple[Detector, Predictions, Targets]:
    """A detector and what it might predict for a batch: boxes near their priors, and rare high scores."""
    torch.manual_seed(0)
    config = RetinaNetConfig if name == "retinanet" else FCOSConfig
    network = config(backbone="resnet18", channels=32).build(CLASSES).eval()
    with torch.no_grad():
        images = torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.uint8)
        priors = network(images, torch.tensor([[HEIGHT, WIDTH]])).priors
    boxes = priors.boxes + 6 * torch.randn(BATCH, len(priors.boxes), 4)
    quality = None if name == "retinanet" else torch.randn(boxes.shape[:2])
    logits = torch.randn(*boxes.shape[:2], CLASSES) * 1.2 - 5
    corner = torch.rand(BATCH, OBJECTS, 2) * torch.tensor([WIDTH * 0.7, HEIGHT * 0.7])
    objects = torch.cat([corner, corner + torch.exp(torch.randn(BATCH, OBJECTS, 2) * 0.8 + 4)], dim=2)
    labels = torch.randint(0, CLASSES, (BATCH, OBJECTS))
    targets = Targets(objects, labels, torch.ones(BATCH, OBJECTS, dtype=torch.bool))
    return network, Predictions(priors, logits, torch.zeros_like(boxes), boxes, quality), targets


def post_processing(name: str, repeats: int) -> Cost:
    """Of the detections of one batch."""
    torch.set_num_threads(1)
    network, predictions, _ = dense(name)
    sizes = torch.tensor([[HEIGHT, WIDTH]] * BATCH)
    return Cost(lambda: network.detect(predictions, sizes, sizes), repeats, warm=True)


def divergence(name: str, repeats: int) -> Cost:
    """Of the divergence before suppression of one batch."""
    torch.set_num_threads(1)
    network, predictions, targets = dense(name)
    accumulator, positions = DivergenceAccumulator(DivergenceConfig()), torch.arange(BATCH)

    def call() -> None:
        accumulator.update(positions, predictions.boxes, network.scores(predictions), targets)

    return Cost(call, repeats, warm=True)


def split(n: int, m: int, d: int) -> tuple[GroundTruth, DetectionArrays]:
    """A split of `n` images with `m` objects, and `d` detections near them, half of which have the right class."""
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
    return truth, DetectionArrays(truth.box_image[source], boxes, rng.random(d), labels)


def average_precision(backend: Backend, n: int, m: int, d: int) -> tuple[Cost, dict[str, float]]:
    """From arrays to numbers, and the numbers."""
    truth, found = split(n, m, d)
    numbers: dict[str, float] = {}
    return Cost(lambda: numbers.update(coco_ap(truth, found, backend).metrics()), 1, warm=False), numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36200)
    parser.add_argument("--detections", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=9, help="batches of which the median counts")
    installed = ["faster", *(["hotcoco"] if find_spec("hotcoco") else [])]
    parser.add_argument("--backends", nargs="*", default=installed, choices=["faster", "hotcoco", "pycocotools"])
    args = parser.parse_args()

    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a process for each row
        for name in ("retinanet", "fcos"):
            for label, measure in (("post-processing", post_processing), ("divergence", divergence)):
                cost = pool.apply(measure, (name, args.repeats))
                print(f"{label:16} {name:12} {cost.seconds / BATCH * 1e3:8.1f} ms an image {cost.memory:6.2f} GiB")
        results = {}
        for backend in args.backends:
            cost, results[backend] = pool.apply(
                average_precision, (backend, args.images, args.objects, args.detections)
            )
            print(f"{'AP':16} {backend:12} {cost.seconds:8.1f} s          {cost.memory:6.2f} GiB", flush=True)
    for backend in args.backends[1:]:
        first, other = results[args.backends[0]], results[backend]
        difference = max(abs(value - other[name]) for name, value in first.items())
        print(f"largest difference of {backend} and {args.backends[0]} in any number: {difference:.1e}")


if __name__ == "__main__":
    main()
