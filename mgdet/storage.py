"""Files of runs and data sets: a local path or any URI that `pyarrow.fs` opens (`s3://`, `gs://`, `file://`, ...)."""

import errno
import os
import posixpath
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs
from pydantic import AfterValidator

from mgdet.errors import DataError
from mgdet.files import absolute, may_be_written, read_regular, require_regular
from mgdet.text import has_password

_READS = 10
"""How often a file is read that changes while it is read."""


@dataclass(frozen=True)
class Location:
    """A file or directory, which need not exist; made by `locate`, and from another one with `/`.

    Every method that touches the store raises `OSError` where it fails. `str()` gives what `locate` takes.
    """

    filesystem: fs.FileSystem
    path: str
    """The path inside the file system, absolute on a local disk, without a slash at its end."""
    uri: str
    """The whole address: equal to `path` on a local disk, elsewhere with scheme and parameters."""

    def __truediv__(self, name: str) -> "Location":
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{name}", child_uri(self.uri, name))

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> "Location":
        """The directory that holds this location."""
        address, parameters = _split(self.uri)
        return Location(self.filesystem, _directory(self.path), _directory(address) + parameters)

    @property
    def is_local(self) -> bool:
        """Whether this is on a disk of this machine, where a file or directory can be renamed at once."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def with_name(self, name: str) -> "Location":
        """The location called `name` in the same directory."""
        return self.parent / name

    def exists(self) -> bool:
        """Whether there is a file or directory."""
        return not self._is(fs.FileType.NotFound)

    def is_file(self) -> bool:
        """Whether there is a file."""
        return self._is(fs.FileType.File)

    def is_directory(self) -> bool:
        """Whether there is a directory."""
        return self._is(fs.FileType.Directory)

    def children(self) -> dict[str, int | None]:
        """Name and size in bytes of everything directly in this directory (None for a directory); empty without one."""
        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return {info.base_name: info.size for info in infos}

    def modified(self) -> dict[str, float]:
        """Name and time of the last change of every file directly in this directory, seconds since 1970."""
        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return {i.base_name: i.mtime.timestamp() for i in infos if i.type == fs.FileType.File and i.mtime}

    def files_below(self) -> dict[str, tuple[int, int]]:
        """Size in bytes and time of the last change, ns since 1970, of each file in and below this directory.

        By the path relative to it, sorted.
        """
        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True, recursive=True))
        before = f"{self.path.strip('/')}/".lstrip("/")
        paths = ((i.path.lstrip("/"), i) for i in infos if i.type == fs.FileType.File)
        files = ((path.removeprefix(before), (i.size, i.mtime_ns or 0)) for path, i in paths)
        return dict(sorted(files))

    def is_empty(self) -> bool:
        """Whether nothing is stored at or under this location."""
        return not any(self._is(kind) for kind in (fs.FileType.File, fs.FileType.Unknown)) and not self.children()

    def open_input(self) -> Any:
        """The file as a `pyarrow.NativeFile` that reads at any position."""
        self._require_regular()
        return self.filesystem.open_input_file(self.path)

    def open_output(self) -> Any:
        """A `pyarrow.NativeFile` that creates or replaces the file as it is written."""
        if self.is_local:
            may_be_written(self.path)
        return self.filesystem.open_output_stream(self.path, compression=None)  # also where its name ends in .gz

    def read_bytes(self) -> bytes:
        """The content of the file, never a mixture of two, also while somebody else replaces or removes it."""
        self._require_regular()
        # An object store is asked for the size of a file, and then for so many bytes of what is there by then
        for _ in range(_READS):
            data, failure = b"", None
            with self._open_stream() as stream:
                version = stream.metadata()
                try:
                    data = bytes(stream.read())
                except OSError as error:
                    failure = error
            if failure is None and self.is_local:
                return data
            with self._open_stream() as stream:  # raises `FileNotFoundError` where the file has gone
                unchanged = stream.metadata() == version
            if unchanged and failure is not None:
                raise failure
            if unchanged:
                return data
        raise OSError(errno.EAGAIN, f"the file changed each of the {_READS} times that it was read", str(self))

    def write(self, data: bytes) -> None:
        """Create or replace the file. A reader, or a crash, may meet a part of it on a local disk: see `replace`."""
        with self.open_output() as stream:
            stream.write(data)

    def replace(self, data: bytes) -> None:
        """Create or replace the file so that a reader, now or after a crash, sees the old or the new one, no part."""
        with self.replacing() as stream:
            stream.write(data)

    @contextmanager
    def replacing(self) -> Iterator[Any]:
        """As `replace`, for content that is made as it is written: a `pyarrow.NativeFile`.

        The file is there when the block has ended. After an error in the block the old one stays on a local disk; in an
        object store a part may take its place.
        """
        if not self.is_local:  # an object appears when it is complete
            with self.open_output() as stream:
                yield stream
            return
        temporary = self.with_name(f"{self.name}.tmp")
        may_be_written(self.path)
        try:
            with temporary.open_output() as stream:
                yield stream
            self.filesystem.move(temporary.path, self.path)
        except BaseException:
            with suppress(OSError):  # on a full disk a part of the file would take the room that is left
                temporary.delete()
            raise

    def delete(self) -> None:
        """Remove the file."""
        self.filesystem.delete_file(self.path)

    def mkdir(self) -> None:
        """Make the directory and those above it, as far as they are missing."""
        self.filesystem.create_dir(self.path, recursive=True)

    def clear(self) -> None:
        """Remove everything in the directory."""
        self.filesystem.delete_dir_contents(self.path)

    def remove(self) -> None:
        """Remove the directory with everything in it."""
        self.filesystem.delete_dir(self.path)

    def _open_stream(self) -> Any:
        return self.filesystem.open_input_stream(self.path, compression=None)

    def _require_regular(self) -> None:
        if self.is_local:
            require_regular(self.path)

    def _is(self, kind: Any) -> bool:
        return bool(self.filesystem.get_file_info(self.path).type == kind)


File: TypeAlias = Path | Location
"""A local file or directory as the user named it, or one of a store."""


def as_file(name: str | os.PathLike[str]) -> File:
    """What a path or URI names; a `file://` URI is the local path. Raises `DataError` as `locate` does."""
    if "://" not in (text := os.fspath(name)):
        return Path(text)
    place = locate(text)
    return Path(place.path) if place.is_local else place


def read_file(file: File) -> bytes:
    """The content of a file. Raises `OSError`."""
    return file.read_bytes() if isinstance(file, Location) else read_regular(file)


def locate(uri: str | os.PathLike[str]) -> Location:
    """The location of a path or URI; a plain path is made absolute.

    Raises:
        DataError: the scheme is unknown, the store cannot be reached, the URI holds a password, or the path leads
            nowhere.
    """
    text = os.fspath(uri)
    if not text.strip():
        raise DataError("The data set's location is empty. Give a local path or a URI such as s3://bucket/coco.")
    try:
        require_no_password(text)
    except ValueError as error:
        raise DataError(f"{text}: {error}") from None
    if "://" not in text:
        try:
            path = str(absolute(text))
        except OSError as error:
            raise DataError(f"{text}: {error}. Give another path.") from None
        return Location(fs.LocalFileSystem(), path, path)
    filesystem, path = _open(text)
    path = path.rstrip("/") or "/"
    return Location(filesystem, path, path if isinstance(filesystem, fs.LocalFileSystem) else text)


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(uri)  # type: ignore[no-any-return]  # pyarrow has no types
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"Cannot open {uri!r}: {error}. Allowed: a local path, or a URI with a scheme that pyarrow.fs knows "
            "(file, s3, gs, abfs, hdfs). Check the scheme, the bucket and the credentials."
        ) from error


def child_uri(uri: str, name: str) -> str:
    """The path or URI of `name` in the directory `uri`, whose parameters (`?region=...`) stay at the end.

    Opens nothing, unlike `locate`.
    """
    if "://" not in uri:
        return f"{uri.rstrip('/')}/{name}"
    address, parameters = _split(uri)
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.rstrip('/')}/{quote(name)}{parameters}"


def place_in_store_of(there: Location, uri: str) -> str | None:
    """The path of an absolute path or URI in the store of another location; None where it is in another store.

    Opens nothing: the address may be one that somebody else wrote.
    """
    if there.is_local:
        return uri if uri.startswith("/") else None
    (address, parameters), (known, known_parameters) = _split(uri), _split(str(there))
    same = address.partition("://")[0] == known.partition("://")[0] and parameters == known_parameters
    # What stands before the path in an address, nothing for a bucket or the name of a server, does so in both
    before = len(unquote(known)) - len(there.path)
    whole = unquote(address)
    return whole[before:] if same and whole[:before] == unquote(known)[:before] else None


def seen_from(directory: str, uri: str) -> str:
    """An absolute path or URI relative to a directory of the same store: `../../shapes`; any other text as it is.

    What keeps this when directories are moved has been moved along with them. Opens nothing.
    """
    (address, parameters), (base, base_parameters) = _split(uri), _split(directory)
    if "://" in address or "://" in base:
        scheme, mark, path = address.partition("://")
        base_scheme, base_mark, base_path = base.partition("://")
        if (scheme, mark, parameters) != (base_scheme, base_mark, base_parameters):
            return uri
        return posixpath.relpath(f"/{path}", f"/{base_path}")
    return posixpath.relpath(address, base) if address.startswith("/") and base.startswith("/") else uri


def local_path(uri: str) -> Path | None:
    """The absolute path of a local path or `file://` URI, None for every other URI. Opens no remote store."""
    if "://" in uri and not uri.startswith("file://"):
        return None
    return Path(locate(uri).path)


def _split(uri: str) -> tuple[str, str]:
    """A URI before its parameters, and the parameters with their `?`; a plain path has none."""
    address, mark, parameters = uri.partition("?") if "://" in uri else (uri, "", "")
    return address, mark + parameters


def _directory(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0] or "/"


def require_no_password(uri: str) -> str:
    """The same location. Raises `ValueError` if it carries a password: locations stand in records, logs and MLflow."""
    if has_password(uri):
        raise ValueError(
            "a location must not hold a password or key, because it is written to logs and records; give it in the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, ...) or by the "
            "machine's role, and leave it out of the URI"
        )
    return uri


Place = Annotated[str, AfterValidator(require_no_password)]
"""A local path or a URI of `pyarrow.fs`, as a configuration key. It stands in files and logs: no password."""


def is_taken(uri: str | os.PathLike[str]) -> bool:
    """Whether anything is at or under a location. Raises `DataError` where that cannot be found out."""
    try:
        return not locate(uri).is_empty()
    except OSError as error:
        raise DataError(f"{uri} cannot be looked into: {error}. Check the path, the rights and the store.") from error


def may_take(uri: str | os.PathLike[str], *, overwrite: bool, is_ours: Callable[[Location], bool]) -> bool:
    """Whether a directory that may be replaced is at a location. Raises `DataError` for one that may not.

    Args: as for `new_directory`.
    """
    occupied = is_taken(uri)
    if occupied and not overwrite:
        raise DataError(f"{uri} exists already and nothing was written. Choose another place or pass --overwrite.")
    if occupied and not is_ours(locate(uri)):
        raise DataError(
            f"{uri} exists and is not a data set of mgdet (it has no dataset.json), so it is not replaced even with "
            "--overwrite. Choose another place or remove it yourself."
        )
    return occupied


@contextmanager
def new_directory(
    uri: str | os.PathLike[str], *, overwrite: bool, is_ours: Callable[[Location], bool]
) -> Iterator[Location]:
    """A directory to fill, which appears at `uri` only if the block ends without an error.

    Local: the block fills a temporary sibling that is renamed at the end. Object stores cannot rename, so the block
    fills the destination itself and must write the file that commits it last; after an error what it wrote is deleted.

    Args:
        uri: the destination.
        overwrite: replace what is there, which must be empty or `is_ours`: a mistyped path must not cost other files.
        is_ours: tells whether an existing directory is a data set of this package.

    Raises:
        DataError: the destination exists and may not be replaced, or cannot be written.
    """
    target = locate(uri)
    occupied = may_take(uri, overwrite=overwrite, is_ours=is_ours)
    fill = _fill_local if target.is_local else _fill_remote
    try:
        with fill(target, occupied) as directory:
            yield directory
    except OSError as error:
        raise DataError(
            f"Cannot write {uri}: {error}. Nothing was kept. Check the space, the rights and the store."
        ) from error


@contextmanager
def _fill_local(target: Location, occupied: bool) -> Iterator[Location]:
    final = Path(target.path)
    staged = final.with_name(f".{final.name}.tmp-{uuid.uuid4().hex[:8]}")
    staged.mkdir(parents=True)
    try:
        yield target.with_name(staged.name)
        take_place(staged, final, occupied)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def take_place(staged: Path, final: Path, occupied: bool) -> None:
    """Rename a directory to `final`; one that it replaces there stays as it is if this fails. Raises `OSError`."""
    retired = final.with_name(f".{final.name}.old-{uuid.uuid4().hex[:8]}")
    try:
        if occupied:
            final.rename(retired)
        staged.rename(final)  # fails if another process has filled the destination meanwhile
    except BaseException:
        if retired.exists() and not final.exists():
            retired.rename(final)
        raise
    shutil.rmtree(retired, ignore_errors=True)


@contextmanager
def _fill_remote(target: Location, occupied: bool) -> Iterator[Location]:
    if occupied:
        target.clear()
    target.mkdir()
    try:
        yield target
    except BaseException:
        target.clear()
        raise
