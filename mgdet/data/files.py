"""From a file name in annotations to the image file: one place that knows by which readings a name leads there.

A name is read as it stands first. Where that leads nowhere, it may still lead to exactly one file by an obvious
reading: backslashes between directories, `%20`, white space around it, another case or Unicode form, the image
directory named twice, or only the last part of an absolute path or URL of another machine. Such a reading is noted.
Whatever else is near only helps the message.
"""

import os
import posixpath
import re
import stat
import unicodedata
from abc import ABC, abstractmethod
from collections import defaultdict
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from mgdet.errors import DataError
from mgdet.text import first_of

if TYPE_CHECKING:  # the formats of annotations are imported before the arguments of a command are read
    from mgdet.storage import File, Location

_FOREIGN = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]+://[^/]*/*|[A-Za-z]:/+|/+|~/+)")
"""The beginning of a URL, of a path with a drive's letter, or of an absolute path."""


_NO_PICTURES = frozenset(("EPS", "PDF", "MPEG", "HDF5", "GRIB", "BUFR", "WMF"))
"""Formats that Pillow knows and cannot read by itself."""


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, in small letters, of the files that are taken from directories: those of every format that is read.

    A file that is given by name may have any.
    """
    from PIL import Image  # the formats of annotations are imported before the arguments of a command are read

    known = Image.registered_extensions()
    read = {*Image.OPEN, "MPO"} - _NO_PICTURES  # MPO is opened as the JPEG that it begins with
    return frozenset(suffix for suffix, kind in known.items() if kind in read)


class Found(NamedTuple):
    """The file that a name leads to."""

    name: str
    """Of the file, relative to the image directory."""
    renamed: bool = False
    """Whether the name in the annotations leads there only by another reading."""


class NotFound(Exception):
    """A name leads to no file, or to several; the text says why and what stands there instead."""


class ImageFiles(ABC):
    """The files of one image directory, with all below it."""

    directory: "File"

    def find(self, name: str) -> Found:
        """The file that `name` leads to. Raises `NotFound`."""
        exact = self._exactly(name)
        if exact is not None:
            return Found(exact)
        parts, foreign = _parts(name)
        for candidate in self._readings(parts, foreign):
            files = self._index.get(_key(candidate), [])
            files = [f for f in files if f == "/".join(candidate)] or files
            if len(files) == 1:
                return Found(files[0], True)
            if files:
                raise NotFound(f"there is no such file, and {first_of(files, 3)} are equally near: give its exact name")
        raise NotFound(self._otherwise(name) or f"there is no such file{self._near(parts)}")

    @abstractmethod
    def version(self, name: str) -> tuple[int, int]:
        """Size in bytes and time of the last change, ns, of a file that was found. Raises `OSError`."""

    @abstractmethod
    def identity(self, name: str) -> str:
        """What is the same for two names of one file."""

    @abstractmethod
    def _exactly(self, name: str) -> str | None:
        """The file that the name leads to as it stands."""

    @abstractmethod
    def _otherwise(self, name: str) -> str | None:
        """What stands in the place of a file, or why a file may not be taken; None: nothing."""

    @abstractmethod
    def _names(self) -> list[str]:
        """All files, relative to the directory and sorted."""

    @abstractmethod
    def _above(self) -> tuple[str, ...]:
        """The parts of the directory's own path."""

    def _readings(self, parts: tuple[str, ...], foreign: bool) -> list[tuple[str, ...]]:
        """What a name may mean below the directory, the longest first.

        A path of another machine may begin anywhere above; a relative one may only repeat the end of the directory.
        """
        above = tuple(_folded(part) for part in self._above())
        starts = range(len(parts)) if foreign else [k for k in range(len(parts)) if _ends_with(above, parts[:k])]
        return [parts[k:] for k in starts]

    @cached_property
    def _index(self) -> dict[tuple[str, ...], list[str]]:
        """All files by their parts without case and Unicode form."""
        found: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for name in self._names():
            found[_key(tuple(name.split("/")))].append(name)
        return found

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for key, paths in self._index.items():
            found[key[-1].rpartition(".")[0]].extend(paths)
        return found

    def _near(self, parts: tuple[str, ...]) -> str:
        name = _folded(parts[-1]) if parts else ""
        near = [p for key, paths in self._index.items() if key[-1] == name for p in paths]
        near = near or self._by_stem.get(name.rpartition(".")[0] or name, [])
        return f"; in {self.directory} there is {first_of(near, 3)}" if near else ""


