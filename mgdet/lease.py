"""One owner: whoever writes a run, a sweep or a data set says so in a file beside it, in the storage itself.

    with owned(directory / OWNER, "the run runs/mine") as ownership:
        ...  # a second start is refused meanwhile
        ownership.require()  # before something is written, in this process or in any other that writes for it

The file names the owner's machine and process, and changes every `BEAT_S` seconds. An owner of this machine whose
process is gone is dead at once; one of another machine is dead when its file has not changed for `DEAD_AFTER_S`, which
whoever wants to follow it watches by its own clock: clocks of two machines may differ by more.

A local disk makes a file for one of two processes only. Object stores have no such operation in `pyarrow.fs`: there
both write, wait `SETTLE_S` and read who was last. An owner that finds another one in its place stops.
"""

import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from mgdet.errors import OwnedError
from mgdet.records import Count, RecordError, read_as, seal
from mgdet.signals import interrupt
from mgdet.storage import Location

logger = logging.getLogger(__name__)

OWNER = "owner.json"
BEAT_S = 10.0
DEAD_AFTER_S = 45.0
SETTLE_S = 2.0
_POLL_S = 1.0


class Owner(BaseModel):
    """Who writes: the content of an owner's file."""

    model_config = ConfigDict(extra="forbid")

    host: Annotated[str, Field(max_length=300)]
    machine: Annotated[str, Field(max_length=300)]
    """What tells machines, their starts and their containers apart, where hosts may have the same name."""
    pid: Count
    started: Count
    """When the process started, in the machine's own ticks: a pid is given to another process in time."""
    began: float
    """Seconds since 1970 at which the owner began to write."""
    token: str
    beat: Count = 0
    """How often it has shown itself."""

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(min(max(self.began, 0), 1e11)))
        return f"process {self.pid} on {self.host!r:.80}, since {when}"

    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine, since its last start and in the same container."""
        return self.machine == _machine()

    def runs(self) -> bool:
        """Whether it is running, if it `is_here`."""
        return _started(self.pid) == self.started


@dataclass
class Ownership:
    """What an owner holds; it can be passed to other processes that write for the owner."""

    file: Location
    what: str
    token: str
    lost_to: Owner | None = None
    """The process that has taken over, as far as this one has seen."""
    _seen: float = -math.inf

    def lost(self, seen_within_s: float = 0) -> bool:
        """Whether another process has taken over; False where the storage cannot be read.

        An answer of the last `seen_within_s` seconds counts: then the storage is not read.
        """
        if self.lost_to is None and time.monotonic() - self._seen >= seen_within_s:
            with suppress(OSError):
                self.lost_to = _other(self.file, self.token)
            self._seen = time.monotonic()
        return self.lost_to is not None

    def stands_in(self, file: Location) -> bool:
        """Whether another location is that of this owner's file, under another name. Raises `OSError`."""
        owner = _parsed(_content(file) or b"")
        return owner is not None and owner.token == self.token

    def require(self) -> None:
        """Raise `OwnedError` where another process has taken over."""
        if self.lost():
            raise OwnedError(
                f"{self.what} was taken over by {self.lost_to}, because this process did not show itself for "
                f"{DEAD_AFTER_S:g} s or more. It stops here and leaves everything to the other one."
            )


@contextmanager
def owned(file: Location, what: str, wait_s: float = 0) -> Iterator[Ownership]:
    """Own what `file` stands for within the block; the owner's file is removed at its end.

    Args:
        file: the owner's file; its directory is made.
        what: how messages call what is owned, such as `the run runs/mine`.
        wait_s: wait so long for a living owner to end, before it is refused.

    Raises:
        OwnedError: a living process owns it; or another one took it while this one did not show itself for long.
        OSError: the storage cannot be read or written.
    """
    lease = _Lease(file, what)
    lease.take(wait_s)
    try:
        yield lease.ownership
    except KeyboardInterrupt:
        lease.ownership.require()
        raise
    finally:
        lease.release()


