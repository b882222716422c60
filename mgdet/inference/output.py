"""Files of results, which are never seen half written."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from mgdet.errors import DataError
from mgdet.files import absolute, may_be_written
from mgdet.storage import child_uri, locate

_AT_ONCE = 1000
"""Elements of a list that are written at once."""


class OutputFile:
    """A file to be written at the end of long work, whose place is checked when the value is made, before that work.

    Args:
        uri: local path or `pyarrow.fs` URI. Its directory is made; an existing file is replaced.

    Raises:
        DataError: it is a directory or another thing that is no regular file, or its directory cannot be made.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.file = locate(uri)
        try:
            if self.file.is_directory():
                example = child_uri(uri, "metrics.json")
                raise DataError(f"{uri} is a directory; give the name of a file in it, such as {example}.")
            if self.file.is_local:
                may_be_written(self.file.path)
            self.file.parent.mkdir()
        except OSError as error:
            raise self._unwritable(error) from error

    def write_bytes(self, content: bytes) -> None:
        """Replace the whole file. Raises `DataError`."""
        with self.replacing() as stream:
            stream.write(content)

    @contextmanager
    def replacing(self) -> Iterator[Any]:
        """Replace the whole file by what the block writes to this `pyarrow.NativeFile`. Raises `DataError`."""
        try:
            with self.file.replacing() as stream:
                yield stream
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"{self.uri} cannot be written: {error}. Check the path, the space and the rights.")


class JsonFile(OutputFile):
    """An `OutputFile` of JSON."""

    def write(self, value: Any) -> None:
        """Write a plain value, replacing the whole file; a list has one element a line. Raises `DataError`."""
        if isinstance(value, list):
            self.write_list(value)
        else:
            self.write_bytes(f"{json.dumps(value, indent=1)}\n".encode())

    def write_list(self, elements: Iterable[Any], before: str = "", after: str = "") -> None:
        """Write a list as its elements come, one a line, between two pieces of JSON. Raises `DataError`."""
        lines, separator = map(json.dumps, elements), ""
        with self.replacing() as stream:
            stream.write(f"{before}[\n".encode())
            while some := list(islice(lines, _AT_ONCE)):
                stream.write((separator + ",\n".join(some)).encode())
                separator = ",\n"
            stream.write(f"\n]{after}\n".encode())


def empty_directory(out: str, overwrite: bool) -> Path:
    """The absolute path of a local directory that is absent or empty, or may hold files where `overwrite` is set.

    Raises `DataError` for anything else. It is not made.
    """
    if "://" in out or not out.strip():
        raise DataError(f"The output directory is {out!r}; it must be a local directory.")
    try:
        path = absolute(out)
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise DataError(f"{out} cannot be used: {error}. Choose another place.") from error
    if path.exists() and not path.is_dir():
        raise DataError(f"{out} is a file; nothing was written. Give a directory.")
    if taken and not overwrite:
        raise DataError(f"{out} is not empty; nothing was written. Choose another place or pass --overwrite.")
    return path
