"""Exported data sets: read back by `prepare`, and by pycocotools, they are what they were."""

import io
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mgdet.cli import main
from mgdet.data import ShardedDataset, import_annotations
from mgdet.data.export import export_dataset
from mgdet.data.formats import FORMATS, Coco, Cvat, Lvis, OpenImages, Voc, WrittenFormat, Yolo
from mgdet.data.schema import Record
from mgdet.data.writer import write_dataset
from mgdet.errors import DataError
from mgdet.structures import Category

WRITTEN = [Coco(), Voc(), Voc(inclusive=True), Yolo(), Cvat(), Lvis(), OpenImages()]
NAMES = {
    data_format: f"{data_format.name}{'-inclusive' * getattr(data_format, 'inclusive', False)}"
    for data_format in WRITTEN
}


def jpeg(width, height, **options):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 30)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def record(rng, image_id, file_name, objects, crowds=False, **options):
    width, height = (int(n) for n in rng.integers(20, 90, 2))
    upper, size = rng.uniform(0, 0.5, (objects, 2)), rng.uniform(0.2, 0.5, (objects, 2))
    corners = np.concatenate([upper, upper + size], axis=1) * [width, height, width, height]
    return Record(
        image_id=image_id,
        file_name=file_name,
        width=width,
        height=height,
        image=jpeg(width, height, **options),
        boxes=corners,
        labels=rng.integers(0, 3, objects).astype(np.int32),
        iscrowd=np.array([crowds and k % 2 == 0 for k in range(objects)], dtype=np.bool_),
        area=np.prod(corners[:, 2:] - corners[:, :2], axis=1) * rng.uniform(0.5, 1, objects),
    )


def dataset(uri, splits, classes=("zebra", "cow", "größe x")):
    categories = [Category(10 * k + 3, name) for k, name in enumerate(classes)]
    write_dataset(str(uri), splits, name="made", categories=categories, source={"importer": "test"})
    return uri


@pytest.fixture
def made(tmp_path):
    rng = np.random.default_rng(0)
    return dataset(
        tmp_path / "data",
        {
            "train": iter([record(rng, 2**60 + k, f"a/{k}.jpg", objects=6 * (k % 3)) for k in range(9)]),
            "val": iter([record(rng, k, f"v{k}.jpg", objects=4, crowds=True) for k in range(3)]),
        },
    )


def by_file(data):
    """For each image its bytes, size and sorted (class, corners, crowd, area)."""
    truth = data.ground_truth()
    found = {}
    for row in range(len(data)):
        mine = truth.box_image == row
        things = zip(truth.labels[mine], truth.boxes[mine], truth.iscrowd[mine], truth.area[mine], strict=True)
        objects = [(data.categories[label].name, bool(crowd), *box, area) for label, box, crowd, area in things]
        size = int(truth.heights[row]), int(truth.widths[row])
        found[Path(data.file_name(row)).name] = (data.read_image(row), size, sorted(objects))
    return found


@pytest.mark.parametrize("data_format", WRITTEN, ids=NAMES.values())
def test_there_and_back(made, tmp_path, data_format):
    places = export_dataset(made, data_format, tmp_path / "out")
    import_annotations(tmp_path / "again", data_format, list(places.items()))
    for split in ("train", "val"):
        before, after = (by_file(ShardedDataset(str(uri), split)) for uri in (made, tmp_path / "again"))
        if data_format.name == "openimages":  # which cannot name an image without a box
            before = {name: each for name, each in before.items() if each[2]}
        assert before.keys() == after.keys()
        for name, (content, size, objects) in before.items():
            if data_format.name in ("yolo", "cvat", "lvis"):
                objects = [each for each in objects if not each[1]]
            assert after[name][:2] == (content, size)
            found = after[name][2]
            assert [each[:2] for each in found] == [each[:2] for each in objects]
            columns = 5 if data_format.name in ("coco", "lvis") else 4  # only these keep areas
            for one, other in zip(found, objects, strict=True):
                np.testing.assert_allclose(one[2 : 2 + columns], other[2 : 2 + columns], rtol=0, atol=1e-6)


def test_coco_keeps_all_ids(made, tmp_path):
    places = export_dataset(made, Coco(), tmp_path / "out")
    import_annotations(tmp_path / "again", Coco(), list(places.items()))
    before, after = (ShardedDataset(str(uri), "train") for uri in (made, tmp_path / "again"))
    assert before.categories == after.categories
    assert before.ground_truth().image_ids.tolist() == after.ground_truth().image_ids.tolist()
    assert [after.file_name(row) for row in range(3)] == ["0.jpg", "1.jpg", "2.jpg"]


def test_pycocotools_reads_it(made, tmp_path, capsys):
    (annotations, images) = export_dataset(made, Coco(), tmp_path / "out", splits=["val"])["val"]
    coco = COCO(str(annotations))
    truth = ShardedDataset(str(made), "val").ground_truth()
    assert len(coco.anns) == len(truth.boxes)
    for image in coco.loadImgs(coco.getImgIds()):
        with Image.open(images / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])


