"""The layout of a data set on disk.

`ROOT/dataset.json` is the `Manifest`; `ROOT/<split>/part-00000.parquet` and so on hold one image a row:

| column     | type                  | meaning                                                                   |
|------------|-----------------------|---------------------------------------------------------------------------|
| image_id   | int64                 | the source's own image id, unique within a split                           |
| file_name  | string                | the source's own name of the image file                                    |
| width      | int32                 | pixels, of the decoded file (EXIF orientation applied)                     |
| height     | int32                 | pixels                                                                     |
| image      | binary                | the encoded file, byte for byte (JPEG, PNG, ...)                           |
| boxes      | list<float64>         | x1, y1, x2, y2 of box 0, then box 1, ...; pixels, continuous corners       |
| labels     | list<int32>           | contiguous classes, positions in `Manifest.categories`                     |
| iscrowd    | list<bool>            | COCO's crowd flag: priors in it are ignored in training; matches many in AP|
| area       | list<float64>         | the annotation's own `area` (COCO: of the mask), else width x height       |

Boxes are float64 because evaluation compares with the annotation file's numbers to full precision. Images stand in
order of the source. A row group holds 64 images, or fewer where they weigh 32 MiB: one read brings that many
neighbours, and the memory of readers and of the writer does not grow with the size of the files.
"""

from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mgdet.config_base import Config
from mgdet.errors import DataError
from mgdet.host import command
from mgdet.records import Count, RecordError, read_as, unseal
from mgdet.storage import Location, child_uri, locate
from mgdet.structures import Category

