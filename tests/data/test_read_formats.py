"""The formats beside COCO's: files as their tools write them, real data, and files that are wrong."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from mgdet.cli import main
from mgdet.data import ShardedDataset, import_annotations
from mgdet.data.formats import FORMATS, Coco, Cvat, Lvis, OpenImages, Voc, Yolo
from mgdet.errors import DataError

BCCD = Path(__file__).parents[2].parent / "shared" / "data" / "bccd"

VOC = """<annotation>
  <filename>{filename}</filename>
  <size><width>40</width><height>30</height><depth>3</depth></size>
  <object><name>cow</name><truncated>1</truncated><difficult>1</difficult>
    <bndbox><xmax>11</xmax><xmin>1</xmin><ymin>2</ymin><ymax>12.5</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></part>
  </object>
  <object><name>zebra</name><bndbox><xmin>30</xmin><ymin>20</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>
</annotation>
"""
EMPTY_VOC = "<annotation><filename>b.jpg</filename></annotation>"

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><job><labels><label><name>cow</name></label><label><name>zebra</name></label></labels></job></meta>
  <image id="7" name="a.jpg" width="40" height="30">
    <box label="cow" occluded="0" xtl="1" ytl="2" xbr="11" ybr="12" z_order="0">
      <attribute name="colour">brown</attribute>
    </box>
    <polygon label="zebra" points="20.5,10;30,12;25,20" occluded="0"/>
    <mask label="zebra" rle="1, 2, 3" left="5" top="6" width="7" height="8"/>
    <ellipse label="cow" cx="20" cy="15" rx="4" ry="3"/>
    <box label="cow" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90"/>
    <polyline label="cow" points="1,1;2,2"/>
    <tag label="cow"/>
  </image>
  <image id="3" name="b.jpg" width="40" height="30"/>
</annotations>
"""


@pytest.fixture
def photos(tmp_path: Path, jpeg: bytes) -> Path:
    """`images/train` with three images of 40 x 30 pixels."""
    directory = tmp_path / "images" / "train"
    directory.mkdir(parents=True)
    for name in "abc":
        (directory / f"{name}.jpg").write_bytes(jpeg)
    return directory


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def stored(tmp_path: Path, data_format, *places: Path):
    """The split as it is stored: the classes, and of each image its name and (class, corners, crowd) of its objects."""
    import_annotations(tmp_path / "out", data_format, [("train", places)], overwrite=True)
    data = ShardedDataset(str(tmp_path / "out"), "train")
    truth = data.ground_truth()
    objects = zip(truth.box_image, truth.labels, truth.boxes, truth.iscrowd, strict=True)
    by_image: dict[str, list] = {data.file_name(row): [] for row in range(len(data))}
    for row, label, box, crowd in objects:
        by_image[data.file_name(row)].append((data.categories[label].name, box.tolist(), bool(crowd)))
    return [c.name for c in data.categories], by_image