def test_crowds_that_yolo_has_no_flag_for_are_told(made, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        export_dataset(made, Yolo(), tmp_path / "out")
    assert "6 crowds are left out" in caplog.text
    assert (tmp_path / "out" / "data.yaml").read_text().splitlines()[:3] == [
        "path: .",
        "train: images/train",
        "val: images/val",
    ]


@pytest.mark.parametrize("data_format", WRITTEN, ids=NAMES.values())
def test_names_that_collide_or_are_none_for_a_file(tmp_path, data_format):
    rng = np.random.default_rng(1)
    names = [
        "a/1.jpg",
        "b/1.JPG",
        "1.png",
        "../../up.jpg",
        "/etc/x y.jpg",
        "C:\\d\\é.jpg",
        "line\nbreak.jpg",
        "plain",
        "..",
        "a.b.jpg",
    ]
    splits = {
        "train": iter([record(rng, k, name, objects=2) for k, name in enumerate(names)]),
        "val": iter([record(rng, 5, "up.jpg", objects=2)]),
    }
    data = dataset(tmp_path / "data", splits)
    places = export_dataset(data, data_format, tmp_path / "out" / "deep")
    import_annotations(tmp_path / "again", data_format, list(places.items()))
    again = ShardedDataset(str(tmp_path / "again"), "train")
    found = sorted(again.file_name(row) for row in range(len(again)))
    assert found == sorted(
        [
            *(
                "train-0-1.jpg",
                "train-1-1.JPG",
                "train-2-1.png",
                "train-3-up.jpg",
                "x y.jpg",
                "é.jpg",
                "line_break.jpg",
            ),
            *("plain.jpg", "image.jpg", "a.b.jpg"),
        ]
    )
    assert sorted(os.listdir(tmp_path)) == ["again", "data", "out"]
    assert len(ShardedDataset(str(tmp_path / "again"), "val")) == 1


def test_images_that_are_turned_are_told(tmp_path, caplog):
    exif = Image.Exif()
    exif[0x0112] = 3
    rng = np.random.default_rng(2)
    splits = {"train": iter([record(rng, 1, "a.jpg", objects=2, exif=exif), record(rng, 2, "b.jpg", objects=2)])}
    data = dataset(tmp_path / "data", splits)
    with caplog.at_level(logging.WARNING):
        export_dataset(data, Coco(), tmp_path / "out")
    assert "train: 1 images have an EXIF orientation. Their boxes refer to the upright picture: a.jpg" in caplog.text


def test_what_cannot_be_written_leaves_nothing(made, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("")
    for data_format, out, options, message in (
        (Coco(), "taken", {}, "taken exists already and nothing was written"),
        (Coco(), "taken/mine", {}, "exists already"),
        (Coco(), "taken/mine/below", {}, "Cannot write|exists|Not a directory"),
        (Coco(), "out", {"splits": ["test"]}, "has no split 'test': it has train, val"),
    ):
        with pytest.raises(DataError, match=message):
            export_dataset(made, data_format, tmp_path / out, **options)
    odd = dataset(
        tmp_path / "odd", {"train": iter([record(np.random.default_rng(3), 1, "a.jpg", 3)])}, (" a", "b", "c")
    )
    with pytest.raises(DataError, match="The class ' a' cannot stand in an XML file"):
        export_dataset(odd, Voc(), tmp_path / "out")

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left on device"):
        export_dataset(made, Coco(), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["data", "odd", "taken"]


def test_the_command(made, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    assert main.main(["export-data", str(made), "--format", "yolo", "--out", str(out), "--split", "val"]) == 0
    assert capsys.readouterr().out == f"val         {out}/data.yaml {out}/images/val\n"
    assert sorted(path.name for path in (out / "labels" / "val").iterdir()) == ["v0.txt", "v1.txt", "v2.txt"]
    assert main.main(["export-data", str(made), "--format", "yolo", "--out", str(out)]) == 2
    assert main.main(["export-data", str(tmp_path / "nothing"), "--format", "voc", "--out", str(tmp_path / "b")]) == 2
    with pytest.raises(SystemExit):
        main.main(["export-data", str(made), "--format", "shapes", "--out", str(tmp_path / "b")])
    assert "invalid choice: 'shapes'" in capsys.readouterr().err


def test_every_format_is_written():
    written = {each.name for each in FORMATS if issubclass(each, WrittenFormat)}
    assert written == {"coco", "voc", "yolo", "cvat", "lvis", "openimages"}


def test_lvis_files_say_that_all_classes_were_looked_for(made, tmp_path, caplog):
    (annotations, images) = export_dataset(made, Lvis(), tmp_path / "out", splits=["val"])["val"]
    tree = json.loads(annotations.read_text())
    every = {entry["id"] for entry in tree["categories"]}
    for image in tree["images"]:
        present = {entry["category_id"] for entry in tree["annotations"] if entry["image_id"] == image["id"]}
        assert set(image["neg_category_ids"]) == every - present
        assert image["not_exhaustive_category_ids"] == []
    assert sum(entry["instance_count"] for entry in tree["categories"]) == len(tree["annotations"])
    with caplog.at_level(logging.WARNING):
        Lvis().read([annotations, images])
    assert "annotated for some classes only" not in caplog.text
    tree["images"][0]["not_exhaustive_category_ids"] = [min(every)]
    annotations.write_text(json.dumps(tree))
    with caplog.at_level(logging.WARNING):
        Lvis().read([annotations, images])
    assert "1 of 3 images are annotated for some classes only" in caplog.text


@pytest.mark.parametrize("data_format", WRITTEN, ids=NAMES.values())
def test_two_classes_of_one_name_stay_two(tmp_path, data_format):
    splits = {"train": iter([record(np.random.default_rng(4), 1, "a.jpg", objects=12)])}
    data = dataset(tmp_path / "data", splits, ("a", "b", "a"))
    import_annotations(
        tmp_path / "again", data_format, list(export_dataset(data, data_format, tmp_path / "out").items())
    )
    before, after = (ShardedDataset(str(uri), "train") for uri in (data, tmp_path / "again"))
    assert sorted(category.name for category in after.categories) == ["a (23)", "a (3)", "b"]
    assert sorted(np.bincount(before.ground_truth().labels)) == sorted(np.bincount(after.ground_truth().labels))
