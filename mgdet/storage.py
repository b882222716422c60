"""Where data sets live: a local path or any URI that `pyarrow.fs` opens (`s3://`, `gs://`, `file://`, ...)."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from pyarrow import fs
from pydantic import AfterValidator

from mgdet.errors import DataError
from mgdet.text import has_password


def locate(uri: str | os.PathLike[str]) -> tuple[fs.FileSystem, str]:
    """The file system of `uri` and the path inside it; a plain path is made absolute.

    Raises:
        DataError: the scheme is unknown, the store cannot be reached, or the URI holds a password.
    """
    text = os.fspath(uri)
    if not text.strip():
        raise DataError("The data set's location is empty. Give a local path or a URI such as s3://bucket/coco.")
    try:
        require_no_password(text)
    except ValueError as error:
        raise DataError(f"{text}: {error}") from None
    if "://" not in text:
        return fs.LocalFileSystem(), str(Path(text).expanduser().resolve())
    try:
        return fs.FileSystem.from_uri(text)  # type: ignore[no-any-return]  # pyarrow has no types
    except (OSError, ValueError) as error:
        raise DataError(
            f"Cannot open {text!r}: {error}. Allowed: a local path, or a URI with a scheme that pyarrow.fs knows "
            "(file, s3, gs, abfs, hdfs). Check the scheme, the bucket and the credentials."
        ) from error


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


def is_local(filesystem: fs.FileSystem) -> bool:
    """True where a directory can be renamed at once."""
    return isinstance(filesystem, fs.LocalFileSystem)


def is_empty(filesystem: fs.FileSystem, path: str) -> bool:
    """True when nothing is stored at or under `path`."""
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File:
        return False
    return not filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))


def read_bytes(filesystem: fs.FileSystem, path: str) -> bytes:
    """The whole file."""
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def write_bytes(filesystem: fs.FileSystem, path: str, data: bytes) -> None:
    """Create or replace a file."""
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


def replace_bytes(filesystem: fs.FileSystem, path: str, data: bytes) -> None:
    """Create or replace a file so that a reader, now or after a crash, sees the old or the new one, never a part."""
    if not is_local(filesystem):  # an object appears when it is complete
        write_bytes(filesystem, path, data)
        return
    try:
        write_bytes(filesystem, path + ".tmp", data)
        filesystem.move(path + ".tmp", path)
    except OSError:
        with suppress(OSError):  # on a full disk a part of the file would take the room that is left
            filesystem.delete_file(path + ".tmp")
        raise


@contextmanager
def new_directory(
    uri: str | os.PathLike[str], *, overwrite: bool, is_ours: Callable[[fs.FileSystem, str], bool]
) -> Iterator[tuple[fs.FileSystem, str]]:
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
    filesystem, target = locate(uri)
    occupied = not is_empty(filesystem, target)
    if occupied and not overwrite:
        raise DataError(f"{uri} exists already and nothing was written. Choose another place or pass --overwrite.")
    if occupied and not is_ours(filesystem, target):
        raise DataError(
            f"{uri} exists and is not a data set of mgdet (it has no dataset.json), so it is not replaced even with "
            "--overwrite. Choose another place or remove it yourself."
        )
    fill = _fill_local(target, occupied) if is_local(filesystem) else _fill_remote(filesystem, target, occupied)
    try:
        with fill as path:
            yield filesystem, path
    except OSError as error:
        raise DataError(
            f"Cannot write {uri}: {error}. Nothing was kept. Check the space, the rights and the store."
        ) from error


@contextmanager
def _fill_local(target: str, occupied: bool) -> Iterator[str]:
    final = Path(target)
    suffix = uuid.uuid4().hex[:8]
    staged, retired = (final.with_name(f".{final.name}.{kind}-{suffix}") for kind in ("tmp", "old"))
    staged.mkdir(parents=True)
    try:
        yield str(staged)
        if occupied:
            final.rename(retired)
        staged.rename(final)  # fails if another process has filled the destination meanwhile
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        if retired.exists() and not final.exists():
            retired.rename(final)
        raise
    shutil.rmtree(retired, ignore_errors=True)


@contextmanager
def _fill_remote(filesystem: fs.FileSystem, target: str, occupied: bool) -> Iterator[str]:
    if occupied:
        filesystem.delete_dir_contents(target)
    filesystem.create_dir(target, recursive=True)
    try:
        yield target
    except BaseException:
        filesystem.delete_dir_contents(target)
        raise
