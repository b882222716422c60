"""Copies of a run's journal in its storage, for machines that may be lost with all that lies on them: spot nodes.

With remote storage, metrics.jsonl lies on the machine of rank 0. A thread writes what is new of it to the run's
directory in the storage, and a start on any machine takes the copies back before it sends anything to a tracker. What
was recorded by the time of a checkpoint is copied before the checkpoint counts, so that a run which goes on from there
has every step.

The copies are `journal/part-00000.jsonl` and so on: the journal cut behind a line into pieces of 4 MiB, because an
object cannot be appended to. Only the last piece is ever written again. `journal/begun` tells the runs apart that have
had this place one after the other.
"""

import logging
import re
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from mgdet.lease import Ownership
from mgdet.storage import Location
from mgdet.text import first_line

logger = logging.getLogger(__name__)

EVERY_S = 30.0
"""Seconds between two copies, beside those at checkpoints."""
PART_BYTES = 4 << 20
"""A part is complete when it is larger; with its last line."""
RESTORE_S, SECURE_S, CLOSE_S = 60.0, 10.0, 30.0
"""The longest waits for the storage: at the start, at a checkpoint, and at the end."""
PAUSES_S = (1.0, 2.0)
"""Between the attempts to read the copies."""
BEGUN = "begun"
_PART = re.compile(r"part-\d{5,9}\.jsonl")


def begin(place: Location) -> None:
    """Make the place of the copies of a new run; those of a run that it replaces are deleted. Raises `OSError`."""
    place.mkdir()
    for name, _ in _parts(place.children()):
        (place / name).delete()
    (place / BEGUN).replace(uuid.uuid4().hex.encode())


def read_copies(place: Location) -> bytes:
    """The journal as it was copied last: whole lines; empty where there is no copy. Raises `OSError`."""
    return _content(place, _parts(place.children()))


def _parts(children: Mapping[str, int | None]) -> list[tuple[str, int]]:
    """Name and size of each part among the files of the place, in order."""
    found = {name: size for name, size in children.items() if _PART.fullmatch(name) and size is not None}
    return sorted(found.items(), key=lambda part: (len(part[0]), part[0]))


def _content(place: Location, parts: Sequence[tuple[str, int]]) -> bytes:
    return b"".join((place / name).read_bytes() for name, _ in parts)


