"""`train.profile`: how long each stage of a training step takes, as a table and as a trace of PyTorch's profiler."""

import gzip
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

IN_A_STEP: tuple[str, ...] = ("wait", "copy", "forward", "assign", "loss", "backward", "optimizer")
"""The stages of an optimizer step: waiting for the loader, the way to the device, the network, labels, losses, ..."""
BESIDES: tuple[str, ...] = ("save", "evaluate")
"""What else takes time, once an epoch or so."""
WARM_UP = 3
"""Steps before the first one that is measured, at most: memory is not yet allocated, kernels are not yet chosen."""


class StageTimes:
    """Seconds by stage, of the clock and of all the process's threads on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.wanted = IN_A_STEP
        """The stages that count now."""
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
"""Those that count now; one that waits for its device comes after one that does not, and so within it."""


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A stage of the training: measured where this is asked for, else it costs nothing. Stages are not nested."""
    asked = [times for times in _measured if name in times.wanted]
    if not asked:
        yield
        return
    starts = [times.now() for times in asked]
    with record_function(name):
        yield
    for times, start in zip(reversed(asked), reversed(starts), strict=True):
        times.add(name, start)


@contextmanager
def stages_of(device: torch.device, wanted: tuple[str, ...] = IN_A_STEP) -> Iterator[StageTimes]:
    """Measure the `wanted` stages within the block; for `cpu` as device nothing is waited for, also with a GPU."""
    times = StageTimes(device)
    times.wanted = wanted
    _measured.append(times)
    try:
        yield times
    finally:
        _measured.remove(times)


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
        if not self.steps or not steps:
            return
        self._warm_up = min(WARM_UP, steps - 1)
        self.steps = active = min(self.steps, steps - self._warm_up)
        activities = [ProfilerActivity.CPU]
        if self.times.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        plan = schedule(wait=0, warmup=self._warm_up, active=active, repeat=1)
        self._profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write_trace)
        self._profiler.start()
        if not self._warm_up:
            self._open()

    def step(self) -> None:
        """After each optimizer step."""
        if self._profiler is None:
            return
        self._done += 1
        last = self._done == self._warm_up + self.steps
        if last:
            self.times.add("step", self._start)
            self.times.wanted = BESIDES
            self.measured = self.steps
        self._profiler.step()  # begins the trace, or writes it, which must not count
        if last:
            self._profiler.stop()
            self._profiler = None
        elif self._done == self._warm_up:
            self._open()

    def end(self) -> None:
        """After the epoch, its evaluation and its save: write the table, if steps were measured."""
        if self.measured:
            text = self.table()
            logger.info("%s", text)
            self._write("stages.txt", text.encode())
            _measured.remove(self.times)
        self.steps = self.measured = 0

    def table(self) -> str:
        """A line for each stage: its milliseconds in a step, on the clock and on the CPU, and its share of the step."""
        times, n = self.times, self.measured
        whole = ("step", times.wall["step"], times.cpu["step"])
        rows = [(name, times.wall[name], times.cpu[name]) for name in IN_A_STEP]
        rest = whole[1] - sum(wall for _, wall, _ in rows), whole[2] - sum(cpu for *_, cpu in rows)
        lines = [
            f"{n} optimizer step{'s' * (n != 1)}, milliseconds of each:",
            f"{'stage':<12}{'clock':>10}{'CPU':>10}{'share':>8}",
        ]
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

    def _open(self) -> None:
        """Begin to measure the stages."""
        _measured.append(self.times)
        self._start = self.times.now()

    def _write_trace(self, profiler: profile) -> None:
        for event in profiler.key_averages():
            if event.key in ("gloo:all_reduce", "nccl:all_reduce"):
                self.times.wall["all-reduce"] += max(event.cpu_time_total, event.device_time_total) / 1e6
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "trace.json"
            profiler.export_chrome_trace(str(path))
            self._write("trace.json.gz", gzip.compress(path.read_bytes()))

    def _write(self, name: str, data: bytes) -> None:
        """Keep a file in the run's directory and with the tracker; a storage that fails ends no training."""
        self.tracker.artifact(data, f"profile/{name}")
        directory = locate(self.run_uri) / "profile"
        try:
            directory.mkdir()
            (directory / name).write(data)
        except OSError as error:
            logger.warning("%s was not written: %s", directory / name, error)
