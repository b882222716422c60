"""The files that a prediction takes, local or at URIs: images, videos, and tables of images."""

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mgdet.data.files import files_below, image_suffixes, name_parts
from mgdet.data.formats.coco import read_images
from mgdet.errors import DataError
from mgdet.inference import table, video
from mgdet.storage import File, Location, as_file
from mgdet.text import first_of

logger = logging.getLogger(__name__)

NAMED = 5


class Images(NamedTuple):
    """The files that are taken, and what is passed over."""

    paths: tuple[File, ...]
    ids: tuple[int, ...] | None
    """Of each path, from an annotation file; None: their positions, without those that cannot be read."""
    passed_over: tuple[str, ...] = ()
    """One text for each kind of file that is left out: how many, why, and the first names."""


def find_images(inputs: Sequence[str], out: File, ids: str | None = None) -> Images:
    """The files that `inputs` name, each once: in the order given, those of a directory sorted.

    Directories are searched with all below them, linked ones included. Hidden files, files whose suffix is not that of
    an image, a video or a table (`mgdet.inference.table`), and what lies in `out` (pictures of an earlier prediction)
    are passed over; the first two are counted.

    Args:
        inputs: files and directories, each a path or URI.
        out: the directory of the results.
        ids: an annotation file in COCO's format: only its images are taken, under its ids, and no video or table.

    Raises:
        DataError: an input that does not exist or lies in `out` itself, no image at all, or an `ids` that is no
            annotation file or in which names are ambiguous.
    """
    search = _Search(out)
    for name in inputs:
        search.add(name)
    if not search.found:
        raise DataError(
            f"No images in {', '.join(inputs) or 'nothing'}. Taken are files with the suffixes "
            f"{', '.join(sorted(image_suffixes() | video.SUFFIXES | {table.SUFFIX}))}; name an image itself if it is "
            "called otherwise."
        )
    files = list(search.found.values())
    if ids is not None:
        return _with_ids(files, ids, search.passed_over())
    return Images(tuple(file for file, _ in files), None, tuple(search.passed_over()))


def is_taken(name: str) -> bool:
    """Whether a file found in a directory is taken, by its suffix."""
    suffix = Path(name).suffix.lower()
    return suffix in image_suffixes() or table.is_table(name) or (suffix in video.SUFFIXES and video.available())


def is_many(name: str) -> bool:
    """Whether a file holds more than one picture, by its suffix."""
    return video.is_video(name) or table.is_table(name)


class _Search:
    """Gathers files, each once."""

    def __init__(self, out: File) -> None:
        self.out = Path(out.path) if isinstance(out, Location) and out.is_local else out
        if isinstance(self.out, Path):
            self.out = self.out.resolve()
        self.found: dict[str, tuple[File, File | None]] = {}
        """By what is read: as it is named, and below which directory."""
        self.other: list[str] = []
        self.hidden: list[str] = []
        self.videos: list[str] = []
        self.unreadable: list[str] = []

    def add(self, name: str) -> None:
        """Take what one input names. Raises `DataError`."""
        place = as_file(name)
        try:
            below = self._remote(place) if isinstance(place, Location) else self._local(place, name)
        except OSError as error:
            raise DataError(f"{name} cannot be read: {error}. Check the address, the rights and the store.") from error
        if below is None:
            self.found.setdefault(_key(place), (place, None))
            return
        images = []
        for file, relative in below:
            if any(part.startswith(".") for part in relative.split("/")):
                self.hidden.append(str(file))
            elif is_taken(relative):
                images.append(file)
            else:
                (self.videos if video.is_video(relative) else self.other).append(str(file))
        if not images:
            logger.warning("%s: no file with the suffix of an image, video or table in it or below", name)
        for file in images:
            self.found.setdefault(_key(file), (file, place))

    def _local(self, place: Path, name: str) -> list[tuple[File, str]] | None:
        """The files below a directory, each with its name relative to it; None: it is a file itself."""
        if not os.path.exists(place):  # unlike Path.exists also where a directory may not be entered
            raise DataError(f"{name}: no such file or directory. Give image files, or directories with images.")
        if self._in_out(place):
            raise DataError(
                f"{name} lies in the output directory {self.out}, where it could be overwritten. Choose another."
            )
        if not place.is_dir() and not place.is_file():
            raise DataError(f"{name} is neither a file nor a directory. Give image files, or directories with images.")
        if not place.is_dir():
            return None
        below = [path for path in files_below(place, self.unreadable) if not self._in_out(path)]
        special = [path for path in below if not path.is_file() and not path.is_symlink()]
        self.other += map(str, special)
        return [(path, path.relative_to(place).as_posix()) for path in below if path not in special]

    def _remote(self, place: Location) -> list[tuple[File, str]] | None:
        if place.is_file():
            return None
        if not place.exists():
            raise DataError(f"{place}: no such file or directory. Give image files, or directories with images.")
        return [(place / name, name) for name in place.files_below() if not self._in_out(place / name)]

    def _in_out(self, file: File) -> bool:
        """Whether a file lies in the directory of the results, or is that directory."""
        if isinstance(file, Path):
            return isinstance(self.out, Path) and file.resolve().is_relative_to(self.out)
        if isinstance(self.out, Path) or file.filesystem != self.out.filesystem:
            return False
        return f"{file.path}/".startswith(f"{self.out.path}/")

    def passed_over(self) -> list[str]:
        """One text for each kind of file that was not taken."""
        return [
            *_counted(self.other, "not images by their suffix"),
            *_counted(self.videos, video.NEEDS),
            *_counted(self.hidden, "hidden"),
            *_counted(self.unreadable, "directories that cannot be read"),
        ]


