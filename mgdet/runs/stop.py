"""Stopping a training from outside: the driver gets a signal, its workers learn of it by a file in the storage."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mgdet.storage import locate


class StopRequest:
    """The file `stop` of a run or a sweep: workers that find it write a checkpoint and end. Methods never raise."""

    def __init__(self, run_uri: str) -> None:
        self.file = locate(run_uri) / "stop"

    @contextmanager
    def offered(self) -> Iterator[None]:
        """Withdraw an earlier request before the block and one that was made within it after it.

        A block that a `KeyboardInterrupt` ends leaves its workers behind for a moment: they keep the request.
        """
        self.remove()
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException:
            self.remove()
            raise
        self.remove()

    def create(self) -> None:
        """Ask the workers to stop."""
        with suppress(OSError):  # if it fails, whoever sent the signal kills the driver in the end, which loses no more
            self.file.write(b"")

    def exists(self) -> bool:
        """Whether the workers are asked to stop; False where the storage cannot be read."""
        try:
            return self.file.is_file()
        except OSError:
            return False

    def remove(self) -> None:
        """Withdraw the request, so that the next start of the run does not stop at once."""
        if self.exists():
            with suppress(OSError):
                self.file.delete()
