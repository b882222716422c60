"""Milliseconds per image and peak memory of the assigners at 800x1333 (201,600 anchors or 22,400 points).

python benchmarks/assign.py [--objects 10 100] [--device cuda]
"""

import argparse
import resource
import time
from collections.abc import Callable

import torch

from mgdet.assign import ATSS, Assigner, CenterSampling, MaxIoU, MutualGuidance, MutualLabeling, SimOTA, TaskAligned
from mgdet.assign.geometry import footprints
from mgdet.models import FCOSConfig, ModelConfig, RetinaNetConfig
from mgdet.structures import Predictions, Priors, Targets

IMAGE = (800, 1344)
CLASSES = 80
SMALL = {"backbone": "resnet18", "channels": 32}  # only the priors are needed


def priors_of(model: ModelConfig) -> Priors:
    """The priors of a detector at `IMAGE`."""
    network = model.build(1).eval()
    image = torch.zeros(1, 3, *IMAGE, dtype=torch.uint8)
    with torch.no_grad():
        predictions: Predictions = network(image, torch.tensor([IMAGE]))
    return predictions.priors


def random_objects(batch: int, count: int, device: torch.device) -> Targets:
    """Objects of 16 to 316 pixels."""
    corner = torch.rand(batch, count, 2, device=device) * 700
    size = torch.rand(batch, count, 2, device=device) * 300 + 16
    valid = torch.ones(batch, count, dtype=torch.bool, device=device)
    return Targets(torch.cat([corner, corner + size], 2), torch.zeros_like(valid, dtype=torch.int64), valid)


def assigners_for(priors: Priors) -> list[Assigner]:
    """Those that are defined for such priors."""
    own = [CenterSampling()] if priors.layout.points else [MaxIoU(), MutualGuidance(count="iou")]
    guided = [MutualGuidance(count="dynamic_k"), MutualGuidance(count="mean_std"), MutualLabeling()]
    return [*own, ATSS(), TaskAligned(), SimOTA(), *guided]


def timed(action: Callable[[], object], repeat: int, device: torch.device) -> float:
    """Milliseconds of one call, after one that is not counted."""
    action()
    start = time.perf_counter()
    for _ in range(repeat):
        action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000 / repeat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    for model in (RetinaNetConfig(**SMALL), FCOSConfig(**SMALL)):
        priors = priors_of(model).to(device)
        torch.manual_seed(0)
        boxes = footprints(priors) + 4 * torch.randn(args.batch, len(priors.boxes), 4, device=device)
        logits = torch.randn(args.batch, len(priors.boxes), CLASSES, device=device)
        predictions = Predictions(priors, logits, torch.zeros_like(boxes), boxes)
        for g in args.objects:
            targets = random_objects(args.batch, g, device)
            for assigner in assigners_for(priors):
                milliseconds = timed(lambda: assigner(predictions, targets), args.repeat, device)  # noqa: B023
                label = f"{getattr(assigner, 'name', '')} {getattr(assigner, 'count', '')}"
                print(f"{model.name:<10}{g:4d} objects  {label:<26} {milliseconds / args.batch:8.1f} ms/image")
    if device.type == "cuda":
        print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    else:
        print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of the process")


if __name__ == "__main__":
    main()
