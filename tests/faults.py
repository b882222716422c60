"""What a fault costs: read from a run's journal, and noted for the table in docs/operations.md."""

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from mgdet.config import Experiment
from mgdet.training.checkpoint import CheckpointStore


class Cost(NamedTuple):
    """Of a fault, as the journal of metrics shows it (`train.log_every` must be 1)."""

    steps_repeated: int
    seconds: float
    """The longest silence between two steps."""


@contextmanager
def disk_of(mib: int, place: Path) -> Iterator[Path]:
    """A disk of so many MiB at `place`; the test is skipped where none can be mounted."""
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(place)]
    made = subprocess.run(["mount", *options], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def step_records(journal: Path) -> list[dict[str, Any]]:
    """The records of optimizer steps in `metrics.jsonl`, in the order in which they were made."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return [line for line in lines if "train/loss" in line["metrics"]]


def weights(experiment: Experiment) -> dict[str, torch.Tensor]:
    """Of the last checkpoint of a run."""
    store = CheckpointStore(experiment.run_uri)
    state: dict[str, torch.Tensor] = store.load(store.committed()[-1])["model"]
    return state


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Equal, bit for bit."""
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in theirs)


def cost(journal: Path) -> Cost:
    """Steps done twice and the longest silence. Fails if a step is missing."""
    lines = step_records(journal)
    steps = [line["step"] for line in lines]
    assert sorted(set(steps)) == list(range(1, max(steps) + 1)), "a step is missing"
    silence = max(b["time"] - a["time"] for a, b in itertools.pairwise(lines))
    return Cost(len(steps) - len(set(steps)), silence)


def note(fault: str, *, steps_repeated: int, seconds: float, **more: object) -> None:
    """Append one JSON line to the file that MGDET_FAULTS names, if it does."""
    if path := os.environ.get("MGDET_FAULTS"):
        test = os.environ["PYTEST_CURRENT_TEST"].split(" ")[0].split("[")[0]
        line = {"fault": fault, "steps_repeated": steps_repeated, "seconds": round(seconds, 2), "test": test, **more}
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")
