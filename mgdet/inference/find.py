"""The image files that a prediction takes: from files and directories by name, and by the ids of an annotation file."""

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mgdet.data.files import files_below, image_suffixes, name_parts
from mgdet.data.formats.coco import read_images
from mgdet.errors import DataError
from mgdet.text import first_of

logger = logging.getLogger(__name__)

NAMED = 5


class Images(NamedTuple):
    """The files that are taken, and what is passed over."""

    paths: tuple[Path, ...]
    ids: tuple[int, ...] | None
    """Of each path, from an annotation file; None: their positions, without those that cannot be read."""
    passed_over: tuple[str, ...] = ()
    """One text for each kind of file that is left out: how many, why, and the first names."""


def find_images(inputs: Sequence[str], out: Path, ids: str | None = None) -> Images:
    """The image files that `inputs` name, each once: in the order given, those of a directory sorted.

    Directories are searched with all below them, linked ones included. Hidden files, files whose suffix is not an
    image's, and what lies in `out` (pictures of an earlier prediction) are passed over; the first two are counted.

    Args:
        inputs: files and directories.
        out: the directory of the results.
        ids: an annotation file in COCO's format: only its images are taken, under its ids.

    Raises:
        DataError: an input that does not exist or lies in `out` itself, no image at all, or an `ids` that is no
            annotation file or in which names are ambiguous.
    """
    out = out.resolve()
    found: dict[Path, tuple[Path, Path | None]] = {}  # by what is read: as it is named, and below which directory
    other: list[str] = []
    hidden: list[str] = []
    unreadable: list[str] = []
    for name in inputs:
        given = Path(name)
        if not os.path.exists(given):  # unlike Path.exists also where a directory may not be entered
            raise DataError(f"{name}: no such file or directory. Give image files, or directories with images.")
        if given.resolve().is_relative_to(out):
            raise DataError(
                f"{name} lies in the output directory {out}, where it could be overwritten. Choose another."
            )
        if not given.is_dir() and not given.is_file():
            raise DataError(f"{name} is neither a file nor a directory. Give image files, or directories with images.")
        if not given.is_dir():
            found.setdefault(given.resolve(), (given, None))
            continue
        below = [path for path in files_below(given, unreadable) if not path.resolve().is_relative_to(out)]
        images = []
        for path in below:
            if any(part.startswith(".") for part in path.relative_to(given).parts):
                hidden.append(str(path))
            elif path.suffix.lower() in image_suffixes() and (path.is_file() or path.is_symlink()):
                images.append(path)
            else:
                other.append(str(path))
        if not images:
            logger.warning("%s: no file with the suffix of an image in it or below", name)
        for path in images:
            found.setdefault(path.resolve(), (path, given))
    if not found:
        raise DataError(
            f"No images in {', '.join(inputs) or 'nothing'}. Taken are files with the suffixes "
            f"{', '.join(sorted(image_suffixes()))}; name a file itself if it is called otherwise."
        )
    passed_over = [
        *_counted(other, "not images by their suffix"),
        *_counted(hidden, "hidden"),
        *_counted(unreadable, "directories that cannot be read"),
    ]
    if ids is None:
        return Images(tuple(path for path, _ in found.values()), None, tuple(passed_over))
    return _with_ids(list(found.values()), ids, passed_over)


def _counted(names: Sequence[str], why: str) -> list[str]:
    return [f"{len(names)} left out ({why}): {first_of(names, NAMED)}"] if names else []


def _with_ids(found: Sequence[tuple[Path, Path | None]], ids: str, passed_over: Sequence[str]) -> Images:
    """The files that the annotation file names, under its ids: the longest common end of both names decides."""
    by_end: defaultdict[tuple[str, ...], list[tuple[int, str]]] = defaultdict(list)
    listed = read_images(Path(ids))
    for number, name in listed.items():
        by_end[name_parts(name)].append((number, name))
    chosen: dict[int, Path] = {}
    unlisted: list[str] = []
    for path, directory in found:
        match = _match(path, directory, by_end)
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
    path: Path, directory: Path | None, by_end: dict[tuple[str, ...], list[tuple[int, str]]]
) -> list[tuple[int, str]]:
    """The entries whose name is the end of the path; relative to the directory where there is one, else the longest."""
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
