"""The evaluation of a checkpoint by another process than those that train: its numbers are those of the training.

As a program, `python -m mgdet.inference.aside CHECKPOINT ANSWER DEVICE THREADS [PLUGIN...]`, it writes to the file
ANSWER what `answer` returns.
"""

import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

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


def answer(path: str, device: torch.device) -> Judged | MgdetError:
    """What a training wants to know of a checkpoint, a path or URI, or why it cannot be evaluated."""
    start = time.perf_counter()
    try:
        trained = build_detector(read_detector(path), device=device)
        found = judge(trained)
    except MgdetError as error:
        return error
    seconds = time.perf_counter() - start
    kept, experiment = _Kept(), trained.experiment
    kept.log({f"time/{part}": taken for part, taken in found.evaluated.seconds.items()}, trained.step)
    if not experiment.tracking.pictures:
        return Judged(found.evaluation.metrics, seconds, kept.logged, (), None, None)
    drawing = Drawing(kept, experiment, found.pictures.dataset, device, share=None)
    drawing.after_evaluation(found.evaluated, trained.detector, Position(epoch=trained.epoch, step=trained.step))
    artifacts = tuple(kept.artifacts)
    return Judged(found.evaluation.metrics, seconds, kept.logged, artifacts, drawing.last, drawing.labels)


def main(arguments: Sequence[str]) -> None:
    """The program."""
    checkpoint, file, device, threads, *plugins = arguments
    torch.set_num_threads(int(threads))
    load_plugins(plugins, (Path(),))
    Path(file).write_bytes(pickle.dumps(answer(checkpoint, torch.device(device))))


if __name__ == "__main__":
    main(sys.argv[1:])
