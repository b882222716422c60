"""What each augmentation brings on the blood cells of BCCD: AP over three seeds, each alone and all of SSD's together.

    mgdet prepare coco --split train BCCD/train.json BCCD/images --split val BCCD/val.json BCCD/images --out data/bccd
    python benchmarks/augmentation.py --parallel 2

Each training runs in a process of its own with one thread, under `runs/augmentation`; what is finished there is not run
again. Prints a markdown table: mean over seeds and half the range, also of what is above flips alone, seed by seed.
"""

import argparse
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch

from mgdet.cluster.train import run
from mgdet.config import load

BUDGET = (
    *("train.evaluate_every=20", "train.precision=auto"),
    *("cluster.workers=0", "data.loader.workers=0", "tracking.enabled=false"),
)
T = "data.transform."
FLIPS = "flips alone"
SSD = [f"{T}augment.{name}={{}}" for name in ("photometric", "expand", "crop")] + [f"{T}interpolation={{}}"]
ARMS: dict[str, list[str]] = {
    FLIPS: [],
    "none": [f"{T}hflip=0", f"{T}vflip=0"],
    **{name: [f"{T}augment.{name}={{}}"] for name in ("photometric", "expand", "crop", "rotate", "mosaic", "mixup")},
    "copy-paste": [f"{T}augment.copy_paste={{}}"],
    "interpolation": [f"{T}interpolation={{}}"],
    "multi-scale": [f"{T}multi_scale={{}}"],
    "large-scale jitter": [
        *(f"{T}resize={{name: longest_edge, height: 240, width: 320}}", f"{T}scale_jitter={{low: 0.5, high: 2.0}}")
    ],
    "SSD's (photometric, expand, crop, interpolation)": SSD,
    "SSD's and mosaic": [*SSD, f"{T}augment.mosaic={{}}"],
}
METRICS = ("val/AP", "val/AP50", "val/AP75")


def train(arm: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Metrics of one training's last evaluation."""
    torch.set_num_threads(1)
    logging.getLogger("mgdet").setLevel(logging.WARNING)
    name = re.sub(r"[^\w]+", "-", f"{arm}-{args.epochs}-{seed}")
    own = (f"seed={seed}", f"name={name}", f"storage={args.storage}", f"data.uri={args.data}")
    experiment = load(args.config, [*BUDGET, *ARMS[arm], f"train.epochs={args.epochs}", *own])
    return run(experiment)[0].metrics


def rows(results: dict[tuple[str, int], dict[str, float]]) -> Iterator[str]:
    """A markdown table."""
    yield f"| augmentation | {' | '.join(key.removeprefix('val/') for key in METRICS)} | AP above flips alone | seeds |"
    yield f"|---|{'---|' * len(METRICS)}---|---|"
    for arm in dict.fromkeys(arm for arm, _ in results):
        seeds = [seed for a, seed in results if a == arm]
        cells = [_mean([results[arm, seed][key] for seed in seeds]) for key in METRICS]
        above = [results[arm, s]["val/AP"] - results[FLIPS, s]["val/AP"] for s in seeds if (FLIPS, s) in results]
        yield f"| {arm} | {' | '.join(cells)} | {_mean(above) if above else ''} | {len(seeds)} |"


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--config", default="bccd_retinanet_mutual_guidance")
    parser.add_argument("--data", default="data/bccd")
    parser.add_argument("--storage", default="runs/augmentation")
    args = parser.parse_args()
    jobs = [(arm, seed) for seed in args.seeds for arm in args.arms]
    results = {}
    with ProcessPoolExecutor(args.parallel, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(train, *job, args): job for job in jobs}
        for done in as_completed(waiting):
            results[waiting[done]] = done.result()
            print(f"{len(results)}/{len(jobs)} {waiting[done]} {done.result()['val/AP']:.3f}", flush=True)
    print("\n".join(rows({job: results[job] for job in jobs})))


if __name__ == "__main__":
    main()
