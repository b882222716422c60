"""Stopping a training from outside: the driver gets SIGTERM, its workers learn of it by a file in the run."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mgdet.storage import locate


class StopRequest:
    """The file `stop` in a run's directory: workers that find it write a checkpoint and end. Methods never raise."""

    def __init__(self, run_uri: str) -> None:
        self.file = locate(run_uri) / "stop"

    def create(self) -> None:
        """Ask the workers to stop."""
        with suppress(OSError):  # if it fails, whoever sent SIGTERM kills the driver in the end, which loses no more
            self.file.write(b"")

    def exists(self) -> bool:
        """Whether the workers are asked to stop; False where the storage cannot be read."""
        try:
            return self.file.exists()
        except OSError:
            return False

    def remove(self) -> None:
        """Withdraw the request, so that the next start of the run does not stop at once."""
        if self.exists():
            with suppress(OSError):
                self.file.delete()


@contextmanager
def on_sigterm(action: Callable[[], object]) -> Iterator[None]:
    """Call `action` at the first SIGTERM within the block; a second one ends the process as usual.

    Outside the main thread, where Python allows no handler, signals are left as they are.
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
