"""Data formats: the worked example of one more format, and what the importer does for every format."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import mgdet
from mgdet.cli import main
from mgdet.data import ShardedDataset, import_annotations, read_manifest
from mgdet.data.formats import (
    FORMATS,
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSplit,
    Box,
    DataFormat,
    option,
)
from mgdet.errors import DataError


@dataclass(frozen=True)
class CsvBoxes(DataFormat):
    """Files without a header, one for each split; images are numbered in order of their first line."""

    name: ClassVar[str] = "rows"
    summary: ClassVar[str] = "import CSV files of file, x1, y1, x2, y2, class"
    delimiter: str = option(",", "the character between two columns")

    def read(self, places: Sequence[Path]) -> AnnotatedSplit:
        path, directory = places
        images: dict[str, AnnotatedImage] = {}
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for line, row in enumerate(csv.reader(file, delimiter=self.delimiter), start=1):
                    _add_row(row, f"{path}, line {line}", images)
        except (OSError, UnicodeDecodeError, csv.Error, TypeError) as error:
            raise DataError(f"Cannot read {path} as CSV: {error}. Correct the path, file or delimiter.") from error
        return AnnotatedSplit(path, directory, list(images.values()), categories=None)


def _add_row(row: list[str], at: str, images: dict[str, AnnotatedImage]) -> None:
    try:
        file_name, *corners, category = row
        image = images.setdefault(file_name, AnnotatedImage(len(images), file_name, None, []))
        if any((*corners, category)):
            x1, y1, x2, y2 = map(float, corners)
            image.objects.append(AnnotatedObject(category, (x1, y1, x2, y2)))
    except ValueError as error:
        raise DataError(f"{at}: {row}: allowed are file, x1, y1, x2, y2, class. Correct the line.") from error


@dataclass(frozen=True)
class Given(DataFormat):
    """Gives what a test made, and has a flag, a number and another number of paths."""

    name: ClassVar[str] = "given"
    summary: ClassVar[str] = "give 100% of what a test made"
    places: ClassVar[tuple[str, ...]] = ("DIRECTORY",)
    says_crowd_and_area: ClassVar[bool] = True
    relative: bool = option(False, "boxes are shares of the image, 1 is 100% of it")
    least_width: float = option(0.5, "in pixels")

    made: ClassVar[dict[str, AnnotatedSplit]] = {}

    def read(self, places: Sequence[Path]) -> AnnotatedSplit:
        return self.made[places[0].name]

    def corners(self, box: Box, size: tuple[int, int]) -> Box:
        (h, w), (x1, y1, x2, y2) = size, box
        return (x1 * w, y1 * h, x2 * w, y2 * h) if self.relative else box


@pytest.fixture
def photos(tmp_path: Path, jpeg: bytes) -> Path:
    """A directory with three images of 40 x 30 pixels."""
    directory = tmp_path / "photos"
    directory.mkdir()
    for name in "abc":
        (directory / f"{name}.jpg").write_bytes(jpeg)
    return directory


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The one line that a new format takes."""
    before = list(FORMATS)
    FORMATS.extend([CsvBoxes, Given])
    yield
    FORMATS[:] = before


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    file = tmp_path / "boxes.csv"
    file.write_text("b.jpg;1;2;11;12;zebra\na.jpg;;;;;\nb.jpg;30;20;50;40;cow\nc.jpg;5;5;5;9;cow\n")
    return file


