"""Read a prepared data set: annotations in flat arrays, images by row."""

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mgdet.data import mapped
from mgdet.data.fingerprint import rows_checksum
from mgdet.data.integrity import (
    REMEDY,
    UNREADABLE,
    Footer,
    check_split,
    joined,
    open_shard,
    read_annotations,
    read_footer,
)
from mgdet.data.mapped import Flat
from mgdet.data.schema import ROW_GROUP_BYTES, Manifest, Record, SplitInfo, read_manifest
from mgdet.data.tiles import tiles_of
from mgdet.errors import DataError
from mgdet.ground_truth import GroundTruth, Tiles
from mgdet.storage import child_uri, locate
from mgdet.structures import Category
from mgdet.text import first_line

logger = logging.getLogger(__name__)

CACHED_ROW_GROUPS = 20
"""Row groups whose images each process keeps in memory: a shuffle window of 16, and a few of the next window.
20 groups of 64 JPEGs of 100 kB are 128 MB."""
CACHE_BYTES = CACHED_ROW_GROUPS * ROW_GROUP_BYTES
"""Bytes of encoded images that each process keeps in memory by default: all those groups, whatever the files weigh."""

_ARRAYS = 1
"""Version of the flat arrays, wherever they are kept."""
_IMAGE_BYTES, _BOX_BYTES = 60, 49
"""Of the flat arrays, for each image (and its name) and each box."""
_WAITS_S = (1.0, 2.0)
"""Pauses between attempts to read images from a storage that fails."""


class UnreadableImage(DataError):
    """An image of a data set that cannot be read or decoded, although the data set is the one that was opened."""


class Annotation(NamedTuple):
    """The `n` boxes of one image; views, not copies."""

    boxes: NDArray[np.float64]  # [n, 4] xyxy pixels of the image file
    labels: NDArray[np.int64]  # [n]
    iscrowd: NDArray[np.bool_]  # [n]
    area: NDArray[np.float64]  # [n]


