"""Cost of the assigners for one batch: CPU seconds and memory, or milliseconds on a GPU.

python benchmarks/assign.py --image 640 640 --batch 8 --objects 20
python benchmarks/assign.py --image 800 1344 --batch 1 --objects 20 500
python benchmarks/assign.py --image 256 320 --batch 8 --objects 13 --classes 3
"""

import argparse
import resource
import time
from collections.abc import Callable

import torch

from mgdet.assign import (
    ATSS,
    DDOD,
    DLA,
    DW,
    OTA,
    PAA,
    Assigner,
    AutoAssign,
    CenterSampling,
    FreeAnchor,
    MaxIoU,
    MuSu,
    MutualGuidance,
    MutualLabeling,
    SimOTA,
    TaskAligned,
)
from mgdet.assign.geometry import footprints
from mgdet.models import FCOSConfig, ModelConfig, RetinaNetConfig
from mgdet.structures import Predictions, Priors, Targets

SMALL = {"backbone": "resnet18", "channels": 32}  # only the priors are needed


def priors_of(model: ModelConfig, image: tuple[int, int]) -> Priors:
    """The priors of a detector for images of `(height, width)`."""
    network = model.build(1).eval()
    with torch.no_grad():
        predictions: Predictions = network(torch.zeros(1, 3, *image, dtype=torch.uint8), torch.tensor([image]))
    return predictions.priors


def random_objects(batch: int, count: int, classes: int, image: tuple[int, int], device: torch.device) -> Targets:
    """Objects of 16 to 316 pixels, at most half the image, within it."""
    limit = torch.tensor([image[1], image[0]], device=device)
    size = torch.minimum(torch.rand(batch, count, 2, device=device) * 300 + 16, limit / 2)
    corner = torch.rand(batch, count, 2, device=device) * (limit - size)
    labels = torch.randint(classes, (batch, count), device=device)
    return Targets(torch.cat([corner, corner + size], 2), labels, torch.ones_like(labels, dtype=torch.bool))


def assigners_for(priors: Priors) -> list[Assigner]:
    """Those that are defined for such priors."""
    own = [CenterSampling()] if priors.layout.points else [MaxIoU(), MutualGuidance(count="iou")]
    guided = [MutualGuidance(count="dynamic_k"), MutualGuidance(count="mean_std"), MutualLabeling()]
    return [
        *own,
        ATSS(),
        TaskAligned(),
        SimOTA(),
        *guided,
        FreeAnchor(),
        PAA(),
        OTA(),
        DDOD(),
        DLA(),
        MuSu(),
        AutoAssign(),
        DW(),
    ]


def seconds(action: Callable[[], object], repeat: int, device: torch.device) -> float:
    """Seconds of one call, after one that is not counted: of all processors on a CPU, on the clock elsewhere."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    action()
    start = clock()
    for _ in range(repeat):
        action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / repeat


def peak(device: torch.device) -> float:
    """The most memory that was held so far, in MiB: of the process, or on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=int, nargs=2, default=[800, 1344], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--models", nargs="+", default=["retinanet", "fcos"])
    parser.add_argument("--assigners", nargs="+", help="their names; all that are defined for the model by default")
    parser.add_argument("--objects", type=int, nargs="+", default=[20])
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device, image = torch.device(args.device), (args.image[0], args.image[1])
    for model in (RetinaNetConfig(**SMALL), FCOSConfig(**SMALL)):
        if model.name not in args.models:
            continue
        priors = priors_of(model, image).to(device)
        torch.manual_seed(0)
        boxes = footprints(priors) + 4 * torch.randn(args.batch, len(priors.boxes), 4, device=device)
        logits = torch.randn(args.batch, len(priors.boxes), args.classes, device=device)
        predictions = Predictions(priors, logits, torch.zeros_like(boxes), boxes)
        print(f"{model.name}, {args.batch} x {len(priors.boxes):,} priors, {image[0]} x {image[1]} pixels")
        for g in args.objects:
            targets = random_objects(args.batch, g, args.classes, image, device)
            for assigner in assigners_for(priors):
                name, count = getattr(assigner, "name", ""), getattr(assigner, "count", "")
                if args.assigners and name not in args.assigners:
                    continue
                before = peak(device)
                spent = seconds(lambda: assigner(predictions, targets), args.repeat, device)  # noqa: B023
                print(f"{g:5d} objects  {name} {count:<20} {spent:8.3f} s  peak +{peak(device) - before:.0f} MiB")


if __name__ == "__main__":
    main()
