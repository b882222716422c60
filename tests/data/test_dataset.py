"""Writing and reading: all or nothing, exact, and clear about what is wrong."""

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from mgdet import storage
from mgdet.data import ShapesConfig, ShardedDataset, dataset, generate_shapes, read_manifest, writer
from mgdet.data.schema import SCHEMA, Record
from mgdet.data.writer import write_dataset
from mgdet.errors import DataError, OwnedError
from mgdet.records import seal, unseal
from mgdet.structures import Category

CLASSES = [Category(3, "a"), Category(8, "b")]


def records(count: int, jpeg: bytes = b"x") -> Iterator[Record]:
    """Row i has i % 3 boxes, the first of two a crowd."""
    for i in range(count):
        n = i % 3
        boxes = np.arange(n * 4, dtype=np.float64).reshape(n, 4) + i / 10
        crowd = np.array([True, False][:n] if n == 2 else [False] * n, dtype=np.bool_)
        labels = np.arange(n, dtype=np.int32)
        yield Record(100 - i, f"ü{i}.jpg", 40, 30, jpeg + b"%d" % i, boxes, labels, crowd, np.full(n, i / 7))


@pytest.fixture
def small(tmp_path: Path) -> str:
    uri = str(tmp_path / "small")
    write_dataset(uri, {"train": records(150), "val": records(2)}, name="small", categories=CLASSES)
    return uri


def test_round_trip(small: str) -> None:
    data = ShardedDataset(small, "train")
    assert data.row_group_sizes == (64, 64, 22)
    assert data.categories == tuple(CLASSES)
    assert len(data) == data.num_images == 150
    truth = data.ground_truth()
    for i, record in enumerate(records(150)):
        assert data.image_ids[i] == record.image_id
        assert data.file_name(i) == record.file_name
        assert data.read_image(i) == record.image
        found = data.annotation(i)
        for name in ("boxes", "labels", "iscrowd", "area"):
            np.testing.assert_array_equal(getattr(found, name), getattr(record, name))
        np.testing.assert_array_equal(truth.boxes[truth.box_image == i], record.boxes)
    split = data.manifest.splits["train"]
    assert (split.images, split.boxes, split.crowd, split.negatives) == (150, 150, 50, 50)


def test_schema_and_raw_images_on_disk(small: str) -> None:
    file = pq.ParquetFile(f"{small}/train/part-00000.parquet")
    assert file.schema_arrow.equals(SCHEMA)
    column = file.metadata.row_group(0).column(SCHEMA.get_field_index("image"))
    assert column.compression == "UNCOMPRESSED"
    assert column.statistics is None or not column.statistics.has_min_max


def test_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "ROWS_PER_SHARD", 70)
    uri = str(tmp_path / "x")
    manifest = write_dataset(uri, {"train": records(150)}, name="x", categories=CLASSES)
    assert [shard.rows for shard in manifest.splits["train"].shards] == [70, 70, 10]
    data = ShardedDataset(uri, "train")
    assert data.row_group_sizes == (64, 6, 64, 6, 10)
    assert [data.read_image(i) for i in (149, 0, 69, 70)] == [b"x149", b"x0", b"x69", b"x70"]


def test_split_without_any_box(tmp_path: Path) -> None:
    uri = str(tmp_path / "x")
    write_dataset(uri, {"val": records(1)}, name="x", categories=CLASSES)
    truth = ShardedDataset(uri, "val").ground_truth()
    assert truth.boxes.shape == (0, 4)
    assert truth.box_image.shape == (0,)


def test_pickles_without_open_files(small: str) -> None:
    data = ShardedDataset(small, "train")
    data.read_image(0)
    pickled = pickle.dumps(data)
    assert len(pickled) < 40_000
    copy = pickle.loads(pickled)
    assert copy.read_image(149) == b"x149"
    np.testing.assert_array_equal(copy.ground_truth().boxes, data.ground_truth().boxes)


def test_cache_is_bounded(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "CACHED_ROW_GROUPS", 2)
    data = ShardedDataset(small, "train")
    for i in (0, 64, 128, 0, 149):
        data.read_image(i)
    assert list(data._cache) == [0, 2]


