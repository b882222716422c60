"""Tracking in the worker: write to disk at once, send to the store from a thread, lose nothing, send nothing twice.

`metrics.jsonl` is the write-ahead log and the store itself the only record of what has arrived: on opening, the highest
step per key is asked of the run and everything in the journal beyond it is sent, in order. So one rule covers a
server that was away, a killed process, steps replayed from a checkpoint, and a run that had to be made anew. There is
no second file of what was sent that could disagree. It needs what training gives: the steps of a key grow.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from mgdet.bounded import Caller
from mgdet.lease import BEAT_S, Ownership
from mgdet.storage import Location
from mgdet.text import first_line
from mgdet.tracking.copies import JournalCopies
from mgdet.tracking.journal import Journal, Outbox, fresh, points_of
from mgdet.tracking.run import Connection, Point, RunHandle

if TYPE_CHECKING:
    from mgdet.tracking.base import StoreTracking

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

_BATCH = 1000  # metrics in one request


@dataclass(frozen=True)
class CloseReport:
    """How many metric points and artifacts were sent; `unsent` points are kept in `unsent_file` (metrics.jsonl).

    If the store was never reached, what an earlier process sent is unknown, and the whole journal counts as unsent.
    """

    sent: int = 0
    unsent: int = 0
    unsent_file: Path | None = None
    unsent_artifacts: int = 0
    lost: int = 0  # points that could not even be written to disk


class Tracker(Protocol):
    """Takes the metrics and artifacts of a run. No method raises, and only `secure` and `close` wait."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values at an optimizer step. Pass Python numbers: a tensor on a GPU would be waited for."""

    def artifact(self, data: bytes | str | Path, name: str) -> None:
        """Record bytes, text, or a copy of the file at a Path under `name`, which may have directories."""

    def points(self) -> Iterator[Point]:
        """What was logged so far, also by earlier starts of the run, under the metrics' own names."""

    def secure(self) -> None:
        """See that what was recorded survives this machine, before a checkpoint does; waits for a bounded time."""

    def close(self) -> object:
        """Send the rest within a bound of time. The run itself stays open: the driver ends it (`Tracking.end`)."""


class NullTracker:
    """Records nothing: the tracker of every rank but the first, and of a dry run."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Discard the metrics."""

    def artifact(self, data: bytes | str | Path, name: str) -> None:
        """Discard the artifact."""

    def points(self) -> Iterator[Point]:
        """Nothing."""
        return iter(())

    def secure(self) -> None:
        """Return at once: nothing is recorded."""

    def close(self) -> None:
        """Return at once: there is nothing to send."""


class JournalTracker:
    """Writes `directory/metrics.jsonl` and sends to the run of `handle`; without one the files are all there is.

    What an earlier process on the same directory could not send is sent first. Only one process may write there.

    Args:
        directory: of the files.
        tracking: the store that the run is in, or would be in if it had been in reach; None: there is no such store.
        handle: the run.
        copies: where the run's storage keeps copies of the journal, if `directory` may be lost with its machine: what
            is there is taken back first.
        owner: of the run. Where another process has taken over from it, nothing is written or sent any more.
    """

    def __init__(
        self,
        directory: Path,
        tracking: "StoreTracking | None" = None,
        handle: RunHandle | None = None,
        copies: Location | None = None,
        owner: Ownership | None = None,
    ) -> None:
        self._owner = owner
        directory = directory.absolute()  # workers may change their directory
        self._copies = JournalCopies(directory / "metrics.jsonl", copies, owner=owner) if copies else None
        whole = self._copies.restore() if self._copies else True
        self._journal = Journal(directory / "metrics.jsonl", tracking.metric_name if tracking else str)
        self._outbox = Outbox(directory / "unsent_artifacts")
        self._refused: set[str] = set()
        self._report: CloseReport | None = None
        sender = _Sender(tracking, handle, self._journal, self._outbox, owner) if tracking and handle else None
        self._sender = sender if whole else None
        if self._sender:
            self._sender.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append to the journal, which the thread sends. A value that is no number is left out, with one warning."""
        if self._owner and self._owner.lost_to:
            return
        now = time.time()
        values: dict[str, float] = {}
        for key, value in metrics.items():
            try:
                values[str(key)] = float(value)
            except Exception as error:  # an array of many, None, a tensor of a failed device
                self._refuse(f"metric {key}", error)
        try:
            if values:
                self._journal.append(values, int(step), now)
        except Exception as error:
            self._refuse("step", error)

    def artifact(self, data: bytes | str | Path, name: str) -> None:
        """Copy into the outbox, so that the caller may change the file at once; sending happens in the thread."""
        try:
            self._outbox.put(data, name)
        except Exception as error:
            self._refuse(f"artifact {name}", error)

    def points(self) -> Iterator[Point]:
        """See `Tracker`: what the journal holds."""
        return points_of(self._journal.path.read_bytes() if self._journal.path.exists() else b"")

    def secure(self) -> None:
        """Copy the journal to the run's storage if it lies elsewhere, and wait for that for ten seconds at most."""
        if self._copies:
            self._copies.secure()

    def close(self) -> CloseReport:
        """Make one last attempt to send, within `flush_timeout_s`, and the last copy of the journal.

        Calling it again gives the same report.
        """
        if self._report is None:
            if self._copies:
                self._copies.hurry()
            sent, offset, marks = self._sender.finish() if self._sender else (0, 0, {})
            unsent = sum(1 for _ in fresh(self._journal.points(offset), marks))
            self._journal.close()
            if self._copies:
                self._copies.finish()
            self._report = CloseReport(
                sent=sent,
                unsent=unsent,
                unsent_file=self._journal.path if unsent else None,
                unsent_artifacts=len(self._outbox.waiting()),
                lost=self._journal.lost,
            )
            lost = self._owner and self._owner.lost_to  # then another process sends the rest
            if self._sender and not lost and (unsent or self._report.unsent_artifacts):
                logger.warning(
                    "%s did not get %d metric points and %d artifacts. They are kept in %s; starting the same run "
                    "again sends them first.",
                    self._sender.tracking.title,
                    unsent,
                    self._report.unsent_artifacts,
                    self._journal.path.parent,
                )
        return self._report

    def _refuse(self, what: str, error: Exception) -> None:
        if what not in self._refused:
            self._refused.add(what)
            logger.warning("%s is not recorded: %s", what, error)