FORMAT_VERSION = 1
MANIFEST = "dataset.json"
ROW_GROUP_SIZE = 64
ROW_GROUP_BYTES = 32 * 2**20
"""Bytes of encoded images after which a row group ends before it has `ROW_GROUP_SIZE` rows."""
ROWS_PER_SHARD = 2048

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`: called now and then during long work, with `done == total` at its end."""

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("boxes", pa.list_(pa.float64()), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("iscrowd", pa.list_(pa.bool_()), nullable=False),
        pa.field("area", pa.list_(pa.float64()), nullable=False),
    ]
)


class Record(NamedTuple):
    """One row: an image file and its `n` annotated objects."""

    image_id: int
    file_name: str
    width: int
    height: int
    image: bytes
    boxes: NDArray[np.float64]  # [n, 4] xyxy pixels
    labels: NDArray[np.int32]  # [n]
    iscrowd: NDArray[np.bool_]  # [n]
    area: NDArray[np.float64]  # [n]


Checksum = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""A SHA-256 as text."""


class ShardInfo(Config):
    """One Parquet file, its path relative to the data set's root. Data sets of earlier versions have no checksums."""

    file: str
    rows: Count
    row_groups: tuple[Count, ...]  # rows of each row group
    checksums: tuple[Checksum, ...] = ()  # of the rows in each row group
    size: Count | None = None  # bytes of the file
    footer: Checksum | None = None  # of the file's end, which says where each row group lies


class SplitInfo(Config):
    """The size of a split, and its files."""

    images: Count
    boxes: Count  # crowd included
    crowd: Count  # boxes that are crowds
    negatives: Count  # images without any box that is not a crowd
    shards: tuple[ShardInfo, ...]


CategoryId = Annotated[int, Field(strict=True, ge=-(1 << 63), lt=1 << 63)]
"""The source's own number of a class."""


class CategoryInfo(Config):
    """A class; its position in `Manifest.categories` is the contiguous label."""

    id: CategoryId
    name: str


class DroppedBox(Config):
    """An annotation that was not imported, and why."""

    split: str
    image: str  # the source's name of the image file
    image_id: int
    annotation: int | None  # the annotation's own id
    reason: str


class Changes(Config):
    """How the stored data differ from the source. All counts are of the whole data set."""

    degenerate: int = 0  # boxes without area or with a coordinate that is not finite: dropped
    outside: int = 0  # boxes that do not touch their image: dropped
    clipped: int = 0  # boxes cut at the border of their image
    filled_iscrowd: int = 0  # annotations without iscrowd: 0
    filled_area: int = 0  # annotations without area: width x height
    resized: int = 0  # images whose file has another size than the annotations say: the file wins
    bad_images: int = 0  # missing or undecodable image files: dropped with their boxes
    renamed: int = 0  # file names that lead to their file only by another reading
    repeated_images: int = 0  # further entries of a file that is listed already: its objects are added to the first
    repeated_boxes: int = 0  # annotations equal to another one of their image: dropped
    filled_bbox: int = 0  # annotations without a box: the bounds of their segmentation
    replaced_area: int = 0  # areas that cannot be: width x height
    turned: int = 0  # images whose boxes referred to the picture before its EXIF orientation: turned
    rescaled: int = 0  # images whose boxes referred to another size: rescaled
    deep: int = 0  # images of more than 8 bits per sample: scaled when they are decoded
    dropped_boxes: tuple[DroppedBox, ...] = ()  # the first 1000
    dropped_images: tuple[str, ...] = ()  # the first 1000


def split_name_allowed(name: str) -> bool:
    """Whether a split may be called so: letters, digits, `-` and `_`, since it is the name of a directory."""
    return name.replace("_", "").replace("-", "").isalnum()


def shard_file(split: str, number: int) -> str:
    """The path of a split's shard, relative to the data set's root."""
    return f"{split}/part-{number:05d}.parquet"


class Manifest(Config):
    """`dataset.json`. It holds no time and no path of a machine, so that equal data give equal bytes."""

    format: Count = FORMAT_VERSION
    name: str
    categories: tuple[CategoryInfo, ...]
    splits: dict[str, SplitInfo]
    changes: Changes = Changes()
    source: dict[str, Any] = Field(default_factory=dict)  # how it was made; a generator's full configuration

    @model_validator(mode="after")
    def _as_written(self) -> Self:
        """A manifest is data from outside: only files of the data set itself, and numbers that agree."""
        if not self.categories:
            raise ValueError("categories: a data set needs at least one class")
        if repeated := [id_ for id_, n in Counter(c.id for c in self.categories).items() if n > 1]:
            raise ValueError(f"categories: the id {repeated[0]} stands twice")
        for name, split in self.splits.items():
            for number, shard in enumerate(split.shards):
                if not split_name_allowed(name) or shard.file != shard_file(name, number):
                    raise ValueError(f"splits.{name}.shards.{number}.file: {shard.file!r} is no file of this split")
                if not shard.row_groups or min(shard.row_groups) < 1 or sum(shard.row_groups) != shard.rows:
                    raise ValueError(f"splits.{name}.shards.{number}: {shard.rows} rows in {list(shard.row_groups)}")
                if shard.checksums and len(shard.checksums) != len(shard.row_groups):
                    raise ValueError(
                        f"splits.{name}.shards.{number}: {len(shard.checksums)} checksums of "
                        f"{len(shard.row_groups)} row groups"
                    )
            rows = sum(shard.rows for shard in split.shards)
            if split.images != rows or not rows:
                raise ValueError(f"splits.{name}: {split.images} images, but its shards have {rows} rows")
        return self

    def category_tuple(self) -> tuple[Category, ...]:
        """The classes, in order of their contiguous labels 0, 1, ..."""
        return tuple(Category(c.id, c.name) for c in self.categories)

    def split(self, name: str, uri: str) -> SplitInfo:
        """What the split `name` of this data set, which lies at `uri`, holds. Raises `DataError` where it has none."""
        if name not in self.splits:
            raise DataError(
                f"{uri} has no split {name!r}. It has: {', '.join(sorted(self.splits))}. "
                "Name one of these or prepare the data set with that split."
            )
        return self.splits[name]


def manifest_exists(root: Location) -> bool:
    """Whether a data set of this package was committed at `root`."""
    return (root / MANIFEST).is_file()


def read_manifest(uri: str) -> Manifest:
    """The manifest of the data set at `uri`.

    Raises:
        DataError: nothing there, not a data set, or another format version.
    """
    root, place = locate(uri), child_uri(uri, MANIFEST)
    try:
        if not manifest_exists(root):
            raise DataError(
                f"No data set at {uri}: {MANIFEST} is missing. Correct the location, or make one with "
                f"`{command('prepare')} coco ... --out {uri}` (or `shapes`)."
            )
        text = (root / MANIFEST).read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {place}: {error}. Check the location and the credentials.") from error
    try:
        version = unseal(text).get("format", FORMAT_VERSION)
        if type(version) is int and version != FORMAT_VERSION:  # before what only that version knows
            raise DataError(
                f"{uri} has format version {version}, this version of mgdet reads {FORMAT_VERSION}. "
                "Prepare the data set again."
            )
        return read_as(Manifest, text)
    except RecordError as error:
        raise DataError(f"{place} is not a manifest of mgdet: {error}. Prepare the data set again.") from error