class ShardedDataset:
    """One split of a prepared data set, with random access to its images.

    All annotations are a handful of numpy arrays, whatever the number of images, so memory does not grow with copies of
    Python objects in loader processes. Large ones are mapped from files (`mgdet.data.mapped`), so that the ranks and
    loaders of a machine share them. Images are read one row group at a
    time and the last `CACHED_ROW_GROUPS` are kept, or fewer where they exceed `cache_bytes`. Not thread-safe.

    Args:
        uri: root of the data set, a local path or a `pyarrow.fs` URI.
        split: one of the manifest's splits, such as "train".
        cache_bytes: bound on the images that are kept; one row group always is.

    Raises:
        DataError: no data set there, no such split, a shard that is missing or not what the manifest says, or
            annotations that cannot be.
    """

    def __init__(self, uri: str, split: str, cache_bytes: int = CACHE_BYTES) -> None:
        self.uri, self.split, self.cache_bytes = str(uri), split, cache_bytes
        self.manifest: Manifest = read_manifest(self.uri)
        self.categories: tuple[Category, ...] = self.manifest.category_tuple()
        info = self.manifest.split(split, self.uri)
        self.row_group_sizes: tuple[int, ...] = tuple(n for shard in info.shards for n in shard.row_groups)
        self._shards = info.shards
        self._group_starts = np.concatenate([[0], np.cumsum(self.row_group_sizes)]).astype(np.int64)
        self._group_address = [(s, g) for s, shard in enumerate(info.shards) for g in range(len(shard.row_groups))]
        self._take(self._open_annotations(info))
        self._reset_cache()

    def _reset_cache(self) -> None:
        self._root = locate(self.uri)
        self._files: dict[int, pq.ParquetFile] = {}
        self._damaged: dict[int, str] = {}  # row groups that cannot be read, and why
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but open files and cached images: another process opens the files for itself."""
        own = ("_root", "_files", "_damaged", "_cache", *self._flat, *(f"_{name}" for name in self._flat))
        return {k: v for k, v in self.__dict__.items() if k not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._take(state["_flat"])
        self._reset_cache()

    def __len__(self) -> int:
        return self.num_images

    @property
    def num_images(self) -> int:
        """The number `N` of images in the split."""
        return len(self.image_ids)

    def _open_annotations(self, info: SplitInfo) -> Flat:
        """All annotations as flat arrays, which the processes of a machine share where they are large."""
        if info.images * _IMAGE_BYTES + info.boxes * _BOX_BYTES < mapped.LEAST_BYTES:
            return Flat(self._read_annotations(info))
        root = locate(self.uri)
        self._footers: list[Footer] = []
        for shard in info.shards:
            parquet, footer = open_shard(root / shard.file, shard)
            parquet.close()
            self._footers.append(footer)
        made_from = json.dumps([_ARRAYS, len(self.categories), self._footers, info.model_dump(mode="json")])
        return mapped.shared(made_from, lambda: self._read_annotations(info))

    def _read_annotations(self, info: SplitInfo) -> dict[str, NDArray[Any]]:
        root, parts = locate(self.uri), []
        self._footers = []
        for shard in info.shards:
            file = root / shard.file
            parquet, footer = open_shard(file, shard)
            with parquet:
                parts.append(read_annotations(file, parquet, len(self.categories)))
            self._footers.append(footer)
        found = joined(parts)
        check_split(f"{self.uri}, split {self.split}", info, found)
        return {
            "image_ids": found.image_ids,
            "sizes": found.sizes,
            "names": np.frombuffer(b"".join(found.names), dtype=np.uint8),  # a list of N strings would be N objects
            "name_ends": np.cumsum([len(name) for name in found.names]),
            "offsets": np.concatenate([[0], np.cumsum(found.counts)]).astype(np.int64),  # [N + 1]
            **{name: getattr(found, name) for name in ("boxes", "labels", "iscrowd", "area")},
        }

    def _take(self, flat: Flat) -> None:
        self._flat = flat
        self.image_ids, self.sizes = flat["image_ids"], flat["sizes"]  # [N], and [N, 2] (height, width) in pixels
        self._names, self._name_ends, self._offsets = flat["names"], flat["name_ends"], flat["offsets"]
        self._boxes, self._labels, self._iscrowd, self._area = (flat[n] for n in ("boxes", "labels", "iscrowd", "area"))

    def file_name(self, position: int) -> str:
        """The source's name of the image file in row `position`."""
        start = int(self._name_ends[position - 1]) if position else 0
        return self._names[start : int(self._name_ends[position])].tobytes().decode()

    def describe(self, position: int) -> str:
        """What errors call the image in row `position`: its file name, id, data set and split."""
        return f"image {self.file_name(position)} (id {self.image_ids[position]}, {self.uri}, split {self.split})"

    def annotation(self, position: int) -> Annotation:
        """The boxes of the image in row `position`, crowd included."""
        row = slice(int(self._offsets[position]), int(self._offsets[position + 1]))
        return Annotation(self._boxes[row], self._labels[row], self._iscrowd[row], self._area[row])

    def ground_truth(self) -> GroundTruth:
        """All annotations of the split in flat arrays, crowd included."""
        counts = np.diff(self._offsets)
        return GroundTruth(
            image_ids=self.image_ids,
            heights=self.sizes[:, 0],
            widths=self.sizes[:, 1],
            box_image=np.repeat(np.arange(self.num_images, dtype=np.int64), counts),
            boxes=self._boxes,
            labels=self._labels,
            iscrowd=self._iscrowd,
            area=self._area,
            categories=self.categories,
            tiles=self._tiles(),
        )

    def _tiles(self) -> Tiles | None:
        """The pictures of which these images are tiles. Raises `DataError` where their file is of other tiles."""
        tiles = tiles_of(self.uri, self.manifest, self.split)
        if tiles is not None:
            sides = tiles.frames[:, 2:] - tiles.frames[:, :2]
            if not np.array_equal(sides[:, ::-1], self.sizes):
                raise DataError(f"{self.uri}, split {self.split}: whole.parquet is of other tiles. {REMEDY}")
        return tiles

    def read_image(self, position: int) -> bytes:
        """The encoded image file in row `position` (0..N-1).

        Raises:
            UnreadableImage: its row group is damaged.
            DataError: the data set is no longer the one that was opened.
            IndexError: no such row.
        """
        if not 0 <= position < self.num_images:
            raise IndexError(f"row {position} of {self.num_images}")
        group = int(np.searchsorted(self._group_starts, position, side="right")) - 1
        if group in self._cache:
            self._cache.move_to_end(group)
        else:
            self._cache[group] = self._read_group(group)
            while len(self._cache) > 1 and self._cache_is_full():
                self._cache.popitem(last=False)
        return self._cache[group][position - int(self._group_starts[group])].as_py()  # type: ignore[no-any-return]

    def require_unchanged(self) -> None:
        """Raise `DataError` where the manifest at this place is no longer the one that was opened."""
        if read_manifest(self.uri) != self.manifest:
            raise DataError(
                f"{self.uri} was prepared again after it was opened: its images would be paired with the annotations "
                "of before. Prepare the data set as it was, or start another run."
            )

    def _cache_is_full(self) -> bool:
        kept = sum(group.nbytes for group in self._cache.values())
        return len(self._cache) > CACHED_ROW_GROUPS or kept > self.cache_bytes

    def _read_group(self, group: int) -> pa.ChunkedArray:
        """The images of a row group, whose content is that of the manifest and of the annotations in memory."""
        shard, index = self._group_address[group]
        if group not in self._damaged:
            try:
                return self._verified(group, self._images_of(shard, index))
            except UNREADABLE as error:
                self.require_unchanged()
                self._files.pop(shard, None)
                place = child_uri(self.uri, self._shards[shard].file)
                self._damaged[group] = (
                    f"Cannot read row group {index} of {place}: {first_line(error).rstrip('.')}. {REMEDY}"
                )
        raise UnreadableImage(self._damaged[group])

    def _images_of(self, shard: int, index: int) -> pa.ChunkedArray:
        for wait_s in (*_WAITS_S, None):
            try:
                if shard not in self._files:
                    self._files[shard] = self._reopened(shard)
                return self._files[shard].read_row_group(index, columns=["image"], use_threads=False)["image"]
            except OSError as error:
                self._files.pop(shard, None)
                damaged = error.errno is None and self._root.is_local  # so pyarrow calls what it cannot decode
                if wait_s is None or damaged or isinstance(error, FileNotFoundError):
                    raise
                logger.warning("storage failed (%s), trying again", first_line(error))
                time.sleep(wait_s)
        raise AssertionError("unreachable")

    def _reopened(self, shard: int) -> pq.ParquetFile:
        file = self._root / self._shards[shard].file
        opened = file.open_input()
        if read_footer(opened) != self._footers[shard]:
            self.require_unchanged()
            raise DataError(f"{file} is no longer the file that it was when the data set was opened. {REMEDY}")
        return pq.ParquetFile(opened)

    def _verified(self, group: int, images: pa.ChunkedArray) -> pa.ChunkedArray:
        """The images, whose checksum together with their annotations is the manifest's. Raises `ValueError`."""
        shard, index = self._group_address[group]
        checksums, first = self._shards[shard].checksums, int(self._group_starts[group])
        if len(images) != self.row_group_sizes[group] or images.null_count:
            raise ValueError(f"it has {len(images)} images, {images.null_count} of them null")
        if checksums and rows_checksum(self._records(first, images)) != checksums[index]:
            raise ValueError("its checksum is not the manifest's: images or annotations were damaged or changed")
        return images

    def _records(self, first: int, images: pa.ChunkedArray) -> Iterator[Record]:
        """Rows from `first` on, with buffers in the place of the images' bytes."""
        for position, image in enumerate(images, first):
            height, width = self.sizes[position]
            boxes, labels, iscrowd, area = self.annotation(position)
            row = (int(self.image_ids[position]), self.file_name(position), int(width), int(height), image.as_buffer())
            yield Record(*row, boxes, labels, iscrowd, area)  # type: ignore[arg-type]  # wider integers