class JournalCopies:
    """A thread that takes the copies of a journal back, then keeps them up to date, one write at a time.

    No method raises.

    Args:
        journal: the file metrics.jsonl on this machine, which nobody has open yet.
        place: the directory `journal` of the run in its storage.
        every_s: seconds between two copies.
        owner: of the run. Where another process has taken over from it, nothing is copied any more.
    """

    def __init__(
        self, journal: Path, place: Location, every_s: float = EVERY_S, owner: Ownership | None = None
    ) -> None:
        # A daemon: a storage that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="journal-copies", daemon=True)
        self.journal, self.place = journal, place
        self._every_s, self._owner = every_s, owner
        self._wake = threading.Event()
        self._turn = threading.Condition()
        self._asked, self._done = 1, 0  # the first turn is that of `restore`
        self._over = self._late = self._failing = False
        # Of the last part: its number, where in the journal it begins, and how much of it the storage has
        self._number = self._offset = self._size = 0

    def restore(self, within_s: float = RESTORE_S) -> bool:
        """Start, and wait until the journal holds what the storage has of it; returns whether it does.

        Where the storage cannot be read in this time, the journal stays as it is. Then no copies are made of it, which
        would overwrite what could not be read, and nothing of it must be sent: a tracker takes no earlier steps later.
        """
        self._thread.start()
        if not self._wait(1, within_s):
            self._give_up(f"no answer in {within_s:g} s")
        return not self._over

    def secure(self, within_s: float = SECURE_S) -> None:
        """Copy what the journal has now, and wait for it; not again while an earlier copy is late already."""
        with self._turn:
            self._asked += 1
            asked, late = self._asked, self._late
        self._wake.set()
        if not self._over and not late:
            self._late = not self._wait(asked, within_s)
            if self._late:
                logger.warning("The storage is slow: %s is not copied to %s yet.", self.journal, self.place)

    def hurry(self) -> None:
        """Start a copy without waiting for it: the last one, if nothing is appended to the journal any more."""
        self._wake.set()

    def finish(self, within_s: float = CLOSE_S) -> None:
        """Make the last copy, or wait for it, and end."""
        self._late = False
        self.secure(within_s)
        self._over = True
        self._wake.set()
        if not self._late:  # nothing is written after this: the journal may have another tracker then
            self._thread.join(within_s)

    def _run(self) -> None:
        """The thread: restore once, then copy at every turn that was asked for, and every `every_s` seconds."""
        self._try_to_restore()
        self._answer(1)
        while not self._over:
            self._wake.wait(self._every_s)
            self._wake.clear()
            if self._over:
                return
            asked = self._asked
            self._copy()
            self._answer(asked)

    def _try_to_restore(self) -> None:
        for pause in (*PAUSES_S, None):
            try:
                self._restore()
                return
            except Exception as error:  # whatever a storage can raise, and the disk of this machine
                if pause is None:
                    self._give_up(first_line(error))
                else:
                    time.sleep(pause)

    def _wait(self, turn: int, within_s: float) -> bool:
        with self._turn:
            return self._turn.wait_for(lambda: self._done >= turn or self._over, within_s)

    def _answer(self, turn: int) -> None:
        with self._turn:
            self._done, self._late = max(self._done, turn), False
            self._turn.notify_all()

    def _give_up(self, why: str) -> None:
        with self._turn:
            if self._over:
                return
            self._over = True
            self._turn.notify_all()
        logger.warning(
            "The copies of the run's metrics in %s cannot be read (%s). Training goes on; its metrics stay in %s of "
            "this machine, and are copied and sent when the same run is started here again.",
            self.place,
            why,
            self.journal,
        )

    def _restore(self) -> None:
        children = self.place.children()
        parts = _parts(children)
        there = _content(self.place, parts)
        begun = (self.place / BEGUN).read_bytes().decode() if BEGUN in children else ""
        with self._turn:
            if self._over:  # nobody waits any more, and the journal is in use
                return
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            self._set_other_run_aside(begun)
            here = self.journal.read_bytes() if self.journal.exists() else b""
            if not here.startswith(there):
                _write(self.journal, _united(there, here))
                logger.info("%d bytes of metrics were taken back from %s", len(there), self.place)
        if parts and [name for name, _ in parts] == [_part(i) for i in range(len(parts))]:  # else all are written again
            self._number, self._size = len(parts) - 1, parts[-1][1]
            self._offset = len(there) - self._size
        self.place.mkdir()

    def _set_other_run_aside(self, begun: str) -> None:
        """Rename a journal of this machine that is of a run which had this place before."""
        mine = self.journal.with_name(BEGUN)
        if not begun or (mine.exists() and mine.read_text() == begun):
            return
        if self.journal.exists():
            set_aside(self.journal)
        mine.write_text(begun)

    def _copy(self) -> None:
        try:
            while self._copy_part():
                self._number, self._offset, self._size = self._number + 1, self._offset + self._size, 0
        except Exception as error:
            if not self._failing:
                logger.warning(
                    "Metrics are not copied to %s (%s). Training goes on; it is tried again.",
                    self.place,
                    first_line(error),
                )
            self._failing = True
        else:
            if self._failing:
                logger.info("Metrics are copied to %s again.", self.place)
            self._failing = False

    def _copy_part(self) -> bool:
        """Write the last part where it has grown; returns whether it is complete."""
        try:
            with open(self.journal, "rb") as file:
                file.seek(self._offset)
                lines = file.readlines(PART_BYTES)
        except FileNotFoundError:  # nothing was logged yet
            return False
        if lines and not lines[-1].endswith(b"\n"):
            del lines[-1]
        data = b"".join(lines)
        if len(data) > self._size and not (self._owner and self._owner.lost()):
            (self.place / _part(self._number)).replace(data)
            self._size = len(data)
        return len(data) > PART_BYTES


def set_aside(journal: Path) -> None:
    """Rename a journal, so that no run sends its metrics."""
    journal.rename(journal.with_name(f"metrics-{int(journal.stat().st_mtime)}.jsonl"))


def _part(number: int) -> str:
    return f"part-{number:05d}.jsonl"


def _united(there: bytes, here: bytes) -> bytes:
    """The lines of `there`, then those that only `here` has.

    A sender so meets the steps of every metric in an order in which it sends each once: what is only here was recorded
    by a process of this machine after the last copy, or was repeated elsewhere since.
    """
    known = set(there.splitlines(keepends=True))
    return there + b"".join(line for line in here.splitlines(keepends=True) if line not in known)


def _write(path: Path, data: bytes) -> None:
    incoming = path.with_name(f"{path.name}.incoming")
    incoming.write_bytes(data)
    incoming.replace(path)
