"""What a run shows in Ray's own Prometheus metrics, beside what its tracker gets.

Every node of a Ray cluster exports the metrics of its processes for Prometheus; `deploy/grafana_dashboard.json` draws
those of mgdet. They are gauges, because the counters of a process begin anew when it is started again. Setting one
costs microseconds, nothing is waited for, and whatever fails is left out: no training ends for its metrics.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mgdet.text import first_line
from mgdet.tracking import Tracker
from mgdet.tracking.run import Point

logger = logging.getLogger(__name__)

PREFIX = "ray_"
"""What Ray puts before the name of every metric."""
RUN, PART = "run", "part"
LOGGED: dict[str, tuple[str, str]] = {
    "mgdet_images_per_second": ("train/images_per_s", "images of all workers per second"),
    "mgdet_epoch": ("epoch", "epochs done, with a fraction"),
    "mgdet_loss": ("train/loss", "the training loss"),
    "mgdet_learning_rate": ("train/lr", "the learning rate"),
    "mgdet_bad_images": ("train/bad_images", "images that are left out because they cannot be read"),
    "mgdet_ap": ("val/AP", "average precision of the last evaluation"),
    "mgdet_evaluation_seconds": ("val/seconds", "seconds of the last evaluation"),
}
"""What is exported of the tracked metrics: their names there, and what they are."""
STEP, STEP_PART, LOADER_WAIT = "mgdet_step", "mgdet_step_part_seconds", "mgdet_loader_wait_share"
SAVES, SAVE_STALL, RESTARTS = "mgdet_saves", "mgdet_save_stall_seconds", "mgdet_restarts"
MEASURED: dict[str, str] = {
    STEP: "optimizer steps done",
    STEP_PART: "mean seconds of an optimizer step of rank 0 in each of its parts, by the clock of the host",
    LOADER_WAIT: "share of the time of steps that rank 0 waits for batches",
    SAVES: "checkpoints begun since the workers were started",
    SAVE_STALL: "seconds for which training has waited for checkpoints since the workers were started",
    RESTARTS: "times that Ray has started the workers again in this attempt",
}
EXPORTED: dict[str, str] = {**{name: said for name, (_, said) in LOGGED.items()}, **MEASURED}
"""Every metric that mgdet exports, by its name without Ray's prefix, and what it is."""

MakeGauge = Callable[[str, str, tuple[str, ...]], Any]
"""Makes a gauge with a method `set(value, tags)` from its name, what it is, and the names of its tags."""


def ray_gauge(name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
    """A gauge of Ray."""
    from ray.util.metrics import Gauge

    return Gauge(name, description=description, tag_keys=tag_keys)


class Exported:
    """The gauges of one run. No method raises."""

    def __init__(self, run: str, make: MakeGauge = ray_gauge) -> None:
        self.run, self._make = run, make
        self._gauges: dict[str, Any] = {}
        self._told = False

    def set(self, name: str, value: float, part: str | None = None) -> None:
        """Show a value of a metric in `EXPORTED`; `part` of the step that it is of, where it is of one."""
        try:
            tags = {RUN: self.run} if part is None else {RUN: self.run, PART: part}
            if name not in self._gauges:
                self._gauges[name] = self._make(name, EXPORTED[name], tuple(tags))
            self._gauges[name].set(float(value), tags)
        except Exception as error:  # whatever a monitoring system can raise
            if not self._told:
                self._told = True
                logger.warning("Ray's metrics do not show the run (%s); training goes on", first_line(error))


class ExportingTracker:
    """A tracker that also exports what it is given, and how long the parts of the steps in between took.

    To be made, used and closed in the process that trains.
    """

    def __init__(self, tracker: Tracker, exported: Exported) -> None:
        # Here, because the process that controls the workers needs `Exported` alone, and waits for each import.
        import torch

        from mgdet.training.profile import BESIDES, IN_A_STEP, stages_of

        self._tracker, self._exported, self._parts = tracker, exported, IN_A_STEP
        self._open = ExitStack()
        # Of the host's clock also on a GPU: to wait for its kernels would cost what is measured.
        self._times = self._open.enter_context(stages_of(torch.device("cpu"), IN_A_STEP + BESIDES))
        self._before: dict[str, float] = {}
        self._step: int | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._tracker.log(metrics, step)
        for name, (key, _) in LOGGED.items():
            if key in metrics:
                self._exported.set(name, metrics[key])
        if LOGGED["mgdet_images_per_second"][0] in metrics:
            self._export_parts(step)

    def artifact(self, data: bytes | str | Path, name: str) -> None:
        """See `Tracker`."""
        self._tracker.artifact(data, name)

    def points(self) -> Iterator[Point]:
        """See `Tracker`."""
        return self._tracker.points()

    def secure(self) -> None:
        """See `Tracker`."""
        self._tracker.secure()

    def close(self) -> object:
        """See `Tracker`."""
        self._open.close()
        return self._tracker.close()

    def _export_parts(self, step: int) -> None:
        """What has passed since the last call, in a mean step."""
        wall, show = self._times.wall, self._exported.set
        spent = {part: wall[part] - self._before.get(part, 0.0) for part in self._parts}
        show(STEP, step)
        show(SAVES, self._times.calls["save"])
        show(SAVE_STALL, wall["save"])
        if self._step is not None and step > self._step:
            for part, seconds in spent.items():
                show(STEP_PART, seconds / (step - self._step), part)
        if (whole := sum(spent.values())) > 0:
            show(LOADER_WAIT, spent["wait"] / whole)
        self._before, self._step = {part: wall[part] for part in self._parts}, step
