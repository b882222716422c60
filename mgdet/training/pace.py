"""How far a long pass over images is, said every few seconds."""

import logging
import time

from mgdet.training.progress import duration

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


class Pace:
    """Counts images and logs a line now and then: done, total, rate, time left."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.start = time.monotonic()
        self._next_line = self.start + SECONDS_BETWEEN_LINES

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return max(time.monotonic() - self.start, 1e-9)

    def add(self, images: int) -> None:
        """So many more are done."""
        self.done += images
        if time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        rate = self.done / self.seconds
        left = duration((self.total - self.done) / rate) if rate else "?"
        log.info("%s %d of %d images, %.1f images/s, %s left", self.what, self.done, self.total, rate, left)
