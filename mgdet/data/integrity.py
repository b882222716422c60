"""Whether the shards of a data set are what its manifest says; whoever finds that they are not raises `DataError`.

When a shard is opened, its rows, row groups, columns, types and footer are compared with the manifest, and every
annotation is checked against what a writer could have meant. The content of a row group, its images included, has a
checksum in the manifest; `mgdet.data.dataset` compares it whenever images are read.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mgdet.data.schema import SCHEMA, ShardInfo, SplitInfo
from mgdet.errors import DataError
from mgdet.storage import Location
from mgdet.text import first_line

REMEDY = "Restore it from a copy, or prepare the data set again."
BEYOND_BORDER = 1.0
"""Pixels that a box may reach beyond its image. Importers cut at the border; this leaves room for rounding."""
_MAGIC = b"PAR1"

UNREADABLE = (OSError, pa.ArrowException, ValueError, TypeError, KeyError, OverflowError)
"""What pyarrow raises for damaged files."""


class Footer(NamedTuple):
    """What tells a Parquet file from another version of it without reading its content."""

    size: int
    """Bytes of the whole file."""
    digest: str
    """SHA-256 of the file's end, which says where each row group lies."""


class Annotations(NamedTuple):
    """The rows of a shard without the images, as flat arrays: `n` rows with `m` boxes in all."""

    image_ids: NDArray[np.int64]  # [n]
    sizes: NDArray[np.int64]  # [n, 2] (height, width) in pixels
    names: list[bytes]  # n, UTF-8
    counts: NDArray[np.int64]  # [n] boxes of each row
    boxes: NDArray[np.float64]  # [m, 4]
    labels: NDArray[np.int64]  # [m]
    iscrowd: NDArray[np.bool_]  # [m]
    area: NDArray[np.float64]  # [m]


def read_footer(file: Any) -> Footer:
    """The footer of an open Parquet file. Raises `ValueError` where there is none."""
    size = int(file.size())
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length + 12 > size:
        raise ValueError(f"its {size} bytes do not end as a Parquet file: it was cut off, or is a file of another kind")
    file.seek(size - 8 - length)
    return Footer(size, hashlib.sha256(file.read(length + 8)).hexdigest())


def open_shard(file: Location, shard: ShardInfo) -> tuple[pq.ParquetFile, Footer]:
    """Open a shard; its rows, row groups, columns, types, size and footer are those that the manifest says.

    Raises:
        DataError: it cannot be opened, or is not that shard.
    """
    try:
        opened = file.open_input()
        footer = read_footer(opened)
        parquet = pq.ParquetFile(opened, page_checksum_verification=True)
        difference = _difference(parquet, footer, shard)
    except UNREADABLE as error:
        raise DataError(f"Cannot read {file}: {first_line(error).rstrip('.')}. {REMEDY}") from error
    if difference:
        raise DataError(f"{file} {difference}: it was damaged, or belongs to another data set or version. {REMEDY}")
    return parquet, footer


def _difference(parquet: pq.ParquetFile, footer: Footer, shard: ShardInfo) -> str:
    """The first difference between a shard and what the manifest says of it, as the end of a sentence."""
    meta, schema = parquet.metadata, parquet.schema_arrow
    groups = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    if meta.num_rows != shard.rows:
        return f"has {meta.num_rows} rows, its manifest says {shard.rows}"
    if groups != list(shard.row_groups):
        return f"has row groups of {_shortened(groups)} rows, its manifest says {_shortened(shard.row_groups)}"
    if missing := [name for name in SCHEMA.names if name not in schema.names]:
        return f"lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}"
    if len(schema.names) != len(SCHEMA.names):
        return f"has the columns {', '.join(schema.names)}, expected {', '.join(SCHEMA.names)}"
    for field in SCHEMA:
        if schema.field(field.name).type != field.type:
            return f"has {schema.field(field.name).type} in the column {field.name}, expected {field.type}"
    if shard.size is not None and footer.size != shard.size:
        return f"has {footer.size} bytes, its manifest says {shard.size}"
    if shard.footer is not None and footer.digest != shard.footer:
        return "ends otherwise than when it was written"
    return ""


def _shortened(numbers: Any) -> str:
    text = str(list(numbers))
    return text if len(text) <= 60 else f"{text[:60]}..."


def read_annotations(file: Location, parquet: pq.ParquetFile, classes: int) -> Annotations:
    """All annotations of a shard, checked.

    Raises:
        DataError: they cannot be read, or hold what no annotation can be.
    """
    try:
        table = parquet.read(columns=[name for name in SCHEMA.names if name != "image"]).combine_chunks()
        table.validate(full=True)
        _refuse_nulls(table)
        found = _annotations(table)
        _check(found, classes)
    except UNREADABLE as error:
        raise DataError(f"Cannot use {file}: {first_line(error).rstrip('.')}. {REMEDY}") from error
    return found


