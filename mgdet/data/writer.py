"""Write a data set, Parquet shards and their manifest, either whole or not at all."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mgdet.data.fingerprint import rows_checksum
from mgdet.data.integrity import read_footer
from mgdet.data.schema import (
    MANIFEST,
    ROW_GROUP_BYTES,
    ROW_GROUP_SIZE,
    ROWS_PER_SHARD,
    SCHEMA,
    CategoryInfo,
    Changes,
    Manifest,
    Record,
    ShardInfo,
    SplitInfo,
    manifest_exists,
    shard_file,
    split_name_allowed,
)
from mgdet.errors import DataError
from mgdet.lease import OWNER, owned
from mgdet.records import seal
from mgdet.storage import Location, locate, new_directory
from mgdet.structures import Category


def write_dataset(
    uri: str | os.PathLike[str],
    splits: Mapping[str, Iterable[Record]],
    *,
    name: str,
    categories: Sequence[Category],
    changes: Callable[[], Changes] = Changes,
    source: Mapping[str, Any] | None = None,
    finish: Callable[[Location], Mapping[str, Any]] | None = None,
    overwrite: bool = False,
    wait_s: float = 0,
) -> Manifest:
    """Write `splits` to `uri` and return the manifest; nothing stays behind after an error.

    The records are pulled one row group at a time, so memory holds a few times 32 MiB of
    images (or one larger image) whatever the size of the data set.

    Args:
        uri: destination, a local path or a `pyarrow.fs` URI.
        splits: the records of each split, in their final order. May be generators.
        name: what the data set is called in logs and reports.
        categories: the classes in order of their contiguous label.
        changes: called after the last record, what differs from the source.
        source: how the data were made, anything that JSON can hold.
        finish: called after the last record with the data set's root, to write further files; what it returns is added
            to `source`.
        overwrite: replace an existing data set at `uri`.
        wait_s: wait so long for another process that writes there.

    Raises:
        OwnedError: another process writes there.
        DataError: the destination is taken, a split is empty, a split's name cannot be a directory, or the classes
            are none or have an id twice.
    """
    check_names(uri, splits, categories)
    with own_destination(uri, wait_s), new_directory(uri, overwrite=overwrite, is_ours=manifest_exists) as root:
        infos = {split: _write_split(root, split, records) for split, records in splits.items()}
        return write_manifest(
            root, infos, name=name, categories=categories, changes=changes, source=source, finish=finish
        )


def check_names(uri: str | os.PathLike[str], splits: Collection[str], categories: Sequence[Category]) -> None:
    """Check the names of splits and the ids of classes. Raises `DataError`."""
    if not categories or len({c.id for c in categories}) != len(categories):
        raise DataError(
            f"{uri}: a data set needs at least one class, and each an id of its own; {len(categories)} given."
        )
    for split in splits:
        if not split_name_allowed(split):
            raise DataError(f"Split name {split!r} is not allowed: use letters, digits, '-' and '_', such as 'train'.")


def write_manifest(
    root: Location,
    splits: Mapping[str, SplitInfo],
    *,
    name: str,
    categories: Sequence[Category],
    changes: Callable[[], Changes] = Changes,
    source: Mapping[str, Any] | None = None,
    finish: Callable[[Location], Mapping[str, Any]] | None = None,
) -> Manifest:
    """Write the manifest of a data set whose shards are there; arguments as for `write_dataset`. Raises `OSError`.

    It is written last, because on an object store this file is what makes the data set exist.
    """
    more = finish(root) if finish is not None else {}
    manifest = Manifest(
        name=name,
        categories=tuple(CategoryInfo(id=c.id, name=c.name) for c in categories),
        splits=dict(splits),
        changes=changes(),
        source={**(source or {}), **more},
    )
    (root / MANIFEST).write(seal(manifest.model_dump(mode="json")))
    return manifest


@contextmanager
def own_destination(uri: str | os.PathLike[str], wait_s: float = 0) -> Iterator[None]:
    """Own the destination within the block, by a file beside it: what is there may be replaced as a whole."""
    target = locate(uri)
    with ExitStack() as stack:
        if "/" in target.path.strip("/"):  # nothing lies beside a whole bucket
            try:
                stack.enter_context(owned(target.with_name(f".{target.name}.{OWNER}"), f"the data set {uri}", wait_s))
            except OSError as error:
                raise DataError(f"Cannot write {uri}: {error}. Check the rights and the store.") from error
        yield


class WrittenShard(NamedTuple):
    """What is known of a shard that was written."""

    info: ShardInfo
    counts: Mapping[str, int]
    """Those of `SplitInfo`, of this shard alone."""


def split_info(split: str, shards: Sequence[WrittenShard]) -> SplitInfo:
    """What the manifest says of a split. Raises `DataError` where it has no shards."""
    if not shards:
        raise DataError(f"Split {split!r} has no images. Give a split with at least one image or leave it out.")
    counts = sum((Counter(shard.counts) for shard in shards), Counter(dict.fromkeys(_COUNTS, 0)))
    return SplitInfo(**{name: counts[name] for name in _COUNTS}, shards=tuple(shard.info for shard in shards))


def _write_split(root: Location, split: str, records: Iterable[Record]) -> SplitInfo:
    (root / split).mkdir()
    shards: list[WrittenShard] = []
    source = iter(records)
    while (first := next(source, None)) is not None:
        file = shard_file(split, len(shards))
        shards.append(write_shard(root / file, file, chain([first], islice(source, ROWS_PER_SHARD - 1))))
    return split_info(split, shards)


def write_shard(file: Location, name: str, rows: Iterator[Record]) -> WrittenShard:
    """Write one file, which the manifest calls `name`; equal rows give equal bytes. Raises `OSError`."""
    groups: list[int] = []
    checksums: list[str] = []
    counts = dict.fromkeys(_COUNTS, 0)
    # Encoded images do not compress; statistics of a binary column would repeat whole images in the footer.
    options = {
        "compression": "none",
        "use_dictionary": False,
        "write_statistics": ["image_id"],
        "write_page_checksum": True,  # what is read at the start, the annotations, proves itself before it is decoded
    }
    with file.open_output() as stream, pq.ParquetWriter(stream, SCHEMA, **options) as writer:
        while group := _next_group(rows):
            for record in group:
                _count(record, counts)
            writer.write_table(record_table(group), row_group_size=ROW_GROUP_SIZE)
            groups.append(len(group))
            checksums.append(rows_checksum(group))
    with file.open_input() as written:
        footer = read_footer(written)
    info = ShardInfo(
        file=name,
        rows=sum(groups),
        row_groups=tuple(groups),
        checksums=tuple(checksums),
        size=footer.size,
        footer=footer.digest,
    )
    return WrittenShard(info, counts)


def _next_group(rows: Iterator[Record]) -> list[Record]:
    """The next row group: 64 rows, or fewer that weigh enough."""
    group: list[Record] = []
    weight = 0
    for record in islice(rows, ROW_GROUP_SIZE):
        group.append(record)
        weight += len(record.image)
        if weight >= ROW_GROUP_BYTES:
            break
    return group


_COUNTS = ("images", "boxes", "crowd", "negatives")


def _count(record: Record, counts: dict[str, int]) -> None:
    counts["images"] += 1
    counts["boxes"] += len(record.boxes)
    counts["crowd"] += int(record.iscrowd.sum())
    counts["negatives"] += int(record.iscrowd.all())


def record_table(group: Sequence[Record]) -> pa.Table:
    """Records as a table of `SCHEMA`."""
    columns = {name: [getattr(record, name) for record in group] for name in SCHEMA.names}
    columns["boxes"] = [record.boxes.reshape(-1) for record in group]
    return pa.table([pa.array(columns[f.name], type=f.type) for f in SCHEMA], schema=SCHEMA)
