"""How long a training stands still for its evaluations: by its workers, and aside.

    python benchmarks/aside.py             # the quickstart with one worker on two CPUs, three epochs
    python benchmarks/aside.py --epochs 5 data.generate.val=1000      # any overrides of the quickstart

Each training runs as `mgdet train`, twice in turn. "still" is the time from the last step of an epoch to the first one
of the next, of all epochs but the last; "end" that from the last step to the last evaluation; "steps" what all steps
take together. Metrics and weights are compared.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mgdet.training.checkpoint import CheckpointStore

FIXED = (
    "cluster.workers=1",
    "cluster.cpus_per_worker=1",
    "train.log_every=1",
    "train.checkpoint_every_s=null",
    "tracking.enabled=false",
    "tracking.pictures=false",
)


def train(storage: Path, where: str, name: str, overrides: list[str]) -> list[dict[str, Any]]:
    """Train; the lines of the journal."""
    command = [sys.executable, "-m", "mgdet", "train", "quickstart", *FIXED, *overrides]
    command += [f"storage={storage}", f"name={name}", f"evaluation.where={where}", "-q"]
    subprocess.run(command, check=True)
    return [json.loads(line) for line in (storage / name / "metrics.jsonl").read_text().splitlines()]


def times(journal: list[dict[str, Any]], epochs: int) -> dict[str, float]:
    """Seconds, from the journal of a training."""
    steps = [(line["step"], line["time"]) for line in journal if "train/loss" in line["metrics"]]
    each = len(steps) // epochs
    still = [steps[e * each][1] - steps[e * each - 1][1] for e in range(1, epochs)]
    inside = [b[1] - a[1] for n, (a, b) in enumerate(itertools.pairwise(steps), 1) if n % each]
    last = max(line["time"] for line in journal if "val/seconds" in line["metrics"])
    return {
        "still": statistics.median(still),
        "end": last - steps[-1][1],
        "steps": sum(inside),
        "first step to last evaluation": last - steps[0][1],
    }


def outcome(storage: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Weights and metrics of the last checkpoint."""
    store = CheckpointStore(str(storage / name))
    last = store.complete()[-1]
    return store.load(last)["model"], last.metrics


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        storage = Path(directory)
        overrides = [f"train.epochs={args.epochs}", f"data.uri={storage / 'shapes'}", *args.overrides]
        found = {}
        for turn in (1, 2):
            for where in ("workers", "aside"):
                name = f"{where}-{turn}"
                parts = times(train(storage, where, name, overrides), args.epochs)
                found[name] = outcome(storage, name)
                print(
                    f"{name:<12}", "  ".join(f"{part} {seconds:.2f} s" for part, seconds in parts.items()), flush=True
                )
        weights, metrics = found["workers-1"]
        for name, (others, theirs) in found.items():
            same = all(torch.equal(weights[key], others[key]) for key in weights), metrics == theirs
            print(f"{name:<12} the same weights: {same[0]}, the same metrics: {same[1]}")


if __name__ == "__main__":
    main()