def messages(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


# --- VOC


@pytest.fixture
def voc(tmp_path: Path, photos: Path) -> Path:
    """A directory in VOC's layout."""
    write(tmp_path / "Annotations" / "a.xml", VOC.format(filename="a.jpg"))
    write(tmp_path / "Annotations" / "b.xml", EMPTY_VOC)
    write(tmp_path / "ImageSets" / "Main" / "train.txt", "b\na\n")
    write(tmp_path / "ImageSets" / "Main" / "cow_train.txt", "a  1\nb -1\n")
    return tmp_path


def test_voc(voc: Path, photos: Path, tmp_path: Path) -> None:
    cow, zebra = ("cow", [1, 2, 11, 12.5], True), ("zebra", [30, 20, 40, 30], False)
    assert stored(tmp_path, Voc(), voc / "Annotations", photos) == (
        ["cow", "zebra"],
        {"a.jpg": [cow, zebra], "b.jpg": []},
    )
    _, by_image = stored(tmp_path, Voc(), voc / "ImageSets" / "Main" / "train.txt", photos)
    assert list(by_image) == ["b.jpg", "a.jpg"]
    _, by_image = stored(tmp_path, Voc(), voc / "ImageSets" / "Main" / "cow_train.txt", photos)
    assert list(by_image) == ["a.jpg", "b.jpg"]
    _, by_image = stored(tmp_path, Voc(inclusive=True), voc / "Annotations", photos)
    assert by_image["a.jpg"] == [("cow", [0, 1, 11, 12.5], True), ("zebra", [29, 19, 40, 30], False)]


@pytest.mark.parametrize("filename", ["", "a", "DSC_0001.jpg", "a.png"])
def test_voc_without_the_right_file_name_means_the_image_of_the_same_name(tmp_path, photos, filename) -> None:
    write(tmp_path / "xml" / "a.xml", VOC.format(filename=filename))
    assert list(stored(tmp_path, Voc(), tmp_path / "xml", photos)[1]) == ["a.jpg"]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_real_voc_files_have_the_boxes_of_their_coco_files(tmp_path: Path, split: str) -> None:
    if not BCCD.is_dir():
        pytest.skip(f"there is no {BCCD}")
    names = (BCCD / "voc" / "ImageSets" / "Main" / f"{split}.txt").read_text().split()[:25]
    entries = json.loads((BCCD / "annotations" / f"{split}.json").read_text())
    kept = {image["id"]: image for image in entries["images"] if Path(image["file_name"]).stem in names}
    entries["images"] = list(kept.values())
    entries["annotations"] = [each for each in entries["annotations"] if each["image_id"] in kept]
    coco = write(tmp_path / "coco.json", json.dumps(entries))
    write(tmp_path / "ImageSets" / "Main" / f"{split}.txt", "\n".join(names))
    (tmp_path / "Annotations").symlink_to(BCCD / "voc" / "Annotations")
    _, expected = stored(tmp_path, Coco(), coco, BCCD / "images")
    _, found = stored(tmp_path, Voc(), tmp_path / "ImageSets" / "Main" / f"{split}.txt", BCCD / "images")
    assert {name: sorted(things) for name, things in found.items()} == {
        name: sorted(things) for name, things in expected.items()
    }
    assert sum(map(len, found.values())) > 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation>", r"a\.xml is not XML: .* at line 1, column 13"),
        ("", r"a\.xml is not XML: no element found"),
        ("<annotations/>", r"<annotations>, expected <annotation>"),
        ("<annotation><object><name>cow</name></object></annotation>", r"a\.xml: object 1: it has no <bndbox>"),
        ("<annotation><object><bndbox/></object></annotation>", r"a\.xml: object 1: it has no <name>"),
        (VOC.replace("12.5", "x"), r"a\.xml: object 1 \(cow\): ymax is 'x', allowed is a number"),
        (VOC.replace("12.5", "nan"), r"ymax is 'nan'"),
        (VOC.replace("<ymax>12.5</ymax>", ""), r"ymax is missing"),
        (VOC.replace("<difficult>1", "<difficult>maybe"), r"difficult is 'maybe', allowed are 0 and 1"),
        (VOC.replace("<width>40", "<width>-40"), r"width is -40, allowed is a whole number"),
        ('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "document type .* allowed"),
        ('<!DOCTYPE annotation SYSTEM "http://localhost/a.dtd"><annotation/>', "document type"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', r"a\.xml"),
        ("<annotation>" * 100 + "</annotation>" * 100, "more than 64 elements lie within each other"),
    ],
)
def test_voc_files_that_are_wrong(tmp_path: Path, photos: Path, content: str, message: str) -> None:
    write(tmp_path / "xml" / "a.xml", content)
    with pytest.raises(DataError, match=message):
        stored(tmp_path, Voc(), tmp_path / "xml", photos)


def test_lists_of_voc_that_lead_nowhere(voc: Path, photos: Path, tmp_path: Path) -> None:
    lists = voc / "ImageSets" / "Main"
    elsewhere = write(tmp_path / "elsewhere" / "deep" / "list.txt", "a\n")
    (voc / "Annotations").rename(tmp_path / "xml")
    for place, message in (
        (lists / "train.txt", "No directory `Annotations` stands beside"),
        (elsewhere, "No directory `Annotations`"),
        (lists / "nothing.txt", "does not exist"),
        (lists, r"has no files \*\.xml"),
    ):
        with pytest.raises(DataError, match=message):
            Voc().read([place, photos])
    (tmp_path / "xml").rename(voc / "Annotations")
    with pytest.raises(DataError, match=r"1 of 2 names have no file in .*: z\.xml"):
        Voc().read([write(lists / "more.txt", "a\nz\n"), photos])
    with pytest.raises(DataError, match="has no names"):
        Voc().read([write(lists / "empty.txt", "\n"), photos])
    write(voc / "Annotations" / "c.xml", VOC.format(filename="a.jpg"))
    with pytest.raises(DataError, match=r"two files describe the image 'a\.jpg'"):
        Voc().read([voc / "Annotations", photos])


# --- YOLO


@pytest.mark.parametrize(
    "names", ["names: [cow, zebra]", "nc: 2\nnames: {0: cow, 1: zebra}", "names:\n  0: cow\n  1: zebra"]
)
def test_yolo(tmp_path: Path, photos: Path, names: str) -> None:
    labels = tmp_path / "labels" / "train"
    write(labels / "a.txt", "1 0.5 0.5 0.5 0.2\n0 0.25 0.5 0.5 0.5 0.75 0.8\n")
    write(labels / "b.txt", "")
    kinds, by_image = stored(tmp_path, Yolo(), write(tmp_path / "data.yaml", names), photos)
    assert kinds == ["cow", "zebra"]
    assert list(by_image) == ["a.jpg", "b.jpg", "c.jpg"]
    (zebra, first, _), (cow, second, _) = by_image["a.jpg"]
    assert (zebra, cow, by_image["b.jpg"], by_image["c.jpg"]) == ("zebra", "cow", [], [])
    np.testing.assert_allclose(first, [10, 12, 30, 18])
    np.testing.assert_allclose(second, [10, 15, 30, 24])


def test_yolo_with_labels_beside_the_images_and_names_in_a_text_file(tmp_path, photos, caplog) -> None:
    directory = photos.parents[1] / "all"
    photos.rename(directory)
    write(directory / "a.txt", "\ufeff0 0.5 0.5 0.5 0.2\n")
    write(directory / "z.txt", "0 0.5 0.5 0.5 0.2\n")
    write(directory / "classes.txt", "cow\n")
    with caplog.at_level(logging.WARNING):
        kinds, by_image = stored(tmp_path, Yolo(), directory / "classes.txt", directory)
    assert (kinds, len(by_image["a.jpg"])) == (["cow"], 1)
    assert "1 files of labels belong to no image: z.txt" in messages(caplog)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", r"a\.txt, line 2: 4 numbers; allowed are five"),
        ("0 0.5 0.5 0.5 0.5 0.9", r"line 2: 6 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", r"line 2: 8 numbers"),
        ("2 0.5 0.5 0.5 0.5", r"line 2: class 2; allowed are the numbers 0, 1"),
        ("0.5 0.5 0.5 0.5 0.5", r"line 2: class 0\.5"),
        ("-1 0.5 0.5 0.5 0.5", r"line 2: class -1"),
        ("nan 0.5 0.5 0.5 0.5", r"line 2: class nan"),
        ("cow 0.5 0.5 0.5 0.5", r"line 2: cow, 0\.5.*: allowed are numbers"),
    ],
)
def test_lines_of_yolo_that_are_wrong(tmp_path: Path, photos: Path, line: str, message: str) -> None:
    write(tmp_path / "labels" / "train" / "a.txt", f"0 0.5 0.5 0.5 0.5\n{line}\n")
    with pytest.raises(DataError, match=message):
        stored(tmp_path, Yolo(), write(tmp_path / "data.yaml", "names: [cow, zebra]"), photos)


