"""The switches of mutual labeling against each other and the controls, on the generated shapes: docs/results.md.

    python benchmarks/labeling_study.py --parallel 2 --seeds 0 1 2 [--detectors fcos retinanet] [--arms baseline]

Each training runs in a process of its own with one thread, under `runs/study`; what is finished there is not run again.
Prints a markdown table: mean over seeds, and half the range.
"""

import argparse
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from mgdet.cluster.train import run
from mgdet.config import load

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
BUDGET = (
    *("data.uri=data/shapes-study", "data.generate.seed=1", "train.evaluate_every=10", "train.precision=auto"),
    *("cluster.workers=0", "data.loader.workers=0", "tracking.enabled=false"),
)
DETECTORS = {"retinanet": ["model.name=retinanet"], "fcos": ["model.name=fcos"]}
LABELING = "assigner.name=mutual_labeling"
ARMS: dict[str, list[str]] = {
    "baseline": [],
    "atss": ["assigner.name=atss"],
    "mutual_guidance": ["assigner.name=mutual_guidance"],
    **{
        f"{criterion}, {count}": [LABELING, f"assigner.criterion={criterion}", f"assigner.count={count}"]
        for criterion in ("amplified", "score", "regularised")
        for count in ("baseline", "mean_std", "dynamic_k")
    },
    **{
        f"regularised, baseline, {change}": [LABELING, "assigner.criterion=regularised", f"assigner.{change}"]
        for change in ("direction=loc_to_cls", "direction=cls_to_loc", "warmup_epochs=2", "region=centre")
    },
    "baseline, IoU branch": ["model.quality=iou"],
    "baseline, quality focal loss": ["loss.cls.name=quality_focal"],
}
METRICS = ("val/AP", "val/AP75", "val/divergence_raw", "val/divergence")


def overrides(detector: str, arm: str) -> list[str]:
    """What is changed in quickstart."""
    own = "assigner.name=max_iou" if detector == "retinanet" else "assigner.name=center_sampling"
    return [*BUDGET, *DETECTORS[detector], own, *ARMS[arm]]


def train(detector: str, arm: str, seed: int, storage: str) -> dict[str, float]:
    """Metrics of one training's last evaluation."""
    torch.set_num_threads(1)
    logging.getLogger("mgdet").setLevel(logging.WARNING)
    name = re.sub(r"[^\w]+", "-", f"{detector}-{arm}-{seed}")
    experiment = load(QUICKSTART, [*overrides(detector, arm), f"seed={seed}", f"name={name}", f"storage={storage}"])
    return run(experiment)[0].metrics


def rows(results: dict[tuple[str, str, int], dict[str, float]]) -> Iterator[str]:
    """A markdown table."""
    yield "| detector | assigner | AP | AP75 | divergence raw | final | seeds |"
    yield "|---|---|---|---|---|---|---|"
    for detector, arm in dict.fromkeys((d, a) for d, a, _ in results):
        found = [m for (d, a, _), m in results.items() if (d, a) == (detector, arm)]
        cells = []
        for key in METRICS:
            values = [m.get(key, m.get("val/divergence", float("nan"))) for m in found]
            cells.append(f"{sum(values) / len(values):.3f} ± {(max(values) - min(values)) / 2:.3f}")
        yield f"| {detector} | {arm} | {' | '.join(cells)} | {len(found)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--detectors", nargs="+", default=list(DETECTORS), choices=list(DETECTORS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--storage", default="runs/study")
    args = parser.parse_args()
    jobs = [(d, a, s) for s in args.seeds for d in args.detectors for a in args.arms]
    results = {}
    with ProcessPoolExecutor(args.parallel, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(train, *job, args.storage): job for job in jobs}
        for done in as_completed(waiting):
            results[waiting[done]] = done.result()
            print(f"{len(results)}/{len(jobs)} {waiting[done]} {done.result()['val/AP']:.3f}", flush=True)
    print("\n".join(rows({job: results[job] for job in jobs})))


if __name__ == "__main__":
    main()
