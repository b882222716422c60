"""Milliseconds per image and peak memory of the assigners at 800x1333 (about 200,000 anchors).

python benchmarks/assign.py [--objects 10 100] [--device cuda]
"""

import argparse
import resource
import time

import torch

from mgdet.assign import MaxIoU, MutualGuidance
from mgdet.models.anchors import AnchorConfig, grid_priors
from mgdet.structures import Predictions, Targets

IMAGE = (800, 1344)
CLASSES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    grids = [(-(-IMAGE[0] // s), -(-IMAGE[1] // s)) for s in (8, 16, 32, 64, 128)]
    priors = grid_priors(AnchorConfig().generator(), IMAGE, grids, device)
    a = len(priors.boxes)
    torch.manual_seed(0)
    boxes = priors.boxes + 4 * torch.randn(args.batch, a, 4, device=device)
    predictions = Predictions(torch.randn(args.batch, a, CLASSES, device=device), torch.zeros_like(boxes), boxes)
    for g in args.objects:
        corner = torch.rand(args.batch, g, 2, device=device) * 700
        size = torch.rand(args.batch, g, 2, device=device) * 300 + 16
        valid = torch.ones(args.batch, g, dtype=torch.bool, device=device)
        targets = Targets(torch.cat([corner, corner + size], 2), torch.zeros_like(valid, dtype=torch.int64), valid)
        for assigner in (MaxIoU(), MutualGuidance(), MutualGuidance(count="dynamic_k")):
            assigner(priors, predictions, targets)
            start = time.perf_counter()
            for _ in range(args.repeat):
                assigner(priors, predictions, targets)
            if device.type == "cuda":
                torch.cuda.synchronize()
            milliseconds = (time.perf_counter() - start) * 1000 / args.repeat / args.batch
            label = f"{assigner.name} {getattr(assigner, 'count', '')}"
            print(f"{g:4d} objects, {a} anchors, {label:<26} {milliseconds:8.1f} ms/image")
    if device.type == "cuda":
        print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    else:
        print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of the process")


if __name__ == "__main__":
    main()
