"""The evaluation of a checkpoint by another process than those that train: its numbers are those of the training.

As a program, `python -m mgdet.inference.aside REQUEST ANSWER`, it reads a `Request` and writes what `answer` returns.
It ends with the process that holds the other end of its standard input.
"""

import os
import pickle
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mgdet.config import Experiment, validate
from mgdet.errors import MgdetError
from mgdet.inference.evaluate import judge
from mgdet.inference.load import build_detector, read_detector
from mgdet.plugins import load_plugins
from mgdet.tracking import NullTracker
from mgdet.training.drawing import Drawing
from mgdet.training.evaluations import Judged
from mgdet.training.position import Position


class _Kept(NullTracker):
    """Keeps what is logged for another process."""

    def __init__(self) -> None:
        self.logged: dict[str, float] = {}
        self.artifacts: list[tuple[bytes, str]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker`; all is of one step."""
        self.logged |= metrics

    def artifact(self, data: bytes | str | Path, name: str) -> None:
        """See `Tracker`."""
        content = data.read_bytes() if isinstance(data, Path) else data.encode() if isinstance(data, str) else data
        self.artifacts.append((content, name))


class Request(NamedTuple):
    """What the program needs to know, as plain values."""

    checkpoint: str
    experiment: dict[str, Any]
    device: str
    threads: int


def answer(path: str, experiment: Experiment, device: torch.device) -> Judged | MgdetError:
    """What a training wants to know of one of its checkpoints, or why it cannot be evaluated.

    Args:
        path: of the checkpoint, or its URI.
        experiment: of the training as it runs now, resolved: how it evaluates, and where its data are.
        device: which evaluates.
    """
    start = time.perf_counter()
    tree = experiment.model_dump(mode="json")
    now = {f"evaluation.{key}": value for key, value in tree["evaluation"].items()}
    now |= {f"data.loader.{key}": value for key, value in tree["data"]["loader"].items()}
    try:
        trained = build_detector(read_detector(path), now, device)
        found = judge(trained, experiment.data.uri, experiment.data.val_split)
    except MgdetError as error:
        return error
    seconds = time.perf_counter() - start
    kept = _Kept()
    kept.log({f"time/{part}": taken for part, taken in found.evaluated.seconds.items()}, trained.step)
    if not experiment.tracking.pictures:
        return Judged(found.evaluation.metrics, seconds, kept.logged, (), None, None)
    drawing = Drawing(kept, experiment, found.pictures.dataset, device, share=None)
    drawing.after_evaluation(found.evaluated, trained.detector, Position(epoch=trained.epoch, step=trained.step))
    artifacts = tuple(kept.artifacts)
    return Judged(found.evaluation.metrics, seconds, kept.logged, artifacts, drawing.last, drawing.labels)


def main(arguments: Sequence[str]) -> None:
    """The program."""
    request, file = map(Path, arguments)
    asked = Request(*pickle.loads(request.read_bytes()))
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    torch.set_num_threads(asked.threads)
    load_plugins(asked.experiment["plugins"])
    experiment = validate(asked.experiment, "the experiment of the training")
    found = pickle.dumps(answer(asked.checkpoint, experiment, torch.device(asked.device)))
    part = file.with_suffix(".part")
    part.write_bytes(found)
    part.rename(file)


def _end_with_the_other() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
