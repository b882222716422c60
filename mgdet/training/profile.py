"""`train.profile`: how long each stage of a training step takes, as a table and as a trace of PyTorch's profiler."""

import itertools
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from mgdet.storage import locate
from mgdet.tracking import Tracker

logger = logging.getLogger(__name__)

IN_A_STEP = ("wait", "copy", "forward", "assign", "loss", "backward", "optimizer")
"""The stages of an optimizer step: waiting for the loader, the way to the device, the network, labels, losses, ..."""
BESIDES = ("save", "evaluate")
"""What else takes time, once an epoch or so."""
WARM_UP = 3
"""Steps before the first one that is measured, at most: memory is not yet allocated, kernels are not yet chosen."""


class StageTimes:
    """Seconds by stage, of the clock and of all the process's threads on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def now(self) -> tuple[float, float]:
        """The two clocks, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()

    def add(self, name: str, start: tuple[float, float]) -> None:
        """Count the time since `start` for a stage."""
        wall, cpu = self.now()
        self.wall[name] += wall - start[0]
        self.cpu[name] += cpu - start[1]
        self.calls[name] += 1


T = TypeVar("T")

_measured: list[StageTimes] = []


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A stage of the training: measured where this is asked for, else it costs nothing. Stages are not nested."""
    if not _measured:
        yield
        return
    times = _measured[-1]
    start = times.now()
    with record_function(name):
        yield
    times.add(name, start)


def staged(name: str, items: Iterator[T]) -> Iterator[T]:
    """The same items; getting each of them is a stage."""
    while True:
        with stage(name):
            found = list(itertools.islice(items, 1))
        if not found:
            return
        yield found[0]


class Profile:
    """Measures some optimizer steps of the first epoch that this process trains, its save and its evaluation.

    With no steps to measure it does nothing. On a GPU each stage waits for its kernels, so that they count where they
    belong: the steps that are measured are slower than others.
    """

    def __init__(self, steps: int, device: torch.device, run_uri: str, tracker: Tracker) -> None:
        self.steps, self.run_uri, self.tracker = steps, run_uri, tracker
        self.times = StageTimes(device)
        self.measured = 0
        self._profiler: profile | None = None
        self._warm_up = self._done = 0
        self._start = (0.0, 0.0)

    def begin(self, steps: int) -> None:
        """Before an epoch of so many steps; later epochs are not measured."""
        if not self.steps:
            return
        self._warm_up = min(WARM_UP, max(0, steps - 1))
        active = max(1, min(self.steps, steps - self._warm_up))
        activities = [ProfilerActivity.CPU]
        if self.times.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        plan = schedule(wait=0, warmup=self._warm_up, active=active, repeat=1)
        self._profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write_trace)
        self._profiler.start()
        self.steps = active
        self._count(0)

    def step(self) -> None:
        """After each optimizer step."""
        if self._profiler is not None:
            self._profiler.step()
            self._count(1)

    def end(self) -> None:
        """After the epoch, its evaluation and its save: write the table, if steps were measured."""
        if self.steps and self.measured:
            text = self.table()
            logger.info("%s", text)
            self._write("stages.txt", text.encode())
        self._stop()
        self.steps = 0

    def table(self) -> str:
        """A line for each stage: its milliseconds in a step, on the clock and on the CPU, and its share of the step."""
        times, n = self.times, self.measured
        rows = [(name, times.wall[name], times.cpu[name]) for name in IN_A_STEP]
        whole = ("step", times.wall["step"], times.cpu["step"])
        rest = [whole[i] - sum(row[i] for row in rows) for i in (1, 2)]  # type: ignore[misc, operator]  # numbers
        lines = [f"{n} optimizer steps, milliseconds of each:", f"{'stage':<12}{'clock':>10}{'CPU':>10}{'share':>8}"]
        for name, wall, cpu in [*rows, ("other", *rest), whole]:
            share = wall / max(whole[1], 1e-9)
            lines.append(f"{name:<12}{wall / n * 1e3:10.1f}{cpu / n * 1e3:10.1f}{share:8.1%}")
        if "all-reduce" in times.wall:
            lines.append(f"{'all-reduce':<12}{times.wall['all-reduce'] / n * 1e3:10.1f}   (within backward)")
        for name in BESIDES:
            if calls := times.calls[name]:
                wall, cpu = times.wall[name] / calls, times.cpu[name] / calls
                lines.append(f"{name:<12}{wall * 1e3:10.1f}{cpu * 1e3:10.1f}   (not in a step)")
        return "\n".join(lines)

    def _count(self, more: int) -> None:
        """Begin after the warm-up, and end with the last step that is measured."""
        self._done += more
        if self._done == self._warm_up:
            _measured.append(self.times)
            self._start = self.times.now()
        elif self._done == self._warm_up + self.steps:
            self.times.add("step", self._start)
            self.measured = self.steps
            self._close_profiler()

    def _close_profiler(self) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _stop(self) -> None:
        self._close_profiler()
        if self.times in _measured:
            _measured.remove(self.times)

    def _write_trace(self, profiler: profile) -> None:
        for event in profiler.key_averages():
            if event.key in ("gloo:all_reduce", "nccl:all_reduce"):
                self.times.wall["all-reduce"] += max(event.cpu_time_total, event.device_time_total) / 1e6
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "trace.json.gz"
            profiler.export_chrome_trace(str(path))
            self._write("trace.json.gz", path.read_bytes())

    def _write(self, name: str, data: bytes) -> None:
        directory = locate(self.run_uri) / "profile"
        directory.mkdir()
        (directory / name).write(data)
        self.tracker.artifact(data, f"profile/{name}")
