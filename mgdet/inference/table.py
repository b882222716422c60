"""Images in the rows of Parquet files: shards of a prepared data set, or tables of others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mgdet.errors import DataError
from mgdet.files import require_regular
from mgdet.storage import Location
from mgdet.text import first_line

SUFFIX = ".parquet"
IMAGE, NAME = "image", "file_name"
_ROWS = 64
"""Rows that are read at once."""


def is_table(name: str) -> bool:
    """Whether a file is one with images in its rows, by its suffix."""
    return Path(name).suffix.lower() == SUFFIX


class Row(NamedTuple):
    """An encoded image of a table."""

    number: int
    """From 0."""
    name: str | None
    """What the table calls it; None where it does not say."""
    data: bytes | None
    """The file of the image; None where the row has none."""


def rows(file: Path | Location) -> Iterator[Row]:
    """The images of a Parquet file, in its order.

    They stand in a column `image`, as the bytes of a JPEG, PNG and so on, or, as Hugging Face's data sets have them, as
    `{bytes, path}`; a column `file_name` gives their names.

    Raises:
        DataError: it is no Parquet file, is damaged, or has no such column.
        OSError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(file, Path):
        require_regular(file)
    opened = file.open_input() if isinstance(file, Location) else str(file)
    try:
        with pq.ParquetFile(opened) as table:
            columns = _columns(file, table.schema_arrow)
            number = 0
            for batch in table.iter_batches(_ROWS, columns=columns):
                for row in batch.to_pylist():
                    yield _row(number, row)
                    number += 1
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file's, not that of its content
            raise
        raise DataError(f"{file}: not a readable Parquet file: {first_line(error)}") from error


def _columns(file: Path | Location, schema: Any) -> list[str]:
    import pyarrow.types as kinds

    if IMAGE not in schema.names:
        raise DataError(
            f"{file}: a table without a column {IMAGE!r} (it has {', '.join(map(repr, schema.names)) or 'none'}), in "
            "which each row holds an encoded image"
        )
    kind = schema.field(IMAGE).type
    encoded = kind.field("bytes").type if kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (kinds.is_binary(encoded) or kinds.is_large_binary(encoded)):
        raise DataError(
            f"{file}: its column {IMAGE!r} has the type {kind}; expected the bytes of an encoded image: binary, or a "
            "struct with a field 'bytes'"
        )
    named = NAME in schema.names and kinds.is_string(schema.field(NAME).type)
    return [IMAGE, NAME] if named else [IMAGE]


def _row(number: int, row: dict[str, Any]) -> Row:
    image, name = row[IMAGE], row.get(NAME)
    if isinstance(image, dict):
        image, name = image["bytes"], name or image.get("path")
    return Row(number, name, image)