class LocalFiles(ImageFiles):
    """Those of a directory of this machine.

    Args:
        directory: with all below it, linked directories included.
        allow_outside: whether names may lead out of the directory, by `..` or as absolute paths.

    Raises:
        DataError: there is no such directory.
    """

    def __init__(self, directory: Path, allow_outside: bool = False) -> None:
        self.directory: Path = directory
        self._root, self.allow_outside = os.fspath(directory), allow_outside
        if not directory.is_dir():
            raise DataError(f"The image directory {directory} does not exist. Correct it.")

    def version(self, name: str) -> tuple[int, int]:
        """See `ImageFiles`."""
        status = os.stat(self._path(name))
        return status.st_size, status.st_mtime_ns

    def identity(self, name: str) -> str:
        """See `ImageFiles`: the path without links."""
        return os.path.realpath(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._root, name)  # a `Path` for each of a million names would take seconds and memory

    def _exactly(self, name: str) -> str | None:
        if "\0" in name or not (self.allow_outside or self._inside(name)):
            return None
        try:
            return name if stat.S_ISREG(os.stat(self._path(name)).st_mode) else None
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _inside(self, name: str) -> bool:
        return os.path.abspath(self._path(name)).startswith(os.path.join(os.path.abspath(self._root), ""))

    def _otherwise(self, name: str) -> str | None:
        path = self.directory / name
        if "\0" in name:
            return None
        if path.is_file() and not self._inside(name):
            return f"it lies outside of the image directory {self.directory}; pass --allow-outside to read it"
        if path.is_dir():
            return "it is a directory, not a file"
        if path.is_symlink():
            return "it is a link that leads nowhere"
        return "it is not a regular file" if path.exists() else None

    def _names(self) -> list[str]:
        return [path.relative_to(self.directory).as_posix() for path in files_below(self.directory)]

    def _above(self) -> tuple[str, ...]:
        return self.directory.absolute().parts


class StoredFiles(ImageFiles):
    """Those of a directory of a store, which is listed once; no name leads out of it.

    Raises:
        DataError: there are none, or the store cannot be read.
    """

    def __init__(self, directory: "Location") -> None:
        self.directory: Location = directory
        try:
            self._files = directory.files_below()
        except OSError as error:
            raise DataError(
                f"The image directory {directory} cannot be listed: {error}. Check the address, the rights and the "
                "store."
            ) from error
        if not self._files:
            raise DataError(f"The image directory {directory} does not exist, or has no files. Correct it.")

    def version(self, name: str) -> tuple[int, int]:
        """See `ImageFiles`."""
        return self._files[name]

    def identity(self, name: str) -> str:
        """See `ImageFiles`."""
        return f"{self.directory.path}/{name}"

    def _exactly(self, name: str) -> str | None:
        plain = posixpath.normpath(name)
        return plain if plain in self._files else None

    def _otherwise(self, name: str) -> str | None:
        return None

    def _names(self) -> list[str]:
        return list(self._files)

    def _above(self) -> tuple[str, ...]:
        return tuple(part for part in self.directory.path.split("/") if part)


def files_below(directory: Path, unreadable: list[str] | None = None) -> list[Path]:
    """All files in a directory and below it, sorted; linked directories are entered, each directory once.

    Directories that cannot be read are appended to `unreadable`.
    """
    found: list[Path] = []
    entered: set[tuple[int, int]] = set()

    def note(error: OSError) -> None:
        if unreadable is not None:
            unreadable.append(f"{error.filename}: {error.strerror}")

    for folder, below, names in os.walk(directory, followlinks=True, onerror=note):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            below.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        found += [Path(folder) / name for name in names]
    return sorted(found)


def _parts(name: str) -> tuple[tuple[str, ...], bool]:
    """The parts of a name without what only other machines know, and whether there was something of that kind."""
    text = name.strip().replace("\\", "/")
    foreign = _FOREIGN.match(text)
    if foreign and "://" in foreign.group():
        text = re.split(r"[?#]", text)[0]
    if foreign:
        text = text[foreign.end() :]
    parts: list[str] = []
    for part in text.split("/"):
        if part == "..":
            foreign = foreign or (None if parts else _FOREIGN.match("/"))
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts), foreign is not None


def name_parts(name: str) -> tuple[str, ...]:
    """The parts of a file name without case, Unicode form and kind of separator: equal where names mean one file."""
    return _key(_parts(name)[0])


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", unquote(text).strip()).casefold())


def _key(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_folded(part) for part in parts)


def _ends_with(above: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    return not parts or above[-len(parts) :] == _key(parts)
