"""One owner: whoever writes a run, a sweep or a data set says so in a file beside it, in the storage itself.

    with owned(directory / OWNER, "the run runs/mine") as ownership:
        ...  # a second start is refused meanwhile
        ownership.require()  # before something is written, in this process or in any other that writes for it

Whoever wants to be the owner has a file of its own, `owner-<token>.json`, which nobody else writes. It asks first: it
makes the file, and then looks for those of others. Of two that ask at the same time at least one sees the other, and of
two that see each other the one with the lower token goes on, when the other has withdrawn. So there is one owner in any
store in which a file that was written is seen by whoever looks afterwards, however long a process pauses between two
steps: nothing needs to be made or replaced only if it is not there, which `pyarrow.fs` offers on no object store.

The file names the owner's machine and process, and changes every `BEAT_S` seconds. An owner of this machine whose
process is gone is dead at once; one of another machine is dead when its file has not changed for `DEAD_AFTER_S`, which
whoever wants to follow it watches by its own clock: clocks of two machines may differ by more. Whoever follows a dead
owner is of a higher generation. An owner that was only suspended finds it, before it writes anything else, and stops.
"""

import logging
import math
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mgdet.errors import OwnedError
from mgdet.records import Count, RecordError, read_as, seal
from mgdet.signals import interrupt
from mgdet.storage import Location

logger = logging.getLogger(__name__)

OWNER = "owner.json"
BEAT_S = 10.0
DEAD_AFTER_S = 45.0
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
    at: Annotated[str, Field(max_length=10_000)] = ""
    """What it owns, as it calls that: a copy of its file, in a copied directory, says nothing of who writes there."""
    asks: bool = False
    """Whether it only wants to be the owner."""
    generation: Count = 0
    """Higher than that of each dead owner that it follows."""
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
    generation: int = 0
    lost_to: Owner | None = None
    """The process that has taken over, as far as this one has seen."""
    _seen: float = -math.inf

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process looks for itself: its clock is another one."""
        return Ownership, (self.file, self.what, self.token, self.generation, self.lost_to)

    def lost(self, seen_within_s: float = 0) -> bool:
        """Whether another process has taken over; False where the storage cannot be read.

        An answer of the last `seen_within_s` seconds counts: then the storage is not read.
        """
        if self.lost_to is None and time.monotonic() - self._seen >= seen_within_s:
            with suppress(OSError):
                others = [owner for data in claims(self.file, self.token).values() if (owner := _parsed(data))]
                rank = (self.generation, self.token)
                later = (owner for owner in others if not owner.asks and (owner.generation, owner.token) > rank)
                self.lost_to = next(later, None)
            self._seen = time.monotonic()
        return self.lost_to is not None

    def stands_in(self, file: Location) -> bool:
        """Whether another `file` is the same one under another name. Raises `OSError`."""
        return _own_file(file, self.token).is_file()

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
        file: the name of owners' files, before which each puts its token; their directory is made.
        what: how messages call what is owned, such as `the run runs/mine`.
        wait_s: wait so long for a living owner to end, before it is refused.

    Raises:
        OwnedError: a living process owns it; or another one took it while this one did not show itself for long.
        OSError: the storage cannot be read or written.
    """
    lease = _Lease(file, what)
    try:
        ownership = lease.take(wait_s)
        try:
            yield ownership
        except KeyboardInterrupt:
            ownership.require()
            raise
    finally:
        lease.release()


def claims(file: Location, but: str = "") -> dict[str, bytes]:
    """The files, by name, of all that own or want to own what `file` stands for, but that of one token.

    Also `file` itself, as earlier versions wrote it. Raises `OSError`.
    """
    stem = file.name.removesuffix(".json")
    named = re.compile(rf"{re.escape(stem)}(-[0-9a-f]{{1,64}})?\.json")
    mine = _own_file(file, but).name
    found = {}
    for name in sorted(file.parent.children()):
        if named.fullmatch(name) and name != mine:
            with suppress(FileNotFoundError):  # it has ended
                found[name] = file.with_name(name).read_bytes()
    return found


