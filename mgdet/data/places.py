"""Where annotations and images are given: local paths, or URIs of stores."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mgdet.data.formats.base import AnnotatedSplit, DataFormat
from mgdet.errors import DataError
from mgdet.storage import File, Location, as_file


def read_split(data_format: DataFormat, places: Sequence[str | os.PathLike[str]]) -> AnnotatedSplit:
    """What a format reads from the places of a split; files of stores are fetched whole.

    Args:
        data_format: reads the annotations.
        places: a path or a URI for each of `data_format.places`.

    Raises:
        DataError: the annotations cannot be read or are malformed, or the format takes no URIs.
    """
    named = [as_file(place) for place in places]
    stored = [place for place in named if isinstance(place, Location)]
    if not stored:
        return data_format.read([Path(place) for place in named if isinstance(place, Path)])
    if not data_format.takes_uris:
        raise DataError(
            f"{stored[0]}: the format {data_format.name} takes local paths only, because it looks through directories "
            "while it reads. Give paths of this machine, or annotations of a format that is a file, such as coco."
        )
    *files, directory = named
    with tempfile.TemporaryDirectory(prefix="mgdet-") as temporary:
        here = [_fetched(file, Path(temporary, str(number))) for number, file in enumerate(files)]
        try:
            content = data_format.read([*here, Path(str(directory))])
        except DataError as error:
            raise DataError(_renamed(str(error), here, files)) from error
    return content._replace(annotations=files[0], directory=directory)


def _fetched(file: File, directory: Path) -> Path:
    """The local copy of a file, made in a directory of its own; a local file itself."""
    if isinstance(file, Path):
        return file
    directory.mkdir()
    copy = directory / file.name
    try:
        copy.write_bytes(file.read_bytes())
    except OSError as error:
        raise DataError(
            f"Cannot fetch the annotation file {file}: {error}. Check the address, the rights and the store."
        ) from error
    return copy


def _renamed(text: str, copies: Sequence[Path], files: Sequence[File]) -> str:
    """A message in which each copy is called by its origin."""
    for copy, file in zip(copies, files, strict=True):
        text = text.replace(str(copy), str(file))
    return text
