"""A prediction in portions: any number of processes share it, and whoever is killed loses only what it was doing.

A portion is some of the files, always the same ones. What is found in it is one file in `OUT/portions/`, which appears
when it is whole. The results are put together from these files, so that they do not depend on how many processes there
were, which of them ended, or how often the work was stopped and started again.
"""

import hashlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mgdet.errors import DataError, Interrupted
from mgdet.files import absolute
from mgdet.inference.find import File, Images, find_images, is_many
from mgdet.inference.load import Read, build_detector
from mgdet.inference.photos import Photo, Reader, groups, name_of
from mgdet.inference.predict import Finder, Options, Predicted, damaged
from mgdet.inference.written import Part, Results, coco_results, described
from mgdet.lease import OWNER, claims, owned
from mgdet.records import RecordError, plain, seal, unseal
from mgdet.signals import on_stop
from mgdet.storage import Location, locate
from mgdet.training.progress import ProgressLog

logger = logging.getLogger(__name__)

SIZE = 64
"""Files of a portion, about; a video or a table is a portion of its own."""
PORTIONS, PLAN = "portions", "plan.json"


class Portion(NamedTuple):
    """Files that one process detects in, one after another."""

    number: int
    files: tuple[tuple[str, str], ...]
    """Address and name of each: an absolute path or a URI, and how results call it."""
    ids: tuple[int, ...] | None
    """Of each file; None: they are counted when the results are put together."""


class Done(NamedTuple):
    """A portion that is done."""

    files: int
    warnings: tuple[str, ...]
    """What is wrong with files that were left out, or of which a part was."""


