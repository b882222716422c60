"""How a training is asked to stop from outside: SIGTERM to the driver, which its workers do not get."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mgdet.storage import locate


class StopRequest:
    """`stop` in a run's directory: the workers take a checkpoint and end when they see it. Never raises."""

    def __init__(self, run_uri: str) -> None:
        self.file = locate(run_uri) / "stop"

    def create(self) -> None:
        """Ask."""
        with suppress(OSError):  # then the driver is killed in the end, and the last checkpoint is what there is
            self.file.write(b"")

    def exists(self) -> bool:
        """Whether it was asked."""
        try:
            return self.file.exists()
        except OSError:
            return False

    def remove(self) -> None:
        """Before a start, and at its end."""
        if self.exists():
            with suppress(OSError):
                self.file.delete()


@contextmanager
def on_sigterm(action: Callable[[], object]) -> Iterator[None]:
    """Do `action` at the first SIGTERM within the block; a second one ends the process as usual.

    Outside the main thread, where no handler can be set, nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def first(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        action()

    signal.signal(signal.SIGTERM, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