class _Lease:
    def __init__(self, file: Location, what: str) -> None:
        self.file, self.what = file, what
        self._me = Owner(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()) or 0,
            began=time.time(),
            token=uuid.uuid4().hex,
        )
        self.ownership = Ownership(file, what, self._me.token)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, name="owner", daemon=True)

    def take(self, wait_s: float) -> None:
        try:
            self.file.parent.mkdir()
        except OSError:
            if self.file.is_local:
                raise  # elsewhere a directory may come with its first file, and a bucket be there without the right
        until, told = time.monotonic() + wait_s, False
        while not self._try_to_take():
            found = self._read()
            if found is None:
                continue
            if time.monotonic() >= until:
                raise OwnedError(
                    f"{self.what} is being written by {_named(found)}. Two would spoil it. Wait until that one ends or "
                    "stop it; if it died, the same command takes over within a minute. For something else give another "
                    "name or place."
                )
            if not told:
                logger.warning("%s is being written by %s; waiting at most %.0f s", self.what, _named(found), wait_s)
                told = True
            time.sleep(min(_POLL_S, max(0.0, until - time.monotonic())))
        self._thread.start()

    def release(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(OSError):  # what stays is a dead owner's
            if self._is_mine():
                self.file.delete()

    def _try_to_take(self) -> bool:
        """Become the owner if there is none, or a dead one."""
        data = seal(self._me.model_dump())
        found = self._read()
        if found is None and self.file.is_local:
            return _make(Path(self.file.path), data)
        if found is not None and not self._is_dead(found):
            return False
        if found is not None:
            logger.warning("%s was being written by %s, which is gone; taking over", self.what, _named(found))
        self.file.replace(data)
        time.sleep(SETTLE_S)
        return self._is_mine()

    def _is_dead(self, found: bytes) -> bool:
        owner = _parsed(found)
        if owner is not None and owner.is_here():
            return not owner.runs()
        logger.warning(
            "%s belongs to %s; looking for at most %.0f s whether that one still lives",
            self.what,
            _named(found),
            DEAD_AFTER_S,
        )
        until = time.monotonic() + DEAD_AFTER_S
        while time.monotonic() < until:
            time.sleep(_POLL_S)
            if self._read() != found:
                return False
        return True

    def _show(self) -> None:
        """Change the file now and then, until the end, or until somebody else stands in it."""
        warned = False
        while not self._ended.wait(BEAT_S):
            try:
                if self.ownership.lost():
                    logger.error("%s was taken over by %s", self.what, self.ownership.lost_to)
                    interrupt()
                    return
                self._me.beat += 1
                self.file.replace(seal(self._me.model_dump()))
            except OSError as error:
                if not warned:
                    logger.warning("%s cannot be written, so that others may take over: %s", self.file, error)
                warned = True

    def _is_mine(self) -> bool:
        owner = _parsed(self._read() or b"")
        return owner is not None and owner.token == self._me.token

    def _read(self) -> bytes | None:
        return _content(self.file)


def _content(file: Location) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _other(file: Location, token: str) -> Owner | None:
    """Who stands in the file in the place of the owner with this token."""
    owner = _parsed(_content(file) or b"")
    return owner if owner is not None and owner.token != token else None


def _parsed(data: bytes) -> Owner | None:
    try:
        return read_as(Owner, data)
    except RecordError:
        return None


def _named(data: bytes) -> str:
    owner = _parsed(data)
    return str(owner) if owner else "somebody whose record is damaged"


def _make(path: Path, data: bytes) -> bool:
    """Make a file with this content, unless it exists: of two processes one succeeds, and nobody sees a part of it."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(data)
        try:
            os.link(temporary, path)
        except PermissionError:  # a file system without links: a reader may meet an empty file for a moment
            with open(path, "xb") as file:
                file.write(data)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _machine() -> str:
    """This machine since its last start, and the namespace in which its pids have their meaning."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # then it is watched, like any other machine
        return f"unknown {uuid.uuid4().hex}"


def _started(pid: int) -> int | None:
    """When a process of this machine started, in ticks since the machine did; None where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