def test_pixels_in_files_of_yolo_are_refused(tmp_path: Path, photos: Path) -> None:
    write(tmp_path / "labels" / "train" / "a.txt", "0 20 15 10 8\n0 10 15 6 6\n0 30 20 10 10\n0 12 12 8 8\n")
    with pytest.raises(DataError, match="would be cut or dropped, and read as"):
        stored(tmp_path, Yolo(), write(tmp_path / "data.yaml", "names: [cow]"), photos)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("train: a", "has no names of classes"),
        ("names: []", "has no names of classes"),
        ("names: [cow, cow]", "the name 'cow' or its number is used twice"),
        ("names: {0: cow, 00: emu}", "the name 'emu' or its number is used twice"),
        ("names: [cow, []]", "names has 1: a list; allowed are texts"),
        ("names: {cow: 0}", "names has 'cow': '0'"),
        ("names: [", "is not YAML"),
        ("names: !!python/name:os.system", "has no names of classes"),
        ("names: " + "[" * 5000, "is not YAML"),
    ],
)
def test_names_of_yolo_that_are_wrong(tmp_path: Path, photos: Path, names: str, message: str) -> None:
    write(tmp_path / "labels" / "train" / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    with pytest.raises(DataError, match=message):
        Yolo().read([write(tmp_path / "data.yaml", names), photos])


def test_images_that_share_labels_are_told(tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`a.jpg` and `a.png` are two pictures, and one file has the objects of both."""
    file = next(path for path in sorted(photos.rglob("*")) if path.is_file())
    file.with_suffix(".webp").write_bytes(file.read_bytes())
    for path in photos.rglob("*"):
        if path.is_file():
            write(path.with_suffix(".txt"), "0 0.5 0.5 0.2 0.2")
    Yolo().read([write(tmp_path / "data.yaml", "names: [cow]"), photos])
    names = sorted([file.relative_to(photos).as_posix(), file.relative_to(photos).with_suffix(".webp").as_posix()])
    assert f"images share a file of labels: {names[0]} and {names[1]}" in caplog.text


def test_names_of_yolo_that_stand_for_billions_are_refused_at_once(tmp_path: Path, photos: Path) -> None:
    """Aliases of aliases: a few hundred bytes, which no error may write out."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]" for n in range(1, 14))]
    with pytest.raises(DataError, match="names has 0: a list; allowed are texts"):
        Yolo().read([write(tmp_path / "data.yaml", "\n".join([*lines, "names: [*a13]"])), photos])


