"""Tracking in the worker: write to disk at once, send to MLflow from a thread, lose nothing, send nothing twice.

`metrics.jsonl` is the write-ahead log and MLflow itself the only record of what has arrived: on opening, the highest
step per key is asked of the run and everything in the journal beyond it is sent, in order. So one rule covers a
server that was away, a killed process, steps replayed from a checkpoint, and a run that had to be made anew. There is
no second file of what was sent that could disagree. It needs what training gives: the steps of a key grow.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mgdet.text import first_line
from mgdet.tracking.journal import Journal, Outbox, fresh
from mgdet.tracking.run import RunHandle
from mgdet.tracking.store import TrackingConfig, connect, shown_uri

logger = logging.getLogger(__name__)

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
    """Takes the metrics and artifacts of a run. No method raises, and only `close` waits."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values at an optimizer step. Pass Python numbers: a tensor on a GPU would be waited for."""

    def artifact(self, data: bytes | str | Path, name: str) -> None:
        """Record bytes, text, or a copy of the file at a Path under `name`, which may have directories."""

    def close(self) -> object:
        """Send the rest within a bound of time. The run itself stays open: the driver ends it (`end_run`)."""


class NullTracker:
    """Records nothing: the tracker of every rank but the first, and of a dry run."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Discard the metrics."""

    def artifact(self, data: bytes | str | Path, name: str) -> None:
        """Discard the artifact."""

    def close(self) -> None:
        """Return at once: there is nothing to send."""


class MlflowTracker:
    """Writes `directory/metrics.jsonl` and sends to the run of `handle`; with no handle the files are all there is.

    What an earlier process on the same directory could not send is sent first. Only one process may write there.
    """

    def __init__(self, handle: RunHandle | None, directory: Path, config: TrackingConfig | None = None) -> None:
        self._config = config or TrackingConfig()
        directory = directory.absolute()  # workers may change their directory
        self._journal = Journal(directory / "metrics.jsonl")
        self._outbox = Outbox(directory / "unsent_artifacts")
        self._refused: set[str] = set()
        self._report: CloseReport | None = None
        self._sender = _Sender(handle, self._journal, self._outbox, self._config)
        if handle is not None:
            self._sender.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append to the journal, which the thread sends. A value that is no number is left out, with one warning."""
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

    def close(self) -> CloseReport:
        """Make one last attempt to send, within `flush_timeout_s`. Calling it again gives the same report."""
        if self._report is None:
            self._sender.finish(self._config.flush_timeout_s)
            unsent = sum(1 for _ in fresh(self._journal.points(self._sender.offset), dict(self._sender.marks)))
            self._journal.close()
            self._report = CloseReport(
                sent=self._sender.sent,
                unsent=unsent,
                unsent_file=self._journal.path if unsent else None,
                unsent_artifacts=len(self._outbox.waiting()),
                lost=self._journal.lost,
            )
            if self._sender.handle is not None and (unsent or self._report.unsent_artifacts):
                logger.warning(
                    "MLflow did not get %d metric points and %d artifacts. They are kept in %s; starting the same run "
                    "again sends them first.",
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

    def __init__(self, what: str, waits: tuple[float, ...]) -> None:
        self._what = what
        self._waits = waits
        self._failures = 0
        self._until = 0.0

    def due(self) -> bool:
        return time.monotonic() >= self._until

    def failed(self, error: Exception, uri: str) -> None:
        if not self._failures:
            logger.warning(
                "MLflow at %s does not take %s (%s). Training goes on; they are kept on disk and sent later.",
                shown_uri(uri),
                self._what,
                first_line(error),
            )
        self._until = time.monotonic() + self._waits[min(self._failures, len(self._waits) - 1)]
        self._failures += 1

    def worked(self) -> None:
        if self._failures:
            logger.info("MLflow takes %s again.", self._what)
        self._failures = 0
        self._until = 0.0


class _Sender(threading.Thread):
    """Sends journal and outbox to MLflow. A daemon: a request that hangs must not keep the process from ending."""

    def __init__(self, handle: RunHandle | None, journal: Journal, outbox: Outbox, config: TrackingConfig) -> None:
        super().__init__(name="mlflow-sender", daemon=True)
        self.handle = handle
        self.sent = 0
        self.offset = 0  # how far in the journal everything was sent or need not be
        self.marks: dict[str, int] = {}  # highest step per key that MLflow has
        self._journal = journal
        self._outbox = outbox
        self._config = config
        self._client: Any = None
        self._closing = threading.Event()
        self._abandoned = False  # nobody waits any more: stop after this request, so that a successor is alone
        self._tries: Counter[Path] = Counter()
        self._metrics = _Backoff("metrics", config.retry_after_s)
        self._artifacts = _Backoff("artifacts", config.retry_after_s)

    def run(self) -> None:
        if self.handle is None:
            return
        while not self._closing.wait(self._config.send_every_s):
            if self._metrics.due() and self._send_metrics(self.handle) and self._artifacts.due():
                self._send_artifacts(self.handle)
        # The last attempt is made whatever was failing before, but only one: a dead server is not worth a long wait.
        if self._send_metrics(self.handle):
            self._send_artifacts(self.handle)

    def finish(self, timeout: float) -> None:
        """Make the last attempt and wait for it, at most `timeout` seconds."""
        self._closing.set()
        if self.is_alive():
            self.join(timeout)
            self._abandoned = True

    def _connected(self, handle: RunHandle) -> Any:
        if self._client is None:
            client = connect(handle.uri, self._config)
            data = client.get_run(handle.run_id).data
            # MLflow's latest value of a key is that of its highest step. Its step is in no public attribute; the
            # public history says the same, but takes a second per 20,000 points and a request per key.
            latest = {metric.key: metric.step for metric in getattr(data, "_metric_objs", ())}
            for key in data.metrics:
                if key not in latest:
                    latest[key] = max(metric.step for metric in client.get_metric_history(handle.run_id, key))
            self.marks.update(latest)
            self._client = client
        return self._client

    def _send_metrics(self, handle: RunHandle) -> bool:
        """Send everything up to the journal's end; False where it failed.

        A request that failed but did arrive does no harm: MLflow drops a point that equals a stored one in key, step,
        value and time, and the time comes from the journal.
        """
        try:
            client = self._connected(handle)
            from mlflow.entities import Metric

            while True:
                points, end = self._journal.read(self.offset)
                if end == self.offset:
                    break
                new = list(fresh(points, self.marks))
                for i in range(0, len(new), _BATCH):
                    if self._abandoned:
                        return False
                    batch = new[i : i + _BATCH]
                    metrics = [Metric(p.key, p.value, p.ms, p.step) for p in batch]
                    client.log_batch(handle.run_id, metrics=metrics, synchronous=True)
                    self.marks.update({p.key: p.step for p in batch})
                    self.sent += len(batch)
                self.offset = end
        except Exception as error:
            self._metrics.failed(error, handle.uri)
            return False
        self._metrics.worked()
        return True

    def _send_artifacts(self, handle: RunHandle) -> None:
        """Send the waiting artifacts until one fails, which comes last in the next attempt and so delays no other."""
        try:
            for path in sorted(self._outbox.waiting(), key=lambda p: self._tries[p]):
                version = self._outbox.version(path)
                self._tries[path] += 1
                folder = path.parent.relative_to(self._outbox.root).as_posix()
                self._client.log_artifact(handle.run_id, str(path), None if folder == "." else folder)
                self._outbox.sent(path, version)
                del self._tries[path]
        except Exception as error:
            self._artifacts.failed(error, handle.uri)
        else:
            self._artifacts.worked()