class _Backoff:
    """Decides when to try again after a failure, and logs the first failure and the recovery only."""

    def __init__(self, what: str, tracking: "StoreTracking", handle: RunHandle) -> None:
        self._what, self._tracking, self._handle = what, tracking, handle
        self._failures = 0
        self._until = 0.0

    def due(self) -> bool:
        return time.monotonic() >= self._until

    def failed(self, error: Exception) -> None:
        if not self._failures:
            logger.warning(
                "%s does not take %s (%s). Training goes on; they are kept on disk and sent later.",
                self._tracking.where(self._handle),
                self._what,
                first_line(error),
            )
        waits = self._tracking.retry_after_s
        self._until = time.monotonic() + waits[min(self._failures, len(waits) - 1)]
        self._failures += 1

    def worked(self) -> None:
        if self._failures:
            logger.info("%s takes %s again.", self._tracking.title, self._what)
        self._failures = 0
        self._until = 0.0


class _Sender:
    """A thread that sends journal and outbox to the store."""

    def __init__(
        self,
        tracking: "StoreTracking",
        handle: RunHandle,
        journal: Journal,
        outbox: Outbox,
        owner: Ownership | None = None,
    ) -> None:
        # A daemon: a request that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"{tracking.name}-sender", daemon=True)
        self.tracking = tracking
        self.sent = 0
        self._offset = 0  # how far in the journal everything was sent or need not be
        self._marks: dict[str, int] = {}  # highest step per key that the store has
        self._handle = handle
        self._journal = journal
        self._outbox = outbox
        self._owner = owner
        self._caller = Caller(f"{tracking.name}-calls")
        self._connection: Connection | None = None
        self._closing = threading.Event()
        self._abandoned = False  # nobody waits any more: stop after this request, so that a successor is alone
        self._tries: Counter[Path] = Counter()
        self._metrics = _Backoff("metrics", tracking, handle)
        self._artifacts = _Backoff("artifacts", tracking, handle)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.wait(self.tracking.send_every_s):
            if self._lost(BEAT_S):
                break
            if self._metrics.due() and self._send_metrics() and self._artifacts.due():
                self._send_artifacts()
        # The last attempt is made whatever was failing before, but only one: a dead server is not worth a long wait.
        if not self._lost() and self._send_metrics():
            self._send_artifacts()
        self._caller.end()

    def _lost(self, seen_within_s: float = 0) -> bool:
        """Whether another process owns the run by now, and sends to its run in the store."""
        return self._owner is not None and self._owner.lost(seen_within_s)

    def finish(self) -> tuple[int, int, dict[str, int]]:
        """Make the last attempt and wait for it, within the bound of time.

        Returns how many points were sent, and from which offset of the journal on, above which steps of each key,
        points are not sent.
        """
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(self.tracking.flush_timeout_s)
            self._abandoned = True
        return self.sent, self._offset, dict(self._marks)

    def _bounded(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a call to the store; after one that was given up everything starts anew in another thread."""
        if self._caller.dead:
            self._caller, self._connection = Caller(f"{self.tracking.name}-calls"), None
        return self._caller.call(self.tracking.call_timeout_s, function, *args, **kwargs)

    def _connected(self) -> Connection:
        if self._connection is None or self._caller.dead:
            connection = self._bounded(self.tracking.connect, self._handle)
            self._marks.update(self._bounded(connection.reached))
            self._connection = connection
        return self._connection

    def _send_metrics(self) -> bool:
        """Send everything up to the journal's end; False where it failed."""
        try:
            connection = self._connected()
            while True:
                points, end = self._journal.read(self._offset)
                if end == self._offset:
                    break
                new = list(fresh(points, self._marks))
                for i in range(0, len(new), _BATCH):
                    if self._abandoned:
                        return False
                    batch = new[i : i + _BATCH]
                    self._bounded(connection.send_metrics, batch)
                    self._marks.update({p.key: p.step for p in batch})
                    self.sent += len(batch)
                self._offset = end
        except Exception as error:
            self._metrics.failed(error)
            return False
        self._metrics.worked()
        return True

    def _send_artifacts(self) -> None:
        """Send the waiting artifacts until one fails, which comes last in the next attempt and so delays no other."""
        try:
            connection = self._connected()
            for path in sorted(self._outbox.waiting(), key=lambda p: self._tries[p]):
                version = self._outbox.version(path)
                self._tries[path] += 1
                self._bounded(connection.send_artifact, path, path.relative_to(self._outbox.root).as_posix())
                self._outbox.sent(path, version)
                del self._tries[path]
        except Exception as error:
            self._artifacts.failed(error)
        else:
            self._artifacts.worked()
