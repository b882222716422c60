"""Work in portions: any number of processes share it, and whoever is killed loses only what it was doing.

A portion is always the same piece of the work. What it gives is one file in a directory of the results, which appears
when it is whole. The results are put together from these files, so that they do not depend on how many processes there
were, which of them ended, or how often the work was stopped and started again.
"""

import hashlib
import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from mgdet.errors import DataError, Interrupted
from mgdet.records import RecordError, plain, seal, unseal
from mgdet.signals import on_stop
from mgdet.storage import File, Location
from mgdet.training.progress import ProgressLog

if TYPE_CHECKING:  # an import takes it along, and needs no device
    import torch

logger = logging.getLogger(__name__)

SIZE = 64
"""Images of a portion, about."""
PORTIONS, PLAN = "portions", "plan.json"


class Portion(NamedTuple):
    """A piece of the work."""

    number: int
    images: int
    """How many are in it, as progress counts them."""
    content: Any
    """What it is, as plain JSON."""


class Done(NamedTuple):
    """A portion that is done."""

    images: int
    warnings: tuple[str, ...] = ()
    """What is to be said of it, such as why an image was left out."""


class Portions:
    """The files of the portions that are done, and a plan that says which work they are of.

    Args:
        place: their directory, which is made.
        about: what the work is: whoever begins with something else is refused.
        count: number of portions.

    Raises:
        DataError: the directory cannot be used, or was begun with other work.
    """

    def __init__(self, place: Location, about: Mapping[str, Any], count: int) -> None:
        self.place, self.count = place, count
        plan, wanted = place / PLAN, plain(about)
        try:
            place.mkdir()
            known = unseal(plan.read_bytes()) if plan.is_file() else None
            if known is None:
                plan.replace(seal(wanted))
        except (OSError, RecordError) as error:
            raise DataError(f"{plan} cannot be used: {error}. Choose another place for the results.") from error
        if known is not None and known != wanted:
            other = [key for key in wanted if known.get(key) != wanted[key]]
            raise DataError(
                f"{plan} was begun with other work, which differs in {', '.join(other) or 'its kind'}, and can only be "
                f"continued with the same. Choose another place for the results, or delete {place} to begin anew."
            )

    def missing(self) -> list[int]:
        """The numbers of the portions that are not done. Raises `DataError`."""
        try:
            there = self.place.children()
        except OSError as error:
            raise DataError(f"{self.place} cannot be read: {error}. The same command goes on.") from error
        return [number for number in range(self.count) if self._file(number).name not in there]

    def write(self, number: int, data: bytes) -> None:
        """Keep what a portion gave. Raises `DataError`."""
        try:
            self._file(number).replace(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
        except OSError as error:
            raise DataError(
                f"{self._file(number)} cannot be written: {error}. Check the space and the rights; the same command "
                "goes on."
            ) from error

    def read(self, numbers: Iterable[int] | None = None) -> Iterator[bytes]:
        """What portions gave, of these `numbers` or else of all, one after another. Raises `DataError`."""
        for number in range(self.count) if numbers is None else numbers:
            file = self._file(number)
            try:
                checksum, _, data = file.read_bytes().partition(b"\n")
            except OSError as error:
                raise DataError(f"{file} cannot be read: {error}. The same command goes on.") from error
            if checksum.decode(errors="replace") != hashlib.sha256(data).hexdigest():
                raise DataError(f"{file} is damaged. Delete it: the same command makes it anew.")
            yield data

    def forget(self, number: int) -> None:
        """Take a portion for one that is not done. Raises `OSError`."""
        self._file(number).delete()

    def remove(self) -> None:
        """Remove the directory."""
        self.place.remove()

    def _file(self, number: int) -> Location:
        return self.place / f"{number:06d}.portion"


class Work(ABC):
    """What is done to a portion; it is sent to the processes that do so, each of which calls `begin` first."""

    @abstractmethod
    def begin(self, device: "torch.device") -> None:
        """Build what every portion needs. Raises `MgdetError`."""

    @abstractmethod
    def __call__(self, portion: Portion) -> Done:
        """Do a portion and keep what it gives. Raises `MgdetError`."""


Spread = Callable[[Work, Sequence[Portion]], Generator[Done, None, None]]
"""Does the work of portions, in any order, wherever it likes; closed where no more is wanted."""


def not_seen(file: File) -> DataError:
    """The error of a process that does not find a file which the plan lists."""
    return DataError(
        f"{file} was listed, and is not there on {socket.gethostname()}. All nodes must see the images under the same "
        "path: use a file system that all of them mount, or a URI such as s3://bucket/photos."
    )


def carry_out(what: str, spread: Spread, work: Work, portions: Sequence[Portion], kept: Portions) -> None:
    """Do what is not done yet; `what` is what progress says of images.

    Raises:
        Interrupted: it was asked to stop, and keeps what is done.
    """
    left = [portions[number] for number in kept.missing()]
    if not left:
        return
    stop: list[bool] = []
    total = sum(portion.images for portion in portions)
    before = total - sum(portion.images for portion in left)
    if before:
        logger.info("%d of %d images are %s already", before, total, what)
    pace = ProgressLog(what, total, before)
    with on_stop(lambda: stop.append(True), "stopping after the next portion"), closing(spread(work, left)) as answers:
        for done in answers:
            for warning in done.warnings:
                logger.warning("%s", warning)
            pace.add(done.images)
            if stop:
                raise Interrupted(f"{pace.done} of {total} images are {what}; the same command goes on")