@pytest.mark.parametrize("position", [-1, 150])
def test_no_such_row(small: str, position: int) -> None:
    with pytest.raises(IndexError, match=f"row {position} of 150"):
        ShardedDataset(small, "train").read_image(position)


def test_wrong_places(small: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no split 'test'\. It has: train, val"):
        ShardedDataset(small, "test")
    with pytest.raises(DataError, match=r"No data set at .*`mgdet prepare coco"):
        ShardedDataset(str(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match="Cannot open 'ftq://x/y'"):
        read_manifest("ftq://x/y")
    with pytest.raises(DataError, match="is empty"):
        read_manifest(" ")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"format": 1', '"format": 99', "format version 99"),
        ('"name": "small"', '"nam": "small"', "is not a manifest"),
        ('"rows": 150', '"rows": 149', r"splits.train.shards.0: 149 rows in \[64, 64, 22\]"),
        ('"images": 150', '"images": 149', "149 images, but its shards have 150 rows"),
        ('"images": 150', "", "is not a manifest"),
        ('"id": 8', '"id": "x"', r"at categories\.1\.id"),
    ],
)
def test_damaged_manifest(small: str, old: str, new: str, says: str) -> None:
    manifest = Path(small) / "dataset.json"
    text = without_checksum(manifest.read_bytes())
    assert old in text
    manifest.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=says):
        ShardedDataset(small, "train")


def test_a_manifest_that_was_changed(small: str) -> None:
    manifest = Path(small) / "dataset.json"
    manifest.write_text(manifest.read_text().replace('"name": "small"', '"name": "other"'))
    with pytest.raises(DataError, match=r"its checksum does not fit .*Prepare the data set again"):
        read_manifest(small)


@pytest.mark.parametrize("file", ["../other/part-00000.parquet", "/etc/passwd", "val/part-00000.parquet", "train/x"])
def test_a_manifest_opens_no_file_outside(small: str, file: str) -> None:
    manifest = Path(small) / "dataset.json"
    content = unseal(manifest.read_bytes())
    content["splits"]["train"]["shards"][0]["file"] = file
    manifest.write_bytes(seal(content))
    with pytest.raises(DataError, match="is no file of this split"):
        ShardedDataset(small, "train")


def test_a_shard_of_another_data_set(small: str, tmp_path: Path) -> None:
    write_dataset(tmp_path / "y", {"train": records(149)}, name="y", categories=CLASSES)
    (tmp_path / "y" / "train" / "part-00000.parquet").rename(Path(small) / "train" / "part-00000.parquet")
    with pytest.raises(DataError, match="149 rows, its manifest says 150"):
        ShardedDataset(small, "train")


def test_damaged_shards(small: str) -> None:
    shard = Path(small) / "train" / "part-00000.parquet"
    whole = shard.read_bytes()
    data = ShardedDataset(small, "train")
    shard.write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"row group 0 of .*part-00000"):
        data.read_image(0)
    with pytest.raises(DataError, match=r"Cannot read .*part-00000"):
        ShardedDataset(small, "train")
    shard.unlink()
    with pytest.raises(DataError, match=r"Cannot read .*part-00000"):
        ShardedDataset(small, "train")


def without_checksum(record: bytes) -> str:
    """A record as earlier versions wrote it, without a checksum: they are still read."""
    return json.dumps(unseal(record), indent=1)


def broken() -> Iterator[Record]:
    yield from records(70)
    raise RuntimeError("power cut")


