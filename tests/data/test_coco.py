"""COCO import: what is kept, what is dropped and counted, and a clear error for each kind of wrong input."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgdet.data import CocoSplit, Manifest, ShardedDataset, import_coco, read_manifest
from mgdet.errors import DataError
from tests.forked import run_job

BASE: dict[str, Any] = {
    "images": [
        {"id": 30, "file_name": "a.jpg", "width": 40, "height": 30},
        {"id": 7, "file_name": "b.jpg", "width": 40, "height": 30},
        {"id": 9, "file_name": "c.jpg", "width": 40, "height": 30},
    ],
    "categories": [{"id": 17, "name": "cat"}, {"id": 0, "name": "dog"}, {"id": 5, "name": "cow"}],
    "annotations": [
        {"id": 0, "image_id": 30, "category_id": 17, "bbox": [1.25, 2, 10.1, 5], "area": 31.5, "iscrowd": 0},
        {"id": 1, "image_id": 7, "category_id": 0, "bbox": [0, 0, 20, 10], "area": 99, "iscrowd": 1},
        {"id": 2, "image_id": 30, "category_id": 5, "bbox": [3, 4, 5, 6], "area": 30, "iscrowd": 0},
    ],
}


@pytest.fixture
def images(tmp_path: Path, jpeg: bytes) -> Path:
    directory = tmp_path / "images"
    directory.mkdir()
    for name in "abc":
        (directory / f"{name}.jpg").write_bytes(jpeg)
    return directory


@pytest.fixture
def convert(tmp_path: Path, images: Path) -> Callable[..., Manifest]:
    """Import a dictionary (or a text) as the split `train` of tmp_path/out."""

    def run(content: Any, **options: Any) -> Manifest:
        annotations = tmp_path / "train.json"
        annotations.write_text(content if isinstance(content, str) else json.dumps(content))
        return import_coco(tmp_path / "out", [CocoSplit("train", annotations, images)], **options)

    return run


def with_annotation(**fields: Any) -> dict[str, Any]:
    content = copy.deepcopy(BASE)
    content["annotations"] += [{"id": 77, "image_id": 9, "category_id": 5, "bbox": [1, 1, 2, 2], **fields}]
    return content


def test_everything_is_kept(tmp_path: Path, convert: Callable[..., Manifest], jpeg: bytes) -> None:
    manifest = convert(BASE)
    data = ShardedDataset(str(tmp_path / "out"), "train")
    assert [(c.id, c.name) for c in data.categories] == [(0, "dog"), (5, "cow"), (17, "cat")]
    assert data.image_ids.tolist() == [30, 7, 9]
    assert data.sizes.tolist() == [[30, 40]] * 3
    assert data.read_image(1) == jpeg
    assert data.file_name(2) == "c.jpg"
    truth = data.ground_truth()
    assert truth.box_image.tolist() == [0, 0, 1]
    assert truth.labels.tolist() == [2, 1, 0]
    assert truth.iscrowd.tolist() == [False, False, True]
    assert truth.area.tolist() == [31.5, 30, 99]
    assert truth.boxes.tolist() == [[1.25, 2, 1.25 + 10.1, 7], [3, 4, 8, 10], [0, 0, 20, 10]]
    assert truth.boxes.dtype == np.float64
    split = manifest.splits["train"]
    assert (split.images, split.boxes, split.crowd, split.negatives) == (3, 3, 1, 2)
    assert read_manifest(str(tmp_path / "out")) == manifest


def test_missing_iscrowd_and_area_are_filled_with_one_warning(
    tmp_path: Path, convert: Callable[..., Manifest], caplog: pytest.LogCaptureFixture
) -> None:
    content = copy.deepcopy(BASE)
    for thing in content["annotations"]:
        thing.pop("area")
    content["annotations"][1].pop("iscrowd")
    with caplog.at_level(logging.WARNING):
        changes = convert(content).changes
    assert (changes.filled_area, changes.filled_iscrowd) == (3, 1)
    assert len(caplog.records) == 1
    truth = ShardedDataset(str(tmp_path / "out"), "train").ground_truth()
    assert truth.area.tolist() == pytest.approx([50.5, 30, 200])
    assert not truth.iscrowd.any()


@pytest.mark.parametrize(
    ("bbox", "counted", "kept"),
    [
        ([5, 5, 0, 3], "degenerate", None),
        ([5, 5, 3, -1], "degenerate", None),
        ([5, 5, float("nan"), 3], "degenerate", None),
        ([5, float("inf"), 3, 3], "degenerate", None),
        ([1e16, 5, 1e-3, 3], "degenerate", None),  # the width is lost in rounding
        ([41, 5, 3, 3], "outside", None),
        ([40, 5, 3, 3], "outside", None),
        ([-9, 5, 3, 3], "outside", None),
        ([35, 25, 10, 10], "clipped", [35, 25, 40, 30]),
        ([-5, -5, 100, 100], "clipped", [0, 0, 40, 30]),
        ([30, 20, 10.0002, 10], None, [30, 20, 40.0002, 30]),
    ],
)
def test_boxes_at_the_edge_of_sense(
    tmp_path: Path, convert: Callable[..., Manifest], bbox: list[float], counted: str | None, kept: list[float] | None
) -> None:
    changes = convert(with_annotation(bbox=bbox)).changes
    counts = {kind: getattr(changes, kind) for kind in ("degenerate", "outside", "clipped")}
    assert counts == {kind: int(kind == counted) for kind in counts}
    boxes = ShardedDataset(str(tmp_path / "out"), "train").annotation(2).boxes
    if kept is None:
        assert len(boxes) == 0
        (dropped,) = read_manifest(str(tmp_path / "out")).changes.dropped_boxes
        assert (dropped.image, dropped.image_id, dropped.annotation, dropped.split) == ("c.jpg", 9, 77, "train")
    else:
        assert boxes[0] == pytest.approx(kept, abs=1e-12)


def edited(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(BASE), **changes}


def without(key: str, of: str | None = None) -> dict[str, Any]:
    content = copy.deepcopy(BASE)
    (content[of][0] if of else content).pop(key)
    return content


WRONG_FILES = {
    "broken JSON": ('{"images": [\n {"id": 1,}]}', r"not JSON: .* line 2, column \d+"),
    "cut off": (json.dumps(BASE)[:-30], r"not JSON: .* line 1, column \d+"),
    "not an object": ("[1, 2]", "expected an object"),
    "no images key": (without("images"), "'images' must be a list, got nothing"),
    "no annotations key": (without("annotations"), "'annotations' must be a list"),
    "annotations null": (edited(annotations=None), "'annotations' must be a list, got null"),
    "zero classes": (edited(categories=[]), "'categories' is empty"),
    "zero images": (edited(images=[], annotations=[]), "'images' is empty"),
    "image without id": (without("id", "images"), r"images\[0\]: the key 'id' is missing"),
    "image without name": (without("file_name", "images"), "'file_name' is missing"),
    "image id a text": (edited(images=[{"id": "x", "file_name": "a.jpg"}]), "allowed is an integer of 64 bits"),
    "image twice": (edited(images=[*BASE["images"], BASE["images"][0]]), "image id 30 is used twice"),
    "image no object": (edited(images=[5]), "expected an object, got int"),
    "category twice": (edited(categories=[*BASE["categories"], {"id": 5, "name": "x"}]), "id 5 is used twice"),
    "category name twice": (edited(categories=[*BASE["categories"], {"id": 6, "name": "cow"}]), "'cow' is used twice"),
    "annotation without bbox": (without("bbox", "annotations"), r"annotations\[0\]: the key 'bbox' is missing"),
    "annotation without class": (without("category_id", "annotations"), "'category_id' is missing"),
    "unknown image": (with_annotation(image_id=1234), "image_id 1234, which 'images' lacks"),
    "unknown category": (with_annotation(category_id=99), r"category_id 99; allowed .* 0, 5, 17"),
    "bbox too short": (with_annotation(bbox=[1, 2, 3]), "four numbers"),
    "bbox of texts": (with_annotation(bbox=["1", 2, 3, 4]), "four numbers"),
    "bbox null": (with_annotation(bbox=None), "four numbers"),
    "area a text": (with_annotation(area="big"), "'area' is 'big', allowed is a finite number"),
    "area infinite": (with_annotation(area=float("inf")), "allowed is a finite number"),
    "image id too long": (edited(images=[{"id": 2**70, "file_name": "a.jpg"}]), "64 bits"),
    "iscrowd 2": (with_annotation(iscrowd=2), "allowed is 0 or 1"),
}


@pytest.mark.parametrize(("content", "says"), WRONG_FILES.values(), ids=WRONG_FILES.keys())
def test_wrong_annotation_files(tmp_path: Path, convert: Callable[..., Manifest], content: Any, says: str) -> None:
    before = {p.name for p in tmp_path.iterdir()}
    with pytest.raises(DataError, match=says) as caught:
        convert(content)
    assert "train.json" in str(caught.value)  # where
    assert {p.name for p in tmp_path.iterdir()} - before == {"train.json"}  # nothing half-written


def test_missing_files_and_directories(tmp_path: Path, images: Path) -> None:
    annotations = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"a\.json does not exist"):
        import_coco(tmp_path / "out", [CocoSplit("train", annotations, images)])
    annotations.write_text(json.dumps(BASE))
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        import_coco(tmp_path / "out", [CocoSplit("train", annotations, tmp_path / "nowhere")])
    with pytest.raises(DataError, match="No splits"):
        import_coco(tmp_path / "out", [])
    with pytest.raises(DataError, match="given twice"):
        import_coco(tmp_path / "out", [CocoSplit("train", annotations, images)] * 2)
    with pytest.raises(DataError, match=r"'a/b' is not allowed"):
        import_coco(tmp_path / "out", [CocoSplit("a/b", annotations, images)])
    assert not (tmp_path / "out").exists()


def test_splits_must_agree_on_the_categories(tmp_path: Path, images: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps(BASE))
    second.write_text(json.dumps(edited(categories=[*BASE["categories"], {"id": 18, "name": "emu"}])))
    with pytest.raises(DataError, match=r"only in .*second\.json: \[\(18, 'emu'\)\]"):
        import_coco(tmp_path / "out", [CocoSplit("train", first, images), CocoSplit("val", second, images)])
    assert not (tmp_path / "out").exists()


def test_bad_images_are_named(tmp_path: Path, images: Path, jpeg: bytes, convert: Callable[..., Manifest]) -> None:
    (images / "a.jpg").unlink()
    (images / "b.jpg").write_bytes(jpeg[:-40])
    with pytest.raises(DataError, match=r"(?s)2 image files .*1 missing, 1 undecodable.*a\.jpg.*b\.jpg.*--skip-bad"):
        convert(BASE)
    assert not (tmp_path / "out").exists()
    changes = convert(BASE, skip_bad_images=True).changes
    assert changes.bad_images == 2
    assert changes.dropped_images == ("a.jpg", "b.jpg")
    assert ShardedDataset(str(tmp_path / "out"), "train").image_ids.tolist() == [9]


def test_no_good_image_at_all(tmp_path: Path, images: Path, convert: Callable[..., Manifest]) -> None:
    for file in images.iterdir():
        file.unlink()
    with pytest.raises(DataError, match="'train' has no images"):
        convert(BASE, skip_bad_images=True)
    assert not (tmp_path / "out").exists()


def test_the_file_wins_over_the_annotated_size(tmp_path: Path, images: Path, convert: Callable[..., Manifest]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.open(images / "b.jpg").save(images / "b.jpg", exif=exif)
    content = copy.deepcopy(BASE)
    content["images"][0]["width"] = 400
    del content["images"][2]["height"]
    assert convert(content).changes.resized == 2
    assert ShardedDataset(str(tmp_path / "out"), "train").sizes.tolist() == [[30, 40], [40, 30], [30, 40]]


def test_existing_output_is_kept(tmp_path: Path, convert: Callable[..., Manifest]) -> None:
    convert(BASE)
    with pytest.raises(DataError, match=r"exists already .*--overwrite"):
        convert(BASE)
    convert(with_annotation(), overwrite=True)
    assert read_manifest(str(tmp_path / "out")).splits["train"].boxes == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "out", "train.json"]


def test_progress_covers_checking_and_writing(convert: Callable[..., Manifest]) -> None:
    said: list[tuple[str, int, int]] = []
    convert(BASE, progress=lambda *state: said.append(state))
    assert said == [("checking train", 3, 3), ("writing train", 3, 3)]


def test_real_data(tmp_path: Path, bccd: Path) -> None:
    splits = [CocoSplit(s, bccd / "annotations" / f"{s}.json", bccd / "images") for s in ("train", "val", "test")]
    manifest = import_coco(tmp_path / "bccd", splits)
    assert {k: (v.images, v.boxes) for k, v in manifest.splits.items()} == {
        "train": (205, 2804),
        "val": (87, 1137),
        "test": (72, 945),
    }
    data = ShardedDataset(str(tmp_path / "bccd"), "val")
    source = json.loads((bccd / "annotations" / "val.json").read_text())
    by_image: dict[int, list[list[float]]] = {}
    for thing in source["annotations"]:
        x, y, w, h = thing["bbox"]
        by_image.setdefault(thing["image_id"], []).append([x, y, x + w, y + h])
    for i, image in enumerate(source["images"]):
        assert data.read_image(i) == (bccd / "images" / image["file_name"]).read_bytes()
        assert data.annotation(i).boxes.tolist() == by_image[image["id"]]


@pytest.mark.slow
def test_job_ends_with_a_table_or_status_2(tmp_path: Path, images: Path) -> None:
    annotations = tmp_path / "train.json"
    annotations.write_text(json.dumps(BASE))
    command = ("coco", "--split", "train", annotations, images, "--out", tmp_path / "out")
    good = run_job("prepare", command, tmp_path / "log")
    assert good.returncode == 0, good.output
    assert "train                3         3       1" in good.output
    again = run_job("prepare", command, tmp_path / "log")
    assert again.returncode == 2
    assert again.output.startswith("error: ")
    assert "Traceback" not in again.output
