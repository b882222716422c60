"""Prepare pictures as tiles: cut pictures and boxes, and keep what an evaluation of the whole pictures needs.

Beside the shards of a split stands `whole.parquet`: the annotations of the uncut pictures, and the tiles of each. The
manifest has its checksum under `source.tiles.whole`.
"""

import hashlib
import io
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mgdet.data.rows import Row
from mgdet.data.schema import Manifest, Record
from mgdet.errors import DataError
from mgdet.ground_truth import GroundTruth, Tiles
from mgdet.storage import Location, child_uri, locate
from mgdet.text import first_line
from mgdet.tiles import Frame, grid

VISIBLE = 0.5
"""Share of an object's area that a tile must show of it; of less it gets a crowd, in which nothing is learned."""


class Uncut(NamedTuple):
    """The annotations of a whole picture, and its tiles."""

    record: Record  # without its image
    frames: NDArray[np.int64]  # [t, 4]


class Cutter:
    """Cuts the pictures of a data set before they are read.

    Args:
        size: height and width of a tile, pixels.
        overlap: share of a tile that neighbours have in common, at least.
        without_empty: splits whose tiles without an object are left out. They cannot be evaluated as whole pictures.
    """

    def __init__(self, size: int, overlap: float, without_empty: Collection[str]) -> None:
        self.size, self.overlap, self.without_empty = size, overlap, without_empty
        self._uncut: dict[str, list[Uncut]] = {}

    def cut(self, split: str, rows: Iterable[Row]) -> Iterator[Row]:
        """The tiles of all pictures of a split, numbered from 1."""
        number, keep_all = 0, split not in self.without_empty
        uncut = self._uncut.setdefault(split, []) if keep_all else []
        for row in rows:
            record = row.record
            frames = grid(record.height, record.width, self.size, self.overlap)
            if keep_all:
                uncut.append(Uncut(record, np.array(frames, dtype=np.int64)))
            whole = len(frames) == 1
            for frame in frames:
                tile = record if whole else cut_record(record, frame)
                if not keep_all and tile.iscrowd.all():
                    continue
                number += 1
                yield Row(tile._replace(image_id=number), row.name, None if whole else frame)

    def finish(self, root: Location) -> dict[str, Any]:
        """Write the files `whole.parquet` below the data set's root; what the manifest says of the tiles."""
        checksums = {}
        for split, uncut in self._uncut.items():
            content = _written(uncut)
            (root / f"{split}/whole.parquet").write(content)
            checksums[split] = hashlib.sha256(content).hexdigest()
        return {"tiles": {"size": self.size, "overlap": self.overlap, "whole": checksums}}


def cut_record(record: Record, frame: Frame) -> Record:
    """The annotations of a tile: boxes cut at its border, crowds of objects of which less than `VISIBLE` is left."""
    x1, y1, x2, y2 = frame
    boxes = np.clip(record.boxes, [x1, y1, x1, y1], [x2, y2, x2, y2])
    areas, before = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, record.boxes))
    share = areas / before
    kept = areas > 0
    return record._replace(
        file_name=f"{record.file_name}@{x1},{y1}",
        width=x2 - x1,
        height=y2 - y1,
        boxes=(boxes - [x1, y1, x1, y1])[kept],
        labels=record.labels[kept],
        iscrowd=(record.iscrowd | (share < VISIBLE))[kept],
        area=(record.area * share)[kept],
    )


def _written(uncut: list[Uncut]) -> bytes:
    records = [one.record for one in uncut]
    columns = {
        "image_id": pa.array([r.image_id for r in records], pa.int64()),
        "width": pa.array([r.width for r in records], pa.int64()),
        "height": pa.array([r.height for r in records], pa.int64()),
        "boxes": pa.array([r.boxes.ravel().tolist() for r in records], pa.list_(pa.float64())),
        "labels": pa.array([r.labels.tolist() for r in records], pa.list_(pa.int64())),
        "iscrowd": pa.array([r.iscrowd.tolist() for r in records], pa.list_(pa.bool_())),
        "area": pa.array([r.area.tolist() for r in records], pa.list_(pa.float64())),
        "frames": pa.array([one.frames.ravel().tolist() for one in uncut], pa.list_(pa.int64())),
    }
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def tiles_of(uri: str, manifest: Manifest, split: str) -> Tiles | None:
    """The whole pictures of a split that was prepared as tiles; None where it is not made of tiles, or lacks some.

    Raises:
        DataError: the file cannot be read, or is not the one that the manifest says.
    """
    said = manifest.source.get("tiles")
    checksums = said.get("whole") if isinstance(said, dict) else None
    checksum = checksums.get(split) if isinstance(checksums, dict) else None
    if checksum is None:
        return None
    place = child_uri(uri, f"{split}/whole.parquet")
    try:
        content = (locate(uri) / f"{split}/whole.parquet").read_bytes()
        if hashlib.sha256(content).hexdigest() != checksum:
            raise ValueError("its checksum is not the manifest's")
        return _read(content, manifest)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"Cannot use {place}: {first_line(error).rstrip('.')}. Prepare the data set again.") from error


_LISTS = ("boxes", "labels", "iscrowd", "area", "frames")


def _read(content: bytes, manifest: Manifest) -> Tiles:
    table = pq.read_table(io.BytesIO(content))
    flat = {name: np.concatenate([np.zeros(0), *map(np.asarray, table[name].to_pylist())]) for name in _LISTS}
    counts, tiles = (np.array([len(row) for row in table[name].to_pylist()]) for name in ("labels", "frames"))
    rows = np.arange(len(table))
    whole = GroundTruth(
        image_ids=table["image_id"].to_numpy(),
        heights=table["height"].to_numpy(),
        widths=table["width"].to_numpy(),
        box_image=np.repeat(rows, counts),
        boxes=flat["boxes"].reshape(-1, 4),
        labels=flat["labels"].astype(np.int64),
        iscrowd=flat["iscrowd"].astype(np.bool_),
        area=flat["area"],
        categories=manifest.category_tuple(),
    )
    return Tiles(whole, np.repeat(rows, tiles // 4), flat["frames"].astype(np.int64).reshape(-1, 4))
