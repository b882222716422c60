"""Detect in a directory that grows, such as that of a camera: each file once, as soon as it is finished.

What was found is appended to `followed.jsonl`, a line for each file, before the next one is looked at. This file is all
that a later start needs to go on, and that the other files are written from when the work is stopped.
"""

import json
import logging
import os
import threading
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, NoReturn

from mgdet.data.files import files_below
from mgdet.errors import DataError, Interrupted
from mgdet.inference.find import is_taken
from mgdet.inference.load import Trained
from mgdet.inference.output import empty_directory
from mgdet.inference.photos import Photo, groups, photos_of
from mgdet.inference.predict import Finder, Options
from mgdet.inference.video import is_video
from mgdet.inference.written import Names, Part, Pictures, Results, coco_results, described
from mgdet.lease import OWNER, owned
from mgdet.records import plain
from mgdet.signals import on_stop
from mgdet.storage import locate

logger = logging.getLogger(__name__)

LOG = "followed.jsonl"
LOOK_S = 1.0
"""Seconds between two looks at the directory, at least."""
SETTLED_S, VIDEO_SETTLED_S = 2.0, 10.0
"""Seconds for which a file that is finished has not changed: an image, and a video, which is written in pauses."""
GIVE_UP_S = 60.0
"""Seconds without a change after which a file that cannot be read is taken for damaged, no longer for half written."""


class Version(NamedTuple):
    """A file as it is at one time; one that is written again is another version."""

    name: str
    """Relative to the directory."""
    size: int
    changed: int
    """Time of the last change, nanoseconds since 1970."""


class Watch:
    """Knows which files of a directory are finished.

    Args:
        directory: searched with all below it. Hidden files, and those whose suffix is neither an image's nor a
            video's, are passed over.
        out: the directory of the results, which is passed over.
        done: versions that are not wanted any more.
    """

    def __init__(self, directory: Path, out: Path, done: Container[Version]) -> None:
        self.directory, self.out, self.done = directory, out.resolve(), done
        self._since: dict[Version, float] = {}

    def look(self, now: float) -> list[Version]:
        """The files that are finished and not done, in the order in which they came.

        Args:
            now: seconds of a clock that does not go back.
        """
        found = {version: self._since.get(version, now) for version in self._there() if version not in self.done}
        self._since = found
        ready = [v for v, since in found.items() if now - since >= (VIDEO_SETTLED_S if is_video(v.name) else SETTLED_S)]
        return sorted(ready, key=lambda v: (v.changed, v.name))

    def unchanged(self, version: Version, now: float) -> float:
        """For how many seconds a file is known to be as it is."""
        return now - self._since.get(version, now)

    def _there(self) -> Iterator[Version]:
        for path in files_below(self.directory):
            relative = path.relative_to(self.directory)
            if any(part.startswith(".") for part in relative.parts) or not is_taken(path.name):
                continue
            try:
                if path.is_file() and not path.resolve().is_relative_to(self.out):
                    status = path.stat()
                    yield Version(relative.as_posix(), status.st_size, status.st_mtime_ns)
            except OSError:
                continue  # it has gone again