def _key(file: File) -> str:
    return str(file) if isinstance(file, Location) else str(file.resolve())


def _counted(names: Sequence[str], why: str) -> list[str]:
    return [f"{len(names)} left out ({why}): {first_of(names, NAMED)}"] if names else []


def _with_ids(found: Sequence[tuple[File, File | None]], ids: str, passed_over: Sequence[str]) -> Images:
    """The files that the annotation file names, under its ids: the longest common end of both names decides."""
    by_end: defaultdict[tuple[str, ...], list[tuple[int, str]]] = defaultdict(list)
    listed = read_images(Path(ids))
    for number, name in listed.items():
        by_end[name_parts(name)].append((number, name))
    chosen: dict[int, File] = {}
    unlisted: list[str] = []
    for path, directory in found:
        match = [] if is_many(path.name) else _match(path, directory, by_end)
        if not match:
            unlisted.append(str(path))
            continue
        if len(match) > 1:
            raise DataError(
                f"{ids}: {path} could be {first_of([f'{name} (id {number})' for number, name in match], 3)}. "
                "Give the directory to which its file names are relative."
            )
        number, name = match[0]
        if number in chosen:
            raise DataError(
                f"{ids}: {name} (id {number}) could be {chosen[number]} or {path}. Give the directory to which its "
                "file names are relative."
            )
        chosen[number] = path
    if not chosen:
        raise DataError(
            f"{ids} names none of the {len(found)} images, such as {found[0][0]}; it has "
            f"{first_of(list(listed.values()), 3)}. Give the images of this file."
        )
    missing = [name for number, name in listed.items() if number not in chosen]
    if missing:
        logger.warning("%s: %d of its images were not given, such as %s", ids, len(missing), first_of(missing, NAMED))
    passed_over = [*passed_over, *_counted(unlisted, f"not in {ids}")]
    return Images(tuple(chosen.values()), tuple(chosen), tuple(passed_over))


def _match(
    file: File, above: File | None, by_end: dict[tuple[str, ...], list[tuple[int, str]]]
) -> list[tuple[int, str]]:
    """The entries whose name is the end of the path; relative to the directory where there is one, else the longest."""
    path, directory = (Path(each.path) if isinstance(each, Location) else each for each in (file, above))
    assert path is not None, "a file has a path"
    if directory is not None:
        exact = by_end.get(name_parts(path.relative_to(directory).as_posix()))
        if exact:
            return exact
    parts = name_parts(path.absolute().as_posix())
    for start in range(len(parts)):
        if entries := by_end.get(parts[start:]):
            return entries
    ends = [entry for key, entries in by_end.items() if key and key[-1] == parts[-1] for entry in entries]
    return ends if len(ends) == 1 else []
