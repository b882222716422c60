"""Read a prepared data set: annotations in flat arrays, images by row."""

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mgdet.data.schema import ROW_GROUP_BYTES, Manifest, SplitInfo, read_manifest
from mgdet.errors import DataError
from mgdet.ground_truth import GroundTruth
from mgdet.storage import child_uri, locate
from mgdet.structures import Category

CACHED_ROW_GROUPS = 20
"""Row groups whose images each process keeps in memory: a shuffle window of 16, and a few of the next window.
20 groups of 64 JPEGs of 100 kB are 128 MB."""
CACHE_BYTES = CACHED_ROW_GROUPS * ROW_GROUP_BYTES
"""Bytes of encoded images that each process keeps in memory by default: all those groups, whatever the files weigh."""

_ANNOTATION_COLUMNS = ["image_id", "file_name", "width", "height", "boxes", "labels", "iscrowd", "area"]


class Annotation(NamedTuple):
    """The `n` boxes of one image; views, not copies."""

    boxes: NDArray[np.float64]  # [n, 4] xyxy pixels of the image file
    labels: NDArray[np.int64]  # [n]
    iscrowd: NDArray[np.bool_]  # [n]
    area: NDArray[np.float64]  # [n]


class ShardedDataset:
    """One split of a prepared data set, with random access to its images.

    All annotations are a handful of numpy arrays, whatever the number of images, so memory does not grow with copies of
    Python objects in loader processes and a pickle for a spawned one is small. Images are read one row group at a
    time and the last `CACHED_ROW_GROUPS` are kept, or fewer where they exceed `cache_bytes`. Not thread-safe.

    Args:
        uri: root of the data set, a local path or a `pyarrow.fs` URI.
        split: one of the manifest's splits, such as "train".
        cache_bytes: bound on the images that are kept; one row group always is.

    Raises:
        DataError: no data set there, no such split, or a shard that is missing or not what the manifest says.
    """

    def __init__(self, uri: str, split: str, cache_bytes: int = CACHE_BYTES) -> None:
        self.uri, self.split, self.cache_bytes = str(uri), split, cache_bytes
        self.manifest: Manifest = read_manifest(self.uri)
        self.categories: tuple[Category, ...] = self.manifest.category_tuple()
        info = self.manifest.split(split, self.uri)
        self.row_group_sizes: tuple[int, ...] = tuple(n for shard in info.shards for n in shard.row_groups)
        self._group_starts = np.concatenate([[0], np.cumsum(self.row_group_sizes)]).astype(np.int64)
        self._group_address = [(s, g) for s, shard in enumerate(info.shards) for g in range(len(shard.row_groups))]
        self._load_annotations(info)
        self._reset_cache()

    def _reset_cache(self) -> None:
        self._files: dict[int, pq.ParquetFile] = {}
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but open files and cached images: another process opens the files for itself."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_files", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset_cache()

    def __len__(self) -> int:
        return self.num_images

    @property
    def num_images(self) -> int:
        """The number `N` of images in the split."""
        return len(self.image_ids)

    def _load_annotations(self, info: SplitInfo) -> None:
        root = locate(self.uri)
        tables = []
        for shard in info.shards:
            place, file = child_uri(self.uri, shard.file), root / shard.file
            try:
                with file.open_input() as opened:
                    table = pq.read_table(opened, columns=_ANNOTATION_COLUMNS, partitioning=None)
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"Cannot read {place}: {error}. Prepare the data set again.") from error
            if table.num_rows != shard.rows:
                raise DataError(
                    f"{place} has {table.num_rows} rows, its manifest says {shard.rows}: they belong to different "
                    "versions. Prepare the data set again."
                )
            tables.append(table)
        table = pa.concat_tables(tables).combine_chunks()
        self.image_ids: NDArray[np.int64] = table["image_id"].to_numpy().copy()
        self.sizes: NDArray[np.int64] = np.stack(  # [N, 2] (height, width) in pixels
            [table["height"].to_numpy(), table["width"].to_numpy()], axis=1
        ).astype(np.int64)
        names = [name.encode() for name in table["file_name"].to_pylist()]
        self._names = b"".join(names)  # a list of N strings would be N objects
        self._name_ends = np.cumsum([len(name) for name in names])
        lists = {name: _flat(table[name]) for name in ("boxes", "labels", "iscrowd", "area")}
        self._offsets = np.concatenate([[0], np.cumsum(lists["labels"][1])]).astype(np.int64)  # [N + 1]
        self._boxes: NDArray[np.float64] = lists["boxes"][0].reshape(-1, 4)
        self._labels: NDArray[np.int64] = lists["labels"][0].astype(np.int64)
        self._iscrowd: NDArray[np.bool_] = lists["iscrowd"][0].astype(np.bool_)
        self._area: NDArray[np.float64] = lists["area"][0]
        if not len(self._boxes) == len(self._labels) == len(self._iscrowd) == len(self._area):
            raise DataError(f"{self.uri}, split {self.split}: annotation columns differ in length. Prepare it again.")
        if len(self._labels) and not 0 <= self._labels.min() <= self._labels.max() < len(self.categories):
            raise DataError(
                f"{self.uri}, split {self.split}: labels run from {self._labels.min()} to {self._labels.max()}, "
                f"allowed are 0 to {len(self.categories) - 1}. Prepare the data set again."
            )

    def file_name(self, position: int) -> str:
        """The source's name of the image file in row `position`."""
        start = int(self._name_ends[position - 1]) if position else 0
        return self._names[start : int(self._name_ends[position])].decode()

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
        )

    def read_image(self, position: int) -> bytes:
        """The encoded image file in row `position` (0..N-1).

        Raises:
            DataError: the shard cannot be read.
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

    def _cache_is_full(self) -> bool:
        kept = sum(group.nbytes for group in self._cache.values())
        return len(self._cache) > CACHED_ROW_GROUPS or kept > self.cache_bytes

    def _read_group(self, group: int) -> pa.ChunkedArray:
        shard, index = self._group_address[group]
        file = self.manifest.splits[self.split].shards[shard].file
        try:
            if shard not in self._files:
                self._files[shard] = pq.ParquetFile((locate(self.uri) / file).open_input())
            return self._files[shard].read_row_group(index, columns=["image"], use_threads=False)["image"]
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"Cannot read row group {index} of {child_uri(self.uri, file)}: {error}. Check the storage, or prepare "
                "it again."
            ) from error


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """A list column as one flat array (a copy that owns its memory) and the length of each row's list."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    lengths = np.diff(array.offsets.to_numpy()).astype(np.int64)
    return array.flatten().to_numpy(zero_copy_only=False).copy(), lengths
