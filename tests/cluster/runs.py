"""Trainings to be disturbed, and what the tests of faults look at."""

import subprocess
import sys
import time
from pathlib import Path

from tests.faults import cost, note
from tests.small import small_experiment

TRAIN = Path(__file__).parents[2] / "jobs" / "train.py"


def experiment(directory, name, workers=2, **changes):
    changes = {"train__epochs": 6, "train__batch_size": 2, "data__generate__train": 12, **changes}
    changes |= {"train__checkpoint_every_steps": 2, "train__log_every": 1, "cluster__workers": workers}
    return small_experiment(directory, name=name, **{"cluster__cpus_per_worker": 0.5, **changes})


def checkpoints(e):
    return len(list(Path(e.run_uri).glob("checkpoints/*.json")))


def note_cost(fault, e):
    """What it cost, by the journal of metrics; sees that no step is missing."""
    found = cost(Path(e.run_uri) / "metrics.jsonl")
    note(fault, **found._asdict())
    return found


def job(e, directory, log):
    """`jobs/train.py` as a process."""
    path = directory / f"{e.name}.yaml"
    path.write_text(e.to_yaml())
    with open(log, "w") as out:
        return subprocess.Popen([sys.executable, str(TRAIN), str(path)], stdout=out, stderr=subprocess.STDOUT)


def wait(process, condition=None, seconds=600):
    """For the process to end, or for a condition before it does."""
    deadline = time.time() + seconds
    while process.poll() is None and not (condition and condition()):
        assert time.time() < deadline
        time.sleep(0.05)