def test_nothing_is_left_after_an_error(tmp_path: Path, small: str) -> None:
    before = read_manifest(small)
    with pytest.raises(RuntimeError, match="power cut"):
        write_dataset(tmp_path / "new", {"train": broken()}, name="x", categories=CLASSES)
    with pytest.raises(RuntimeError, match="power cut"):
        write_dataset(small, {"train": broken()}, name="x", categories=CLASSES, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
    assert read_manifest(small) == before
    assert ShardedDataset(small, "train").read_image(3) == b"x3"


def test_overwrite_spares_what_is_not_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite, says in ((False, "exists already"), (True, "is not a data set of mgdet")):
        with pytest.raises(DataError, match=says):
            write_dataset(tmp_path, {"t": records(2)}, name="x", categories=CLASSES, overwrite=overwrite)
    with pytest.raises(DataError, match="exists already"):
        write_dataset(tmp_path / "thesis.tex", {"t": records(2)}, name="x", categories=CLASSES)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_place_that_another_one_writes(tmp_path: Path) -> None:
    """The second start is refused and named, the first one is not disturbed, and nothing is left of either."""

    def slow() -> Iterator[Record]:
        yield from records(2)
        with pytest.raises(OwnedError, match=rf"the data set .*x is being written by process {os.getpid()} on"):
            write_dataset(tmp_path / "x", {"t": records(5)}, name="second", categories=CLASSES)

    write_dataset(tmp_path / "x", {"t": slow()}, name="first", categories=CLASSES)
    assert read_manifest(str(tmp_path / "x")).name == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_place_taken_meanwhile_is_spared(tmp_path: Path) -> None:
    """By somebody who does not ask who is the owner."""
    write_dataset(tmp_path / "y", {"t": records(5)}, name="first", categories=CLASSES)

    def slow() -> Iterator[Record]:
        yield from records(2)
        (tmp_path / "y").rename(tmp_path / "x")

    with pytest.raises(DataError, match="Cannot write"):
        write_dataset(tmp_path / "x", {"t": slow()}, name="second", categories=CLASSES)
    assert read_manifest(str(tmp_path / "x")).name == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_unwritable_place() -> None:
    with pytest.raises(DataError, match="Cannot write /proc/nowhere/x"):
        write_dataset("/proc/nowhere/x", {"t": records(2)}, name="x", categories=CLASSES)


def test_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    write_dataset(tmp_path / "x", {"t": records(2)}, name="x", categories=CLASSES)
    assert ShardedDataset(str(tmp_path / "x"), "t").num_images == 2


def test_file_uri(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/x"
    generate_shapes(uri, ShapesConfig(train=2, val=1, size=48))
    assert ShardedDataset(uri, "val").num_images == 1
    assert (tmp_path / "x" / "dataset.json").exists()


def test_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for s3:// and gs://: no renaming, the manifest commits."""
    store = fs._MockFileSystem()
    monkeypatch.setattr(storage, "_open", lambda uri: (store, uri.removeprefix("store://")))
    uri = "store://bucket/x"
    with pytest.raises(RuntimeError, match="power cut"):
        write_dataset(uri, {"train": broken()}, name="x", categories=CLASSES)
    assert storage.locate(uri).is_empty()
    write_dataset(uri, {"train": records(70)}, name="x", categories=CLASSES)
    with pytest.raises(DataError, match="exists already"):
        write_dataset(uri, {"train": records(3)}, name="x", categories=CLASSES)
    write_dataset(uri, {"train": records(3)}, name="x", categories=CLASSES, overwrite=True)
    data = ShardedDataset(uri, "train")
    assert [data.read_image(i) for i in range(len(data))] == [b"x0", b"x1", b"x2"]


def heavy(count: int, weight: int) -> Iterator[Record]:
    """Rows whose image files are `weight` bytes each."""
    for i in range(count):
        box = np.array([[1.0, 1, 9, 9]])
        ones = np.ones(1)
        yield Record(i, f"{i}.jpg", 64, 64, bytes(weight), box, ones.astype(np.int32) - 1, ones < 0, ones * 64)


@pytest.mark.parametrize(
    ("weight", "groups"), [(10, (64, 36)), (300, (4,) * 25), (1000, (1,) * 100), (5000, (1,) * 100)]
)
def test_row_groups_and_cache_have_a_bound_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: int, groups: tuple[int, ...]
) -> None:
    monkeypatch.setattr(writer, "ROW_GROUP_BYTES", 1000)
    write_dataset(tmp_path / "heavy", {"train": heavy(100, weight)}, name="heavy", categories=[Category(1, "a")])
    data = ShardedDataset(str(tmp_path / "heavy"), "train", cache_bytes=6000)
    assert data.row_group_sizes == groups
    for row in np.random.default_rng(0).permutation(100).tolist():
        assert len(data.read_image(row)) == weight
        kept = sum(group.nbytes for group in data._cache.values())
        assert kept <= 6000 or len(data._cache) == 1
    assert len(data) == 100
