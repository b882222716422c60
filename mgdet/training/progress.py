"""Lines of text on the progress of a training, and of other long work."""

import logging
import time
from collections.abc import Mapping

from mgdet.text import duration

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


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

    def add(self, images: int) -> None:
        """Count this many more `images` as done, and log a line if one is due."""
        self.done += images
        if time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        rate = self.done / self.seconds
        left = duration((self.total - self.done) / rate) if rate else "?"
        logger.info("%s %d of %d images, %.1f images/s, %s left", self.what, self.done, self.total, rate, left)


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