def _own_file(file: Location, token: str) -> Location:
    return file.with_name(f"{file.name.removesuffix('.json')}-{token}.json")


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
            at=str(file),
            asks=True,
        )
        self._mine = _own_file(file, self._me.token)
        self._ownership: Ownership | None = None
        self._watched: dict[str, tuple[bytes, float, bool]] = {}  # what others' files were, since when, and if changed
        self._stands, self._writing = False, threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, name="owner", daemon=True)

    def take(self, wait_s: float) -> Ownership:
        try:
            self.file.parent.mkdir()
        except OSError:
            if self.file.is_local:
                raise  # elsewhere a directory may come with its first file, and a bucket be there without the right
        self._thread.start()
        until, told = time.monotonic() + wait_s, False
        while (other := self._try_to_take()) is not None:
            if time.monotonic() >= until:
                raise OwnedError(
                    f"{self.what} is being written by {_named(other)}. Two would spoil it. Wait until that one ends or "
                    "stop it; if it died, the same command takes over within a minute. For something else give another "
                    "name or place."
                )
            if not told:
                logger.warning("%s is being written by %s; waiting at most %.0f s", self.what, _named(other), wait_s)
                told = True
            time.sleep(min(_POLL_S, max(0.0, until - time.monotonic())))
        self._ownership = Ownership(self.file, self.what, self._me.token, self._me.generation)
        return self._ownership

    def release(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(OSError):  # what stays is a dead owner's
            self._withdraw()

    def _try_to_take(self) -> bytes | None:
        """Become the owner; where a living one is before this one, its file, and this one has withdrawn."""
        told = False
        while True:
            dead = self._dead()
            before, after = self._others(dead)
            if before:
                self._withdraw()
                for name, data in before.items():
                    if self._lives(name, data):
                        return data
                if not told:
                    logger.warning(
                        "%s belongs to %s; looking for at most %.0f s whether that one still lives",
                        self.what,
                        _named(next(iter(before.values()))),
                        DEAD_AFTER_S,
                    )
                    told = True
                time.sleep(_POLL_S)
            elif not self._stands:
                self._write(asks=True)  # and look again: from now on whoever looks sees this one
            elif after:
                time.sleep(_POLL_S)  # it withdraws, now that it can see this one
            elif self._become_owner(dead):
                return None

    def _become_owner(self, dead: dict[str, bytes]) -> bool:
        """Own it, unless one that seemed to be dead has shown itself, or has been followed by somebody else."""
        generations = [owner.generation for data in dead.values() if (owner := _parsed(data))]
        self._write(asks=False, generation=max(generations, default=0) + 1)
        before, _ = self._others(dead)
        if before:
            self._withdraw()
            return False
        for name, data in dead.items():
            logger.warning("%s was being written by %s, which is gone; taking over", self.what, _named(data))
            with suppress(FileNotFoundError):
                self.file.with_name(name).delete()
        return True

    def _others(self, dead: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """The files of those that are before this one, and of those that ask and are after it; none of the `dead`."""
        before: dict[str, bytes] = {}
        after: dict[str, bytes] = {}
        for name, data in claims(self.file, self._me.token).items():
            if dead.get(name) != data:
                owner = _parsed(data)
                asks_later = owner is not None and owner.asks and owner.token > self._me.token
                (after if asks_later or (owner and owner.asks and not self._me.asks) else before)[name] = data
        return before, after

    def _dead(self) -> dict[str, bytes]:
        """The files of others that are dead by now, of which all are watched from the first look at them."""
        now, seen = time.monotonic(), claims(self.file, self._me.token)
        for name, data in seen.items():
            known = self._watched.get(name)
            if known is None or known[0] != data:
                self._watched[name] = (data, now, known is not None)
        return {name: data for name, data in seen.items() if self._is_dead(name, data, now)}

    def _is_dead(self, name: str, data: bytes, now: float) -> bool:
        owner = _parsed(data)
        if owner is not None and owner.is_here():
            if not owner.runs():
                return True
            if owner.at == self._me.at:
                return False
        return now - self._watched[name][1] >= DEAD_AFTER_S

    def _lives(self, name: str, data: bytes) -> bool:
        """Whether one that is not dead has shown itself, or is a process of this machine that runs."""
        owner = _parsed(data)
        here = owner is not None and owner.is_here() and owner.runs() and owner.at == self._me.at
        return here or self._watched.get(name, (b"", 0.0, False))[2]

    def _show(self) -> None:
        """Change the file now and then, until the end, or until somebody else stands in it."""
        warned = False
        while not self._ended.wait(BEAT_S):
            try:
                if self._ownership is not None and self._ownership.lost():
                    logger.error("%s was taken over by %s", self.what, self._ownership.lost_to)
                    interrupt()
                    return
                self._beat()
            except OSError as error:
                if not warned:
                    logger.warning("%s cannot be written, so that others may take over: %s", self._mine, error)
                warned = True

    def _beat(self) -> None:
        with self._writing:
            if self._stands:
                self._put(beat=self._me.beat + 1)

    def _write(self, **changes: Any) -> None:
        with self._writing:
            self._stands = True
            self._put(**changes)

    def _put(self, **changes: Any) -> None:
        self._me = self._me.model_copy(update=changes)
        self._mine.replace(seal(self._me.model_dump()))

    def _withdraw(self) -> None:
        with self._writing:
            if self._stands:
                self._stands = False
                self._me = self._me.model_copy(update={"asks": True})
                with suppress(FileNotFoundError):
                    self._mine.delete()


def _parsed(data: bytes) -> Owner | None:
    try:
        return read_as(Owner, data)
    except RecordError:
        return None


def _named(data: bytes) -> str:
    owner = _parsed(data)
    return str(owner) if owner else "somebody whose record is damaged"


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
