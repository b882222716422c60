"""The rows of a data set before their pictures are read: annotations, and where each picture comes from.

They are small, and made one after another; the pictures of any of them can be read anywhere.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from mgdet.data.decode import decode_image
from mgdet.data.schema import Record
from mgdet.data.writer import record_table
from mgdet.errors import DataError
from mgdet.storage import File, Location, read_file
from mgdet.tiles import Frame


class Row(NamedTuple):
    """A record without its picture, and what the picture is."""

    record: Record
    """Its `image` is empty."""
    name: str
    """The image file, relative to the image directory."""
    frame: Frame | None = None
    """The part of it that is shown; None: the file as it is."""


def pictured(rows: Iterable[Row], directory: File, max_pixels: int) -> Iterator[Record]:
    """The records with their pictures, of which one at a time is decoded.

    Args:
        rows: those of one image directory.
        directory: the image directory.
        max_pixels: of a picture that is cut, at most.

    Raises:
        DataError: a file cannot be read.
    """
    name, pixels = None, None
    for row in rows:
        if row.frame is None:
            yield row.record._replace(image=_read(directory / row.name))
            continue
        if pixels is None or row.name != name:
            name, pixels = row.name, decode_image(_read(directory / row.name), row.name, max_pixels)
        yield row.record._replace(image=_encoded(pixels, row.frame))


def _read(file: File) -> bytes:
    try:
        return read_file(file)
    except OSError as error:
        raise DataError(f"{file} was readable a moment ago and is not now: {error}. Start again.") from error


def _encoded(pixels: Tensor, frame: Frame) -> bytes:
    """A tile as PNG, which loses nothing."""
    x1, y1, x2, y2 = frame
    out = io.BytesIO()
    Image.fromarray(pixels[:, y1:y2, x1:x2].permute(1, 2, 0).numpy()).save(out, "PNG", compress_level=1)
    return out.getvalue()


_NAME, _FRAME = "name", "frame"


def write_rows(file: Location, rows: Sequence[Row]) -> str:
    """Write rows to a Parquet file; returns the SHA-256 of the file. Raises `OSError`."""
    frames = [None if row.frame is None else list(row.frame) for row in rows]
    table = record_table([row.record for row in rows])
    table = table.append_column(_NAME, pa.array([os.fsencode(row.name) for row in rows], pa.binary()))
    table = table.append_column(_FRAME, pa.array(frames, pa.list_(pa.int64())))
    out = io.BytesIO()
    pq.write_table(table, out)
    file.replace(out.getvalue())
    return hashlib.sha256(out.getvalue()).hexdigest()


def read_rows(file: Location, checksum: str) -> Iterator[Row]:
    """The rows of a file that `write_rows` wrote.

    Raises:
        DataError: it cannot be read, or is not the file with this checksum.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}. All nodes must see it; the same command goes on.") from error
    if hashlib.sha256(data).hexdigest() != checksum:
        raise DataError(f"{file} is not what was written there: it is damaged, or was replaced. Start again.")
    for batch in pq.ParquetFile(io.BytesIO(data)).iter_batches(256):
        for row in batch.to_pylist():
            name, frame = os.fsdecode(row.pop(_NAME)), row.pop(_FRAME)
            arrays = {
                "boxes": np.array(row["boxes"], dtype=np.float64).reshape(-1, 4),
                "labels": np.array(row["labels"], dtype=np.int32),
                "iscrowd": np.array(row["iscrowd"], dtype=np.bool_),
                "area": np.array(row["area"], dtype=np.float64),
            }
            yield Row(Record(**{**row, **arrays}), name, None if frame is None else tuple(frame))
