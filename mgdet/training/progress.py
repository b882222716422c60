"""The progress of a training, and of other long work: shown on a screen if there is one, else in lines of the log."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mgdet.text import duration

if TYPE_CHECKING:  # the command shows progress before it imports torch
    from mgdet.structures import Batch

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is."""

    what: str
    """What is being done, such as `epoch 2/12`."""
    done: int
    total: int
    detail: str
    """What stands after the numbers: how it goes, how fast, the time left."""


Screen = Callable[[Progress], None]
"""Shows the progress; called often, so it decides itself when it draws."""

_screens: list[Screen] = []


@contextmanager
def shown_by(screen: Screen) -> Iterator[None]:
    """Show all progress within the block on this screen, instead of lines in the log."""
    _screens.append(screen)
    try:
        yield
    finally:
        _screens.remove(screen)


def has_screen() -> bool:
    """Whether progress is shown on a screen in this process."""
    return bool(_screens)


def show(progress: Progress) -> bool:
    """Show the progress on the screen; False if there is none: then a line of the log says it."""
    if _screens:
        _screens[-1](progress)
    return bool(_screens)


WAIT_SHOWN = 0.05
"""Share of the time from which on a line says that the training waits for images."""

T = TypeVar("T")


class Throughput:
    """Counts images and optimizer steps, and gives their rates since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.images = self.steps = 0
        self._waited = 0.0

    def next(self, batches: Iterator[T]) -> T | None:
        """The next batch, None after the last one; the time until it is there counts as waiting."""
        start = time.perf_counter()
        batch = next(batches, None)
        self._waited += time.perf_counter() - start
        return batch

    def waiting(self) -> float:
        """Share of the time since this was made that was spent waiting for batches."""
        return self._waited / max(time.perf_counter() - self.start, 1e-9)

    def add(self, images: int) -> None:
        """Count one optimizer step over this many `images` (of all workers)."""
        self.images += images
        self.steps += 1

    def images_per_second(self) -> float:
        """Images of all workers per second since this was made."""
        return self.images / max(time.perf_counter() - self.start, 1e-9)

    def steps_per_second(self) -> float:
        """Optimizer steps per second since this was made."""
        return self.steps / max(time.perf_counter() - self.start, 1e-9)


class Lines:
    """Whether it is time for another line of the log, as there may be reason for several a second."""

    def __init__(self, first_after: float = 0.0) -> None:
        self._next = time.monotonic() + first_after

    def due(self) -> bool:
        """True where the last line is long enough ago; then the next one waits again."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + SECONDS_BETWEEN_LINES
        return True


class ProgressLog:
    """Counts images and logs a line every few seconds: how many are done, of how many, the rate, the time left.

    Args:
        what: is being done to them, such as `evaluated`.
        total: how many there are.
        before: how many of them were done before.
    """

    def __init__(self, what: str, total: int, before: int = 0) -> None:
        self.what, self.total, self.before, self.done = what, total, before, before
        self.start = time.monotonic()
        self._lines = Lines(SECONDS_BETWEEN_LINES)

    @property
    def seconds(self) -> float:
        """Seconds since this was made."""
        return max(time.monotonic() - self.start, 1e-9)

    def over(self, batches: "Iterable[Batch]") -> "Iterator[Batch]":
        """The same batches, whose images are counted when the next one is asked for."""
        for batch in batches:
            yield batch
            self.add(len(batch.images))

    def add(self, images: int) -> None:
        """Count this many more `images` as done, and log a line if one is due."""
        self.done += images
        rate = (self.done - self.before) / self.seconds
        left = duration((self.total - self.done) / rate) if rate else "?"
        if show(Progress(self.what, self.done, self.total, f"{rate:.1f} img/s, {left} left")) or not self._lines.due():
            return
        logger.info("%s %d of %d images, %.1f images/s, %s left", self.what, self.done, self.total, rate, left)


def training_progress(
    epoch: int, epochs: int, step: int, total: int, metrics: Mapping[str, float], remaining: float, waiting: float = 0.0
) -> Progress:
    """What `progress_line` says, as short as a bar needs it."""
    pace = f"loss {metrics['train/loss']:.4f}, {metrics['train/images_per_s']:.1f} img/s, {duration(remaining)} left"
    if waiting > WAIT_SHOWN:
        pace += f", {waiting:.0%} waiting for images"
    return Progress(f"epoch {epoch + 1}/{epochs}", step, total, pace)


def progress_line(
    epoch: int, epochs: int, step: int, total: int, metrics: Mapping[str, float], remaining: float, waiting: float = 0.0
) -> str:
    """One line: where the training is, how it learns, how fast, and how long it still takes (without evaluations).

    `waiting` is the share of the time in which the network had no images, said where it is more than `WAIT_SHOWN`.
    """
    parts = {k.removeprefix("train/loss_"): v for k, v in metrics.items() if k.startswith("train/loss_")}
    return (
        f"epoch {epoch + 1}/{epochs}  step {step}/{total}  loss {metrics['train/loss']:.4f} "
        f"({', '.join(f'{k} {v:.4f}' for k, v in parts.items())})  lr {metrics['train/lr']:.2e}  "
        f"{metrics['train/images_per_s']:.1f} img/s  ETA {duration(remaining)}"
        + (f"  {waiting:.0%} waiting for images" if waiting > WAIT_SHOWN else "")
    )