class Log:
    """The lines of `followed.jsonl`: what the work is, then what was found in each file.

    Raises:
        DataError: it cannot be read or written, is damaged, or belongs to other work than `about`.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.done: set[Version] = set()
        self.pictures: list[str] = []
        """Names of the drawn pictures and videos."""
        self.images = self.detections = self.unreadable = 0
        try:
            self._cut_half_line()
            begun = path.exists() and path.stat().st_size > 0
            if begun:
                self._read(about)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
            if not begun:
                self._append(about)
        except OSError as error:
            raise DataError(f"{path} cannot be used: {error}. Check the path, the space and the rights.") from error

    def add(self, version: Version, **found: Any) -> None:
        """Append what was found in a file, so that it is on the disk when this returns. Raises `DataError`."""
        line = {"file": list(version), **found}
        try:
            self._append(line)
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error}. Check the space and the rights.") from error
        self._count(line)

    def lines(self) -> Iterator[dict[str, Any]]:
        """All lines but the first one. Raises `OSError`, `DataError`."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    value = json.loads(line)
                    if number > 1:
                        Version(*value["file"])
                        yield value
                except (ValueError, TypeError, KeyError) as error:
                    raise DataError(
                        f"{self.path}, line {number}: damaged ({error}). Choose another directory to begin anew."
                    ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _cut_half_line(self) -> None:
        """Take away a line that was being written when the process ended: its file is looked at again."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                data = file.read()
                file.truncate(data.rfind(b"\n") + 1)

    def _read(self, about: dict[str, Any]) -> None:
        with self.path.open("rb") as file:
            first = file.readline()
        try:
            known = json.loads(first)
        except ValueError:
            known = None
        about = plain(about)
        if known != about:
            other = [key for key in about if not isinstance(known, dict) or known.get(key) != about[key]]
            raise DataError(
                f"{self.path} was begun with another {', '.join(other) or 'version of mgdet'}, and can only be "
                "continued with the same. Choose another directory."
            )
        for line in self.lines():
            self._count(line)

    def _count(self, line: dict[str, Any]) -> None:
        self.done.add(Version(*line["file"]))
        images = line.get("images", [])
        self.pictures += dict.fromkeys(image["picture"] for image in images if "picture" in image)
        self.images += len(images)
        self.detections += len(line.get("detections", []))
        self.unreadable += "unreadable" in line

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(plain(line)).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def follow(
    trained: Trained,
    directory: str,
    out: str,
    options: Options = Options(),  # noqa: B008  # it cannot be changed
    wait: Callable[[float], bool] | None = None,
) -> NoReturn:
    """Detect in the files of a directory and in those that come, until it is asked to stop; then write the results.

    A file is looked at when it has not changed for some seconds. One that cannot be read then is taken for half
    written, and tried again until it has not changed for `GIVE_UP_S`. The same call goes on where an earlier one
    stopped; a file that was changed since then counts as a new one.

    Args:
        trained: from `load_detector`.
        directory: local, searched with all below it.
        out: a local directory, which must be empty, absent or of an earlier call.
        options: how it detects, and what else it writes.
        wait: waits for so many seconds, or less, and says whether to stop; by default until the first signal.

    Raises:
        Interrupted: it was asked to stop, and has written all results.
        DataError: a `directory` that is none, an `out` of other work, or that cannot be written.
        OwnedError: another process writes to `out`.
    """
    find = Finder(trained, options)
    if "://" in directory or not Path(directory).is_dir():
        raise DataError(f"{directory}: no local directory. --follow takes one in which files appear.")
    place = empty_directory(out, overwrite=(Path(out) / LOG).is_file())
    if Path(directory).resolve().is_relative_to(place):
        raise DataError(f"{directory} lies in the output directory {out}. Choose another.")
    about = {"directory": str(Path(directory).resolve()), "checkpoint": trained.path, **options._asdict()}
    del about["batch_size"], about["parquet"]  # which change no line
    stop = threading.Event()
    with owned(locate(str(place)) / OWNER, f"the prediction {out}"), on_stop(stop.set, "stopping after this file"):
        work = _Work(find, Path(directory), place, Log(place / LOG, about))
        try:
            work.go_on(wait or stop.wait, stop.is_set)
        finally:
            work.log.close()
        work.write()
    log = work.log
    raise Interrupted(
        f"{log.detections} detections in {log.images} images, {log.unreadable} files that cannot be read; written to "
        f"{out}. The same command goes on"
    )


class _Unreadable(Exception):
    """A file that cannot be read, now or at all."""


class _Work:
    def __init__(self, find: Finder, directory: Path, out: Path, log: Log) -> None:
        self.find, self.directory, self.out, self.log = find, directory, out, log
        self.watch = Watch(directory, out, log.done)
        self.pictures = Pictures(out, Names(log.pictures)) if find.options.draw else None

    def go_on(self, wait: Callable[[float], bool], stopped: Callable[[], bool]) -> None:
        logger.info("following %s, in which %d files are done", self.directory, len(self.log.done))
        while True:
            began = monotonic()
            ready = self.watch.look(began)
            pause = max(LOOK_S, monotonic() - began)  # as long as a look, where there are very many files
            for version in ready:
                self._detect(version)
                if stopped():
                    return
            if wait(pause):
                return

    def _detect(self, version: Version) -> None:
        """Detect in a file and write it down, unless it cannot be read yet."""
        images: list[dict[str, Any]] = []
        detections: list[dict[str, Any]] = []
        try:
            for photos in groups(self._read(self.directory / version.name), self.find.at_once):
                found = self.find(photos)
                images += described(photos, found, self.pictures)
                detections += coco_results(photos, found)
            if self.pictures is not None:
                self.pictures.close()
        except _Unreadable as error:
            if self.watch.unchanged(version, monotonic()) >= GIVE_UP_S:
                logger.warning("left out: %s", error)
                self.log.add(version, unreadable=str(error))
            return
        finally:
            if self.pictures is not None:
                self.pictures.discard()  # what was not closed
        self.log.add(version, images=images, detections=detections)
        logger.info("%s: %d detections", version.name, len(detections))

    def _read(self, file: Path) -> Iterator[Photo]:
        """The pictures of a file. Raises `_Unreadable`."""
        try:
            options = self.find.options
            flaws = yield from photos_of(file, self.log.images, self.find.max_pixels, options.every)
        except (OSError, DataError) as error:
            raise _Unreadable(str(error)) from error
        if flaws:
            logger.warning("%s: %s", file, "; ".join(flaws))

    def write(self) -> None:
        """Write the files of a prediction from the lines. Raises `DataError`."""
        results = Results(str(self.out), self.find.trained.categories, self.find.options.parquet)
        results.write(lambda: (Part(x.get("images", []), x.get("detections", [])) for x in self.log.lines()))