def _refuse_nulls(table: pa.Table) -> None:
    for name in table.column_names:
        column = table[name]
        if column.null_count or any(pa.types.is_list(c.type) and c.flatten().null_count for c in column.chunks):
            raise ValueError(f"the column {name} has null in the place of a value")


def _annotations(table: pa.Table) -> Annotations:
    flat = {name: _flat(table[name]) for name in ("boxes", "labels", "iscrowd", "area")}
    counts = flat["labels"][1]
    for name, (_, lengths) in flat.items():
        wrong = np.flatnonzero(lengths != counts * (4 if name == "boxes" else 1))
        if len(wrong):
            row = wrong[0]
            raise ValueError(f"row {row} has {counts[row]} labels and {lengths[row]} numbers in the column {name}")
    return Annotations(
        image_ids=table["image_id"].to_numpy().astype(np.int64),
        sizes=np.stack([table["height"].to_numpy(), table["width"].to_numpy()], axis=1).astype(np.int64),
        names=[name.encode() for name in table["file_name"].to_pylist()],
        counts=counts,
        boxes=flat["boxes"][0].reshape(-1, 4),
        labels=flat["labels"][0].astype(np.int64),
        iscrowd=flat["iscrowd"][0].astype(np.bool_),
        area=flat["area"][0],
    )


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """A list column as one flat array (a copy that owns its memory) and the length of each row's list."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
    lengths = np.diff(array.offsets.to_numpy()).astype(np.int64)
    return array.flatten().to_numpy(zero_copy_only=False).copy(), lengths


def _check(found: Annotations, classes: int) -> None:
    """Raise `ValueError` for the first row that no annotation can be."""
    bad_sizes = np.flatnonzero((found.sizes < 1).any(axis=1))
    if len(bad_sizes):
        row = bad_sizes[0]
        raise ValueError(f"{_row(found, row)} is {found.sizes[row, 1]} x {found.sizes[row, 0]} pixels large")
    rows = np.repeat(np.arange(len(found.counts)), found.counts)
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    limit = found.sizes[rows][:, ::-1] + BEYOND_BORDER
    checks = {
        "has a box that is not finite": ~np.isfinite(found.boxes).all(axis=1),
        "has a reversed box or one without area": ~(low < high).all(axis=1),
        "has a box outside of the image": (low < -BEYOND_BORDER).any(axis=1) | (high > limit).any(axis=1),
        "has an area that is negative or not finite": ~(np.isfinite(found.area) & (found.area >= 0)),
    }
    for what, wrong in checks.items():
        if wrong.any():
            box = int(np.argmax(wrong))
            numbers = ", ".join(f"{x:g}" for x in found.boxes[box])
            size = f"{found.sizes[rows[box], 1]} x {found.sizes[rows[box], 0]}"
            raise ValueError(
                f"{_row(found, rows[box])} {what}: [{numbers}], area {found.area[box]:g}, image {size} pixels"
            )
    wrong = (found.labels < 0) | (found.labels >= classes)
    if wrong.any():
        box = int(np.argmax(wrong))
        raise ValueError(f"{_row(found, rows[box])} has the label {found.labels[box]}, allowed are 0 to {classes - 1}")


def _row(found: Annotations, row: int) -> str:
    return f"row {row} ({found.names[row].decode()})"


def check_split(place: str, info: SplitInfo, found: Annotations) -> None:
    """Compare the annotations of a whole split with the numbers in its manifest. Raises `DataError`."""
    rows = np.repeat(np.arange(len(found.counts)), found.counts)
    objects = np.bincount(rows[~found.iscrowd], minlength=len(found.counts))
    numbers = {
        "images": (info.images, len(found.counts)),
        "boxes": (info.boxes, len(found.boxes)),
        "crowd boxes": (info.crowd, int(found.iscrowd.sum())),
        "images without objects": (info.negatives, int((objects == 0).sum())),
    }
    for what, (said, there) in numbers.items():
        if said != there:
            raise DataError(f"{place}: the manifest says {said} {what}, the shards have {there}. {REMEDY}")
    ids, repeats = np.unique(found.image_ids, return_counts=True)
    if (repeats > 1).any():
        raise DataError(f"{place}: the image id {ids[repeats > 1][0]} stands twice. {REMEDY}")


def joined(parts: list[Annotations]) -> Annotations:
    """The annotations of several shards as one."""
    names = [name for part in parts for name in part.names]
    arrays = {f: np.concatenate([getattr(p, f) for p in parts]) for f in Annotations._fields if f != "names"}
    return Annotations(names=names, **arrays)
