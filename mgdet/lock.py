"""A file that the processes of a machine lock in turn."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from mgdet.files import AnyPath

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: AnyPath, wait_s: float) -> Iterator[None]:
    """Hold the lock of a file, which says who has it. On file systems without locks this has no effect.

    Raises `OSError` where the file cannot be written, and `TimeoutError`, which names the owner, after `wait_s`
    seconds.
    """
    with open(path, "a+") as lock:
        _wait_for(lock, wait_s)
        yield


def _wait_for(lock: TextIO, wait_s: float) -> None:
    until, told = time.monotonic() + wait_s, False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read(200).strip() or "another process"
            if time.monotonic() > until:
                raise TimeoutError(f"{lock.name} is held by {owner} for more than {wait_s:g} s") from None
            if not told:
                logger.warning("%s is held by %s; waiting at most %g s", lock.name, owner, wait_s)
                told = True
            time.sleep(0.2)
        except OSError:  # some network file systems have no locks
            return
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
