"""The progress of a training, and of other long work: shown on a screen if there is one, else in lines of the log."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


class Throughput:
    """Counts images and optimizer steps, and gives their rates since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.images = self.steps = 0

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
    """Says when it is time for another line, as metric points may come several times a second."""

    def __init__(self) -> None:
        self._next = 0.0

    def due(self) -> bool:
        """Whether a line is due, which is then taken as logged; the first one is at once."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + SECONDS_BETWEEN_LINES
        return True


class ProgressLog:
    """Counts images and logs a line every few seconds: how many are done, of how many, the rate, the time left."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.start = time.monotonic()
        self._next_line = self.start + SECONDS_BETWEEN_LINES

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
        rate = self.done / self.seconds
        left = duration((self.total - self.done) / rate) if rate else "?"
        if show(Progress(self.what, self.done, self.total, f"{rate:.1f} img/s, {left} left")):
            return
        if time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        logger.info("%s %d of %d images, %.1f images/s, %s left", self.what, self.done, self.total, rate, left)


def training_progress(
    epoch: int, epochs: int, step: int, total: int, metrics: Mapping[str, float], remaining: float
) -> Progress:
    """What `progress_line` says, as short as a bar needs it."""
    pace = f"loss {metrics['train/loss']:.4f}, {metrics['train/images_per_s']:.1f} img/s, {duration(remaining)} left"
    return Progress(f"epoch {epoch + 1}/{epochs}", step, total, pace)


def progress_line(
    epoch: int, epochs: int, step: int, total: int, metrics: Mapping[str, float], remaining: float
) -> str:
    """One line: where the training is, how it learns, how fast, and how long it still takes (without evaluations)."""
    parts = {k.removeprefix("train/loss_"): v for k, v in metrics.items() if k.startswith("train/loss_")}
    return (
        f"epoch {epoch + 1}/{epochs}  step {step}/{total}  loss {metrics['train/loss']:.4f} "
        f"({', '.join(f'{k} {v:.4f}' for k, v in parts.items())})  lr {metrics['train/lr']:.2e}  "
        f"{metrics['train/images_per_s']:.1f} img/s  ETA {duration(remaining)}"
    )
