"""Trainings to be disturbed, and what the tests of faults look at."""

import contextlib
import time
from pathlib import Path

import psutil

from tests.cluster.clusters import ray_children
from tests.faults import cost, note
from tests.forked import Job
from tests.small import small_experiment

TRAIN = Path(__file__).parents[2] / "jobs" / "train.py"


def experiment(directory, name, workers=2, **changes):
    changes = {"train__epochs": 4, "train__evaluate_every": 2, "data__generate__train": 12, **changes}
    changes |= {"train__checkpoint_every_steps": 2, "train__log_every": 1, "cluster__workers": workers}
    return small_experiment(directory, name=name, **{"cluster__cpus_per_worker": 0.5, **changes})


def one_on_each_node(shared):
    """Changes of an experiment: its workers fit on nodes of the fixture `add_node`, one on each, not on the head."""
    return {**shared, "cluster__cpus_per_worker": 3, "data__loader__workers": 0}


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
    return Job("train", [path], log)


def wait(process, condition=None, seconds=600):
    """For the process to end, or for a condition before it does."""
    deadline = time.time() + seconds
    while process.poll() is None and not (condition and condition()):
        assert time.time() < deadline
        time.sleep(0.05)


def titled(title):
    """Processes of Ray whose title holds `title`."""
    found = []
    for process in ray_children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found