def portions_of(files: Images, batch_size: int) -> list[Portion]:
    """The files in portions, whose sizes are multiples of the batch size where they hold one image each."""
    size = max(batch_size, SIZE // batch_size * batch_size)
    found: list[tuple[list[File], list[int]]] = []
    full = True
    for index, file in enumerate(files.paths):
        alone = is_many(file.name)
        if full or alone:
            found.append(([], []))
        found[-1][0].append(file)
        if files.ids is not None:
            found[-1][1].append(files.ids[index])
        full = alone or len(found[-1][0]) == size
    counted = files.ids is None
    return [
        Portion(number, tuple((_address(file), name_of(file)) for file in paths), None if counted else tuple(ids))
        for number, (paths, ids) in enumerate(found)
    ]


def _address(file: File) -> str:
    return str(file) if isinstance(file, Location) else str(absolute(file))


class Portions:
    """The files of the portions that are done, and a plan that says which work they are of.

    Args:
        place: their directory, which is made.
        about: what the work is; whatever changes a result stands in it.
        count: number of portions.

    Raises:
        DataError: the directory cannot be used, or was begun with other work.
    """

    def __init__(self, place: Location, about: Mapping[str, Any], count: int) -> None:
        self.place, self.count = place, count
        plan, wanted = place / PLAN, plain({**about, "portions": count})
        try:
            place.mkdir()
            known = unseal(plan.read_bytes()) if plan.is_file() else None
            if known is None:
                plan.replace(seal(wanted))
        except (OSError, RecordError) as error:
            raise DataError(f"{plan} cannot be used: {error}. Choose another directory for the results.") from error
        if known is not None and known != wanted:
            other = [key for key in wanted if known.get(key) != wanted[key]]
            raise DataError(
                f"{plan} was begun with another {', '.join(other) or 'version of mgdet'}, and can only be continued "
                "with the same. Choose another directory for the results."
            )

    def missing(self) -> list[int]:
        """The numbers of the portions that are not done. Raises `DataError`."""
        try:
            there = self.place.children()
        except OSError as error:
            raise DataError(f"{self.place} cannot be read: {error}. The same command goes on.") from error
        return [number for number in range(self.count) if self._file(number).name not in there]

    def write(self, number: int, content: Mapping[str, Any]) -> None:
        """Keep what was found in a portion. Raises `DataError`."""
        data = json.dumps(content).encode()
        try:
            self._file(number).replace(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
        except OSError as error:
            raise DataError(
                f"{self._file(number)} cannot be written: {error}. Check the space and the rights; the same command "
                "goes on."
            ) from error

    def read(self) -> Iterator[dict[str, Any]]:
        """What was found, portion by portion. Raises `DataError`."""
        for number in range(self.count):
            file = self._file(number)
            try:
                checksum, _, data = file.read_bytes().partition(b"\n")
            except OSError as error:
                raise DataError(f"{file} cannot be read: {error}. The same command goes on.") from error
            if checksum.decode(errors="replace") != hashlib.sha256(data).hexdigest():
                raise DataError(f"{file} is damaged. Delete it: the same command makes it anew.")
            yield json.loads(data)

    def remove(self) -> None:
        """Remove the directory."""
        self.place.filesystem.delete_dir(self.place.path)

    def _file(self, number: int) -> Location:
        return self.place / f"{number:06d}.json"


class Work:
    """Detects in portions; it is sent to the processes that do so, each of which calls `begin` first.

    Args:
        read: the checkpoint.
        options: how it detects.
        portions: where the results are kept.
    """

    def __init__(self, read: Read, options: Options, portions: Portions) -> None:
        self.read, self.options, self.portions = read, options, portions
        self._find: Finder | None = None

    def begin(self, device: torch.device) -> None:
        """Build the detector. Raises what `load_detector` raises."""
        self._find = Finder(build_detector(self.read, device=device), self.options)

    def __call__(self, portion: Portion) -> Done:
        """Detect in a portion and keep what is found.

        Raises:
            DataError: the results cannot be written, or this machine does not see a file that was listed.
        """
        assert self._find is not None, "begin was called"
        warnings: list[str] = []
        reader = Reader(self._find.max_pixels, self.options.every, warnings.append)
        images: list[dict[str, Any]] = []
        found: list[dict[str, Any]] = []
        for photos in groups(_photos(portion, reader), self._find.at_once):
            predicted = self._find(photos)
            images += described(photos, predicted, None)
            found += coco_results(photos, predicted)
        lost = {"unreadable": reader.unreadable, "damaged": reader.damaged}
        self.portions.write(portion.number, {"images": images, "found": found, **lost})
        return Done(len(portion.files), tuple(warnings))


def _photos(portion: Portion, reader: Reader) -> Iterator[Photo]:
    for index, (address, name) in enumerate(portion.files):
        file: File = locate(address) if "://" in address else Path(address)
        if isinstance(file, Path) and not os.path.lexists(file):
            raise DataError(
                f"{file} was listed, and is not there on {socket.gethostname()}. All nodes must see the images under "
                "the same path: use a file system that all of them mount, or a URI such as s3://bucket/photos."
            )
        yield from reader.read(file, None if portion.ids is None else portion.ids[index], name)


Spread = Callable[[Work, Sequence[Portion]], Iterator[Done]]
"""Does the work of portions, in any order, wherever it likes."""


class Plan:
    """A prediction in portions, which writes what `predict` writes, but no pictures; see `run`.

    Args:
        read: from `read_detector`; its plugins must be loaded.
        inputs: as for `predict`; whoever does a portion must see them too.
        out: a directory, which must be empty, absent or of an earlier call: a local path or a `pyarrow.fs` URI.
        ids: as for `predict`.
        options: how it detects.

    Raises:
        DataError: as for `predict`.
        CheckpointError: as for `load_detector`.
    """

    def __init__(self, read: Read, inputs: Sequence[str], out: str, *, ids: str | None = None, options: Options):
        if options.draw:
            raise DataError("--draw is for one process: leave out --workers, or draw from detections.json afterwards.")
        trained = build_detector(read, device=torch.device("cpu"))
        Finder(trained, options)
        logger.info("%s", trained)
        self.read, self.categories, self.options = read, trained.categories, options
        self.out, self.place = out, locate(out)
        _require_own(self.place, out)
        self.files = find_images(inputs, self.place, ids)
        self.portions = portions_of(self.files, options.batch_size)

    def run(self, spread: Spread) -> Predicted:
        """Detect, and write the results. After a stop the same plan goes on; the results do not depend on `spread`.

        Raises:
            DataError: `out` is of other work, or cannot be written; or no image can be read.
            Interrupted: it was asked to stop, and keeps what was found.
            OwnedError: another process writes to `out`.
        """
        about = {
            "checkpoint": self.read.path,
            "inputs": hashlib.sha256(json.dumps(self.portions).encode()).hexdigest(),
            **self.options._replace(parquet=False)._asdict(),
        }
        with owned(self.place / OWNER, f"the prediction {self.out}"):
            kept = Portions(self.place / PORTIONS, about, len(self.portions))
            _spread(spread, Work(self.read, self.options, kept), self.portions)
            done = self._write(kept)
            kept.remove()
        return done

    def _write(self, kept: Portions) -> Predicted:
        images = detections = frames = partly = 0
        unreadable: list[str] = []
        for content in kept.read():
            images += len(content["images"])
            detections += len(content["found"])
            frames += sum("frame" in image for image in content["images"])
            partly += len(content["damaged"])
            unreadable += content["unreadable"]
        if not images:
            kept.remove()
            raise DataError(
                f"None of the {len(self.files.paths)} images can be read; nothing was written. The log says why."
            )
        results = Results(str(self.place), self.categories, self.options.parquet)
        results.write(lambda: _numbered(kept.read(), self.files.ids is None))
        passed_over = [*self.files.passed_over]
        if partly:
            passed_over.append(damaged(partly))
        return Predicted(images, tuple(unreadable), detections, tuple(passed_over), frames)


def _require_own(place: Location, out: str) -> None:
    try:
        if place.is_file():
            raise DataError(f"{out} is a file; nothing was written. Give a directory.")
        others = place.children().keys() - claims(place / OWNER).keys() - {PORTIONS}
        begun = (place / PORTIONS / PLAN).is_file()
    except OSError as error:
        raise DataError(f"{out} cannot be used: {error}. Choose another place.") from error
    if others and not begun:
        raise DataError(f"{out} is not empty; nothing was written. Choose another place.")


def _spread(spread: Spread, work: Work, portions: Sequence[Portion]) -> None:
    """Do what is not done yet. Raises `Interrupted`."""
    left = [portions[number] for number in work.portions.missing()]
    if not left:
        return
    stop: list[bool] = []
    total = sum(len(portion.files) for portion in portions)
    pace = ProgressLog("predicted", total, total - sum(len(portion.files) for portion in left))
    with on_stop(lambda: stop.append(True), "stopping after the next portion"):
        for done in spread(work, left):
            for warning in done.warnings:
                logger.warning("%s", warning)
            pace.add(done.files)
            if stop:
                raise Interrupted(f"{pace.done} of {total} files are done; the same command goes on")


def _numbered(contents: Iterator[dict[str, Any]], count: bool) -> Iterator[Part]:
    """The parts, whose images are counted on from one to the next, if they are counted at all."""
    before = 0
    for content in contents:
        images, found = content["images"], content["found"]
        if count:
            for image in images:
                image["id"] += before
            for result in found:
                result["image_id"] += before
            before += len(images)
        yield Part(images, found)
