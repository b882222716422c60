"""Large arrays in files that all processes of a machine map: in memory once, however many ranks and loaders there are.

The files lie in the cache of mgdet, in a directory that is named after what the arrays were made from. Each has a
checksum, which is compared whenever a process opens them anew.
"""

import hashlib
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgdet.errors import MgdetError
from mgdet.files import cache_directory
from mgdet.lock import locked
from mgdet.records import RecordError, seal, unseal
from mgdet.text import first_line

logger = logging.getLogger(__name__)

LEAST_BYTES = 64 << 20
"""Smaller arrays are not worth a file: each process has them in its memory."""
UNUSED_S = 30 * 24 * 3600.0
"""Files that no process has opened for so long are removed."""
_WAIT_S = 600.0
_RECORD = "arrays.json"


class Flat(Mapping[str, NDArray[Any]]):
    """Arrays by name. Another process that gets them maps the same files, if there are any."""

    def __init__(self, arrays: dict[str, NDArray[Any]], place: Path | None = None) -> None:
        self._arrays, self.place = arrays, place

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Flat, (self._arrays,)) if self.place is None else (_mapped, (self.place, list(self._arrays)))


def shared(made_from: str, make: Callable[[], dict[str, NDArray[Any]]]) -> Flat:
    """The arrays that `make` gives, mapped where the cache can be written to.

    Args:
        made_from: names what they are made from: the same text, the same arrays.
        make: called where no file has them; one process of the machine calls it while others wait, but not for ever.
    """
    try:
        directory = cache_directory() / "arrays"
        directory.mkdir(exist_ok=True)
    except (OSError, MgdetError) as error:
        logger.debug("arrays are kept in memory: %s", first_line(error))
        return Flat(make())
    place = directory / hashlib.sha256(made_from.encode()).hexdigest()
    with ExitStack() as lock:
        with suppress(OSError):  # two that make the same arrays do no harm
            lock.enter_context(locked(place.with_suffix(".lock"), _WAIT_S))
        if (found := _opened(place)) is not None:
            return found
        arrays = make()
        try:
            _remove_unused(directory)
            return _stored(place, arrays)
        except OSError as error:
            logger.warning("annotations are kept in the memory of each process: %s", first_line(error))
            return Flat(arrays)


def _stored(place: Path, arrays: dict[str, NDArray[Any]]) -> Flat:
    """Write the arrays and map them. Raises `OSError`."""
    made = place.with_name(f".{place.name}-{uuid.uuid4().hex[:8]}")
    made.mkdir()
    try:
        for name, array in arrays.items():
            np.save(made / f"{name}.npy", array)
        sums = {name: _checksum(made / f"{name}.npy") for name in arrays}
        (made / _RECORD).write_bytes(seal({"arrays": sums}))
        with suppress(OSError):  # somebody else was first
            made.rename(place)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return _mapped(place, list(arrays))


def _opened(place: Path) -> Flat | None:
    """The arrays of a directory whose files are what they were when they were written; None where there are none."""
    try:
        sums = unseal((place / _RECORD).read_bytes())["arrays"]
        if any(_checksum(place / f"{name}.npy") != known for name, known in sums.items()):
            raise RecordError("a file is damaged")
        (place / _RECORD).touch()
        return _mapped(place, list(sums))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if place.exists():
            logger.warning("%s is made anew: %s", place, first_line(error))
            shutil.rmtree(place, ignore_errors=True)
        return None


def _mapped(place: Path, names: list[str]) -> Flat:
    """Whoever writes into one of the arrays changes what this process sees alone."""
    return Flat({name: np.load(place / f"{name}.npy", mmap_mode="c") for name in names}, place)


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _remove_unused(directory: Path) -> None:
    """Remove what no process has opened for long, and what one that was killed has left."""
    for place in directory.iterdir():
        if place.is_dir():
            record = place / _RECORD
            if time.time() - (record if record.exists() else place).stat().st_mtime > UNUSED_S:
                shutil.rmtree(place, ignore_errors=True)