@pytest.mark.usefixtures("listed")
def test_the_command_has_a_new_format(
    tmp_path: Path, photos: Path, boxes: Path, jpeg: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    arguments = ["prepare", "rows", "--split", "train", str(boxes), str(photos), "--delimiter", ";", "--out", out]
    assert main.main(arguments) == 0
    said = capsys.readouterr().out
    assert "2 classes: cow, zebra\nChanged: degenerate 1, clipped 1\n" in said
    data = ShardedDataset(out, "train")
    assert [(c.id, c.name) for c in data.categories] == [(1, "cow"), (2, "zebra")]
    assert [data.file_name(i) for i in range(3)] == ["b.jpg", "a.jpg", "c.jpg"]
    truth = data.ground_truth()
    assert truth.boxes.tolist() == [[1, 2, 11, 12], [30, 20, 40, 30]]
    assert (truth.labels.tolist(), truth.area.tolist()) == ([1, 0], [100, 100])
    assert not truth.iscrowd.any()
    assert data.read_image(0) == jpeg
    manifest = read_manifest(out)
    assert manifest.source == {"importer": "rows", "annotations": {"train": "boxes.csv"}}
    (dropped,) = manifest.changes.dropped_boxes
    assert (dropped.image, dropped.reason) == ("c.jpg", "bbox [5.0, 5.0, 5.0, 9.0] has no area")


@pytest.mark.usefixtures("listed")
def test_python_has_a_new_format(tmp_path: Path, photos: Path, boxes: Path) -> None:
    splits = {"val": (boxes, photos)}
    made = mgdet.prepare("rows", tmp_path / "out", splits=splits, delimiter=";", name="mine")
    assert (made.classes, dict(made.images)) == (("cow", "zebra"), {"val": 3})
    for options, message in (
        ({"delimiter": 5}, "rows: delimiter = 5: expected str, such as ','"),
        (
            {"delimitor": ";"},
            "rows has no option 'delimitor': allowed are name, workers, skip_bad_images, keep_repeated, .*delimiter",
        ),
        ({"delimiter": ";;"}, "Correct the path, file or delimiter"),
        ({}, r"line 1: \['b.jpg;1;2;11;12;zebra'\]: allowed are file, x1"),
    ):
        with pytest.raises(mgdet.MgdetError, match=message):
            mgdet.prepare("rows", tmp_path / "other", splits=splits, **options)
    with pytest.raises(mgdet.MgdetError, match=r"allowed are coco,.* rows, given and shapes"):
        mgdet.prepare("pascal", tmp_path / "other")
    with pytest.raises(mgdet.MgdetError, match=r"rows needs splits=.'train': \(ANNOTATIONS, IMAGES\)"):
        mgdet.prepare("rows", tmp_path / "other")
    with pytest.raises(mgdet.MgdetError, match=r"'val' of rows is .*: expected 2 in a list: ANNOTATIONS, IMAGES"):
        mgdet.prepare("rows", tmp_path / "other", splits={"val": [boxes]})
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("listed")
def test_help_has_the_format_and_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        ([], ["import COCO annotation files", CsvBoxes.summary, "draw the generated"]),
        (["rows"], ["--split NAME ANNOTATIONS IMAGES", "the character between two columns (default ,)"]),
        (["given"], ["--split NAME DIRECTORY", "1 is 100% of it", "in pixels (default 0.5)", "--skip-bad-images"]),
    ):
        with pytest.raises(SystemExit):
            main.main(["prepare", *arguments, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert [text for text in expected if text not in said] == []


def test_every_format_has_a_name_of_its_own() -> None:
    names = [each.name for each in FORMATS]
    assert sorted({*names, "shapes"}) == sorted([*names, "shapes"])


def given(photos: Path, *objects: AnnotatedObject, classes: dict[int, str] | None = None, ids: str = "ab") -> Path:
    """Make a split of as many images as `ids` has letters, the first of which has the objects."""
    images = [AnnotatedImage(ord(i), f"{i}.jpg", None, []) for i in ids]
    images[0].objects.extend(objects)
    place = Path(f"split{len(Given.made)}")
    Given.made[place.name] = AnnotatedSplit(place, photos, images, classes)
    return place


@pytest.mark.usefixtures("listed")
def test_boxes_may_be_relative_to_the_image(tmp_path: Path, photos: Path) -> None:
    place = given(photos, AnnotatedObject("cow", (0.25, 0.1, 0.5, 0.5)), AnnotatedObject("cow", (0.5, 0.5, 1.5, 0.9)))
    out = str(tmp_path / "out")
    assert main.main(["prepare", "given", "--split", "train", str(place), "--relative", "--out", out]) == 0
    assert ShardedDataset(out, "train").ground_truth().boxes.tolist() == [[10, 3, 20, 15], [20, 15, 40, 27]]
    assert read_manifest(out).changes.clipped == 1


def test_only_formats_that_say_crowd_and_area_are_told_what_is_missing(
    tmp_path: Path, photos: Path, boxes: Path
) -> None:
    things = [AnnotatedObject("cow", (1, 1, 3, 4)), AnnotatedObject("cow", (1, 1, 3, 4), iscrowd=True, area=2.5)]
    changes = import_annotations(tmp_path / "a", Given(), [("train", [given(photos, *things)])]).changes
    assert (changes.filled_iscrowd, changes.filled_area) == (1, 1)
    truth = ShardedDataset(str(tmp_path / "a"), "train").ground_truth()
    assert (truth.iscrowd.tolist(), truth.area.tolist()) == ([False, True], [6, 2.5])
    changes = import_annotations(tmp_path / "b", CsvBoxes(";"), [("train", [boxes, photos])]).changes
    assert (changes.filled_iscrowd, changes.filled_area) == (0, 0)


def test_classes_of_a_format_without_a_list_are_those_of_all_splits(tmp_path: Path, photos: Path) -> None:
    splits = [
        ("train", [given(photos, AnnotatedObject("zebra", (1, 1, 3, 4)))]),
        ("val", [given(photos, AnnotatedObject("ant", (1, 1, 3, 4)))]),
    ]
    manifest = import_annotations(tmp_path / "out", Given(), splits)
    assert [(c.id, c.name) for c in manifest.category_tuple()] == [(1, "ant"), (2, "zebra")]
    assert ShardedDataset(str(tmp_path / "out"), "train").ground_truth().labels.tolist() == [1]


def test_what_no_format_may_give_is_refused(tmp_path: Path, photos: Path) -> None:
    cow = AnnotatedObject("cow", (1, 1, 3, 4))
    for place, message in (
        (given(photos, cow, classes={1: "emu"}), "objects of the class 'cow'; the list of classes has emu"),
        (given(photos), "no object and no class, there is nothing to learn"),
        (given(photos, cow, ids="aba"), "image id 97 is used twice"),
    ):
        with pytest.raises(DataError, match=message):
            import_annotations(tmp_path / "out", Given(), [("train", [place])])
    assert not (tmp_path / "out").exists()


def test_coco_files_that_list_images_in_another_order_give_the_same_objects(tmp_path: Path, photos: Path) -> None:
    """Objects find their image by id, wherever either stands."""
    images = [{"id": ord(i), "file_name": f"{i}.jpg"} for i in "abc"]
    things = [{"image_id": ord(i), "category_id": 3, "bbox": [k, 1, 2, 2]} for k, i in enumerate("cab")]
    found = []
    for name, order in (("one", images), ("two", images[::-1])):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({"images": order, "annotations": things, "categories": [{"id": 3, "name": "cow"}]}))
        mgdet.prepare("coco", tmp_path / name, splits={"train": (file, photos)})
        data = ShardedDataset(str(tmp_path / name), "train")
        found.append({data.file_name(i): data.annotation(i).boxes.tolist() for i in range(3)})
    assert found[0] == found[1] == {"a.jpg": [[1, 1, 3, 3]], "b.jpg": [[2, 1, 4, 3]], "c.jpg": [[0, 1, 2, 3]]}
