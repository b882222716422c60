"""Notice that a machine goes away: its node is drained, or a worker on it gets SIGTERM. A training leaves it in time.

The workers that have notice tell the others at the next question whether to stop. All write a checkpoint of that step
and end, and the driver starts them again where Ray still starts processes. No step is repeated.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

NOTICE_S = 15.0
"""A worker that still runs so long after SIGTERM ends: its machine is going."""
_POLL_S = 1.0

_given = threading.Event()


def given() -> bool:
    """Whether this process was told that its machine goes away."""
    return _given.is_set()


def listens(base: Any) -> Any:
    """A `ray.train.torch.TorchConfig` like `base`, whose workers take SIGTERM for notice."""

    class Backend(base.backend_cls):  # type: ignore[misc]  # Ray's class is untyped
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(take_notice)  # in the main thread of each worker: a training has another one
            super().on_start(worker_group, backend_config)

    class Config(type(base)):  # type: ignore[misc]
        @property
        def backend_cls(self) -> Any:
            return Backend

    return Config(**vars(base))


def take_notice() -> None:
    """Take SIGTERM for notice from now on, in the main thread of this process."""
    _given.clear()
    signal.signal(signal.SIGTERM, _sigterm)


def _sigterm(number: int, frame: Any) -> None:
    if _given.is_set():  # Ray sends it twice where it means it
        os._exit(128 + number)
    _given.set()
    threading.Thread(target=_end_late, name="notice", daemon=True).start()


def _end_late() -> None:
    time.sleep(NOTICE_S)
    os._exit(128 + signal.SIGTERM)


@contextmanager
def node_watched() -> Iterator[None]:
    """Look within the block whether the node of this process is drained, which counts as notice."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(over,), name="drain", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _watch(over: threading.Event) -> None:
    import ray
    from ray._private.state import state  # what Ray Train asks, whose own answer is a barrier without a timeout

    node = ray.get_runtime_context().get_node_id()
    while not over.wait(_POLL_S):
        try:
            draining = node in state.get_draining_nodes()
        except Exception as error:  # the head may be starting again
            logger.debug("whether the node is drained cannot be found out: %s", error)
            continue
        if draining:
            _given.set()
            return
