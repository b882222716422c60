"""A progress bar on a terminal, and log lines that do not tear it."""

import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from mgdet.training.progress import Progress, shown_by

SECONDS_BETWEEN_DRAWINGS = 0.1


class Bar:
    """Draws the progress of one piece of work after the other, each until it is done."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.drawn = stream, 0.0
        self.bar: Any = None

    def __call__(self, progress: Progress) -> None:
        """Draw how far the work is; does nothing if that was drawn just before."""
        from tqdm import tqdm

        finished = progress.done >= progress.total
        if self.bar is not None and (self.bar.total != progress.total or progress.done < self.bar.n):
            self.close()
        if not finished and time.monotonic() - self.drawn < SECONDS_BETWEEN_DRAWINGS:
            return
        self.drawn = time.monotonic()
        columns, lines = shutil.get_terminal_size()  # 80, 24 where the terminal does not know its size
        if self.bar is None:
            form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
            self.bar = tqdm(
                desc=progress.what,
                initial=progress.done,
                total=progress.total,
                file=self.stream,
                ncols=columns - 1,
                nrows=lines,
                bar_format=form,
            )
        self.bar.ncols = columns - 1
        self.bar.n = progress.done
        self.bar.set_description_str(progress.what, refresh=False)
        self.bar.set_postfix_str(progress.detail, refresh=False)
        self.bar.refresh()
        if finished:
            self.close()

    def close(self) -> None:
        """Leave the bar as it is, and start the next line."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class AboveTheBar(logging.StreamHandler[TextIO]):
    """Prints records above a bar that is drawn on the same terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Take the bar away, print, and draw it again."""
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


@contextmanager
def progress_bar() -> Iterator[None]:
    """Draw a bar on standard error for the work in the block, if that is a terminal and mgdet says what it does."""
    if not (sys.stderr.isatty() and logging.getLogger("mgdet").isEnabledFor(logging.INFO)):
        yield
        return
    bar = Bar(sys.stderr)
    try:
        with shown_by(bar):
            yield
    finally:
        bar.close()
