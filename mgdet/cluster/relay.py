"""What Ray's workers log, said by the driver: they send records to a small actor, and the driver asks it for them.

Ray's own forwarding puts the name of a process before each line and lets its internal errors through.
"""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler
from typing import Any

from mgdet.training.progress import Progress, show

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_QUESTIONS = 0.25
NAMESPACE = "mgdet"
_MOST_KEPT = 10_000
"""Records that the actor keeps while the driver does not ask; older ones are dropped, and counted."""
_MOST_ON_THEIR_WAY = 1_000
"""Records of one process that the actor has not taken yet; further ones are dropped."""
_LAST_RECORDS_S = 5.0
"""The longest wait, at the end, for records that are still on their way."""


class Mailbox:
    """The actor: keeps records until the driver takes them."""

    def __init__(self) -> None:
        self.records: deque[logging.LogRecord] = deque(maxlen=_MOST_KEPT)
        self.dropped = 0

    def put(self, record: logging.LogRecord) -> None:
        """Keep a record; if there are too many, the oldest is dropped."""
        self.dropped += len(self.records) == _MOST_KEPT
        self.records.append(record)

    def take(self) -> tuple[list[logging.LogRecord], int]:
        """All records since the last call, the oldest first, and how many were dropped."""
        taken = list(self.records), self.dropped
        self.records.clear()
        self.dropped = 0
        return taken


@contextmanager
def workers_heard() -> Iterator[None]:
    """Log in this process, within the block, what processes of the same Ray job log after `speak_through_driver`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.get_runtime_context()
    options = {
        "name": _mailbox_name(),
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_pending_calls": _MOST_ON_THEIR_WAY,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(context.get_node_id(), soft=True),
    }
    mailbox = ray.remote(Mailbox).options(**options).remote()
    over = threading.Event()
    listener = threading.Thread(target=_listen, args=(mailbox, over), name="mgdet-workers-heard", daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join(2 * _LAST_RECORDS_S)
        with suppress(Exception):
            ray.kill(mailbox)


def _listen(mailbox: Any, over: threading.Event) -> None:
    import ray

    last = False
    while not last:
        last = over.wait(SECONDS_BETWEEN_QUESTIONS)  # once more after the end, for the last records
        answer = mailbox.take.remote()
        while True:
            try:
                records, dropped = ray.get(answer, timeout=_LAST_RECORDS_S)
            except ray.exceptions.GetTimeoutError:  # the actor is starting, or its node is in trouble
                if over.is_set():
                    return
                continue
            except ray.exceptions.RayError:  # it is gone, and Ray starts it again
                records, dropped = [], 0
            break
        _log(records, dropped)


def _log(records: list[logging.LogRecord], dropped: int) -> None:
    if dropped:
        logger.warning("%d lines of the workers are left out here: there were too many at a time", dropped)
    for record in records:
        if (progress := getattr(record, "progress", None)) is not None:
            show(progress)
            continue
        its_logger = logging.getLogger(record.name)
        if its_logger.isEnabledFor(record.levelno):
            its_logger.handle(record)


def speak_through_driver(level: int, prefix: str = "") -> "SendToDriver":
    """Let the driver log what this process, an actor of Ray, logs below `mgdet` from `level` on.

    Its lines go to standard error too, which Ray keeps in the files of its session.

    Args:
        level: the least level that is logged.
        prefix: stands before each message in the driver's log.
    """
    own = logging.StreamHandler(sys.stderr)
    own.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    to_driver = SendToDriver(prefix)
    ours = logging.getLogger("mgdet")
    ours.handlers, ours.propagate = [own, to_driver], False
    ours.setLevel(level)
    return to_driver


class SendToDriver(QueueHandler):
    """Sends records to the driver. It neither waits nor raises, whatever has become of the driver."""

    def __init__(self, prefix: str) -> None:
        import ray

        super().__init__(None)  # type: ignore[arg-type]  # only `enqueue` uses it
        self.prefix, self.mailbox, self.sent, self.shown = prefix, None, None, 0.0
        with suppress(Exception):  # no driver listens: it is gone, or is not of mgdet
            self.mailbox = ray.get_actor(_mailbox_name(), namespace=NAMESPACE)

    def format(self, record: logging.LogRecord) -> str:
        """The message, with the traceback if there is one, after the prefix."""
        return self.prefix + super().format(record)

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record off; it is lost where that cannot be done."""
        with suppress(Exception):
            if self.mailbox is not None:
                self.sent = self.mailbox.put.remote(record)

    def show(self, progress: Progress) -> None:
        """Let the driver show the progress of the training; called more often than it sends."""
        now = time.monotonic()
        if progress.done >= progress.total or now - self.shown > SECONDS_BETWEEN_QUESTIONS:
            self.shown = now
            self.enqueue(logging.makeLogRecord({"progress": progress}))

    def settle(self) -> None:
        """Wait, for a short time at most, until what was sent has arrived: before the process ends."""
        import ray

        with suppress(Exception):
            if self.sent is not None:
                ray.get(self.sent, timeout=_LAST_RECORDS_S)


def _mailbox_name() -> str:
    import ray

    return f"log-{ray.get_runtime_context().get_job_id()}"  # all processes of a job have the same