def test_yolo_without_images_or_labels(tmp_path: Path, photos: Path) -> None:
    names = write(tmp_path / "data.yaml", "names: [cow]")
    (tmp_path / "empty").mkdir()
    for place, message in (
        (photos, "None of the 3 images of .* has a file of labels"),
        (tmp_path / "empty", "has no images"),
        (names, "is not a directory"),
    ):
        with pytest.raises(DataError, match=message):
            Yolo().read([names, place])


# --- CVAT


def test_cvat(tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "annotations.xml", CVAT)
    assert [image.id for image in Cvat().read([path, photos]).images] == [7, 3]
    with caplog.at_level(logging.WARNING):
        kinds, by_image = stored(tmp_path, Cvat(), path, photos)
    assert kinds == ["cow", "zebra"]
    found = by_image["a.jpg"]
    assert [kind for kind, *_ in found] == ["cow", "zebra", "zebra", "cow", "cow"]
    expected = [[1, 2, 11, 12], [20.5, 10, 30, 20], [5, 6, 12, 14], [16, 12, 24, 18], [13, 7, 17, 17]]
    np.testing.assert_allclose([box for _, box, _ in found], expected)
    assert by_image["b.jpg"] == []
    assert "1 of polyline, 1 of tag" in messages(caplog)


@pytest.mark.parametrize("degrees", [0, 10, 45, 123.5, -30, 360])
def test_the_bounds_of_a_turned_ellipse_and_box_hold_their_points_and_touch_them(tmp_path, photos, degrees) -> None:
    shapes = (
        f'<ellipse label="cow" cx="20" cy="15" rx="4" ry="3" rotation="{degrees}"/>'
        f'<box label="cow" xtl="14" ytl="12" xbr="26" ybr="18" rotation="{degrees}"/>'
    )
    file = write(tmp_path / "a.xml", f'<annotations><image id="0" name="a.jpg">{shapes}</image></annotations>')
    round_, cornered = (np.array(thing.box) for thing in Cvat().read([file, photos]).images[0].objects)
    turn = np.radians(degrees)
    rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    angles = np.linspace(0, 2 * np.pi, 100_001)
    on_ellipse = np.stack([4 * np.cos(angles), 3 * np.sin(angles)], axis=1) @ rotate.T + [20, 15]
    corners = np.array([[-6, -3], [6, -3], [6, 3], [-6, 3]]) @ rotate.T + [20, 15]
    for box, points in ((round_, on_ellipse), (cornered, corners)):
        np.testing.assert_allclose(box, [*points.min(axis=0), *points.max(axis=0)], atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<annotations>", "<annotation>", "not XML"),
        ('id="3"', 'id="7"', "id '7': allowed are integers, each once"),
        ('id="3"', 'id="x"', "id is 'x'"),
        ('name="b.jpg"', "", "image 2: it has no name"),
        ('<box label="cow" occluded', "<box occluded", r"image 1 \(a\.jpg\): a <box> has no label"),
        ('xtl="1"', 'xtl="left"', r"box 'cow': xtl is 'left', allowed is a number"),
        ('points="20.5,10;', 'points="20.5;', r"polygon 'zebra': its points are"),
        ("<mask ", "<blob ", r"blob 'zebra': such a shape is not known"),
        ('<image id="3"', '<track id="0"/><image id="3"', "tracks of a video"),
    ],
)
def test_cvat_files_that_are_wrong(tmp_path: Path, photos: Path, old: str, new: str, message: str) -> None:
    assert CVAT.count(old)
    with pytest.raises(DataError, match=message):
        Cvat().read([write(tmp_path / "a.xml", CVAT.replace(old, new, 1)), photos])


# --- LVIS


