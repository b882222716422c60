"""Small trained detectors and the jobs that use them, for the tests of `jobs/evaluate.py` and `jobs/predict.py`."""

import contextlib
import importlib.util
import io
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from mgdet.config import Experiment
from mgdet.runs.launch import prepare
from mgdet.tracking import NullTracker
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from tests.small import small_experiment

MODELS = {
    "retinanet": {"train__ema": {"enabled": True, "decay": 0.9}},
    "fcos": {
        "model": {"name": "fcos", "backbone": "mobilenet_v3_small", "norm": "gn", "channels": 32},
        "assigner": {"name": "center_sampling"},
        "data__transform__resize": {"name": "longest_edge", "height": 96, "width": 64},
    },
}
"""One with a moving average and images of one size, one without and with padding."""


class Answer(NamedTuple):
    """What a command gives back."""

    status: int
    out: str  # the log goes there too
    err: str


def import_job(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "jobs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"jobs_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(job: ModuleType, *args: object) -> Answer:
    """`python jobs/<job>.py ARGS` in this process."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    logger, handler = logging.getLogger("mgdet"), logging.StreamHandler(out)
    level = logger.level
    logger.addHandler(handler)
    sys.argv = [f"jobs/{job.__name__.removeprefix('jobs_')}.py", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = job.main()
    except SystemExit as refused:  # argparse
        status = refused.code
    finally:
        sys.argv = argv
        logger.removeHandler(handler)
        logger.setLevel(level)
    return Answer(status, out.getvalue(), err.getvalue())


def refused(answer: Answer) -> str:
    """The one line of an error."""
    assert answer.status == 2
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1, answer.err
    return answer.err


def train(directory: Path, name: str, **changes) -> tuple[Experiment, Worker]:
    """A small detector after two epochs; thresholds are low, so that it finds something."""
    low = {"model__postprocess": {"score_threshold": 0.005}, "evaluation": {"iou_floor": 0.2, "min_candidates": 3}}
    settings = {**MODELS[name], "name": name, **low, **changes}
    experiment = prepare(small_experiment(directory, **settings), cpus=1, gpus=0)[0]
    worker = Worker(experiment, World(0, 1, torch.device("cpu")), NullTracker())
    try:
        worker.run()
    finally:
        torch.use_deterministic_algorithms(False)
    return experiment, worker