def test_lvis(tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {
        "images": [
            {"id": 9, "coco_url": "http://images.example.org/train/b.jpg", "height": 30, "width": 40},
            {"id": 4, "file_name": "a.jpg", "height": 30, "width": 40, "not_exhaustive_category_ids": [2]},
        ],
        "annotations": [{"id": 1, "image_id": 9, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12}],
        "categories": [
            {"id": 2, "name": "cow", "synset": "cow.n.01", "frequency": "r"},
            {"id": 5, "name": "pig", "synset": "pig.n.01", "frequency": "r"},
        ],
    }
    path = write(tmp_path / "lvis.json", json.dumps(content))
    for directory in (photos, photos.parent):
        content["images"][1]["file_name"] = str((photos / "a.jpg").relative_to(directory))
        path.write_text(json.dumps(content))
        with caplog.at_level(logging.WARNING):
            kinds, by_image = stored(tmp_path, Lvis(), path, directory)
        assert (kinds, [len(things) for things in by_image.values()]) == (["cow", "pig"], [1, 0])
    assert "1 of 2 images are annotated for some classes only" in messages(caplog)
    content["images"].append(3)
    with pytest.raises(DataError, match=r"images\[2\]: expected an object"):
        Lvis().read([write(path, json.dumps(content)), photos])


# --- Open Images


BOXES = """ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside
b,xclick,/m/1,1,0.25,0.5,0.1,0.5,0,0,0,0,0
a,xclick,/m/2,1,0.0,1.0,0.0,1.0,0,0,1,0,0
b,xclick,/m/2,1,0.5,0.75,0.5,1.0,0,0,-1,0,0
"""


@pytest.mark.parametrize("header", ["", "LabelName,DisplayName\n"])
def test_open_images(tmp_path: Path, photos: Path, header: str) -> None:
    classes = write(tmp_path / "classes.csv", f'{header}/m/1,"Cow, brown"\n/m/2,Zebra\n/m/3,Emu\n')
    kinds, by_image = stored(tmp_path, OpenImages(), write(tmp_path / "boxes.csv", BOXES), classes, photos)
    assert kinds == ["Cow, brown", "Zebra", "Emu"]
    assert by_image == {
        "b.jpg": [("Cow, brown", [10, 3, 20, 15], False), ("Zebra", [20, 15, 30, 30], False)],
        "a.jpg": [("Zebra", [0, 0, 40, 30], True)],
    }


@pytest.mark.parametrize(
    ("boxes", "classes", "message"),
    [
        (BOXES.replace("XMin", "X"), None, "its first line lacks XMin"),
        (BOXES.replace("0.25", "left"), None, r"line 2: \['left'.*allowed are four numbers"),
        (BOXES.replace("/m/1", "/m/4"), None, "line 2: the label '/m/4' has no name"),
        (BOXES.replace("b,xclick,/m/1,1", "b,/m/1,1"), None, "line 2: 12 columns, the first line has 13"),
        (BOXES.replace("0,0,-1,0,0", "0,0,yes,0,0"), None, "line 4: IsGroupOf is 'yes'"),
        (BOXES.splitlines()[0], None, "has no boxes"),
        (BOXES, "/m/1,Cow\n/m/2\n", "line 2: .*allowed are a label and its name"),
        (BOXES, "/m/1,Cow\n/m/2,Cow\n", "line 2: '/m/2' or 'Cow' stands there twice"),
        (BOXES, "\x00", "classes.csv"),
    ],
)
def test_open_images_files_that_are_wrong(tmp_path, photos, boxes, classes, message) -> None:
    names = write(tmp_path / "classes.csv", classes or "/m/1,Cow\n/m/2,Zebra\n")
    with pytest.raises(DataError, match=message):
        OpenImages().read([write(tmp_path / "boxes.csv", boxes), names, photos])


# --- all


def test_classes_are_merged_and_left_out_on_the_command_line(voc: Path, photos: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--split", "train", str(voc / "Annotations"), str(photos), "--out", str(tmp_path / "out")]
    assert main.main(["prepare", "voc", *arguments, "--map", "cow=animal", "--drop", "zebra"]) == 0
    assert "1 classes: animal\n" in capsys.readouterr().out
    assert ShardedDataset(str(tmp_path / "out"), "train").ground_truth().boxes.tolist() == [[1, 2, 11, 12.5]]


@pytest.mark.parametrize("data_format", FORMATS, ids=lambda each: each.name)
def test_files_that_are_not_there_or_no_text(tmp_path: Path, photos: Path, data_format) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("nothing", "binary", "a.yaml"):
        places = [tmp_path / name] * (len(data_format.places) - 1)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            data_format().read([*places, photos])
