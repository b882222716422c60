"""Annotations of other formats than COCO: an entry that cannot be used is named, and the others are looked at."""

import numpy as np
from PIL import Image

from mgdet.data.formats import Cvat, OpenImages, Voc, Yolo
from mgdet.diagnosis.examine import examine_dataset


def pictures(directory, count):
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(directory / f"{k}.png")


def cases(examined):
    return {
        (finding.kind, case.image_id, case.object)
        for finding in examined.findings
        for case in finding.cases
        if finding.severity != "note"
    }


def test_lines_of_yolo(tmp_path):
    pictures(tmp_path / "images", 3)
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("names: [cell]")
    whole = "0 0.5 0.5 0.4 0.4\n"
    for name, text in {
        "0": whole + "0 0.5 0.5\n",
        "1": "3 0.5 0.5 0.2 0.2\n" + whole,
        "2": "0 0.99 0.5 0.2 0.2\n",
    }.items():
        (tmp_path / "labels" / f"{name}.txt").write_text(text)
    found = examine_dataset(Yolo(), [("train", [tmp_path / "data.yaml", tmp_path / "images"])], workers=1)
    assert cases(found) == {("refused", 1, None), ("refused", 2, None), ("clipped", 3, 0)}
    assert len(found.data.splits["train"].truth.boxes) == 3


def test_files_of_voc(tmp_path):
    pictures(tmp_path / "images", 2)
    (tmp_path / "xml").mkdir()
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>20</ymax></bndbox>"
    for name, text in {"0": f"<object><name>cell</name>{box}</object>", "1": "<object>"}.items():
        text = f"<annotation><filename>{name}.png</filename>{text}</annotation>"
        (tmp_path / "xml" / f"{name}.xml").write_text(text)
    found = examine_dataset(Voc(), [("train", [tmp_path / "xml", tmp_path / "images"])], workers=1)
    assert cases(found) == {("refused", 2, None), ("degenerate", 1, 0)}
    assert "1.xml" in next(f for f in found.findings if f.kind == "refused").cases[0].detail


def test_images_and_shapes_of_cvat(tmp_path):
    pictures(tmp_path / "images", 3)
    box = '<box label="cell" xtl="5" ytl="5" xbr="{}" ybr="20"/>'
    (tmp_path / "a.xml").write_text(
        "<annotations>"
        f'<image id="7" name="0.png">{box.format("wide")}{box.format(20)}<box/></image>'
        f'<image id="7" name="1.png">{box.format(20)}</image>'
        f'<image id="8" name="2.png">{box.format(5)}</image>'
        "</annotations>"
    )
    found = examine_dataset(Cvat(), [("train", [tmp_path / "a.xml", tmp_path / "images"])], workers=1)
    refused = next(finding for finding in found.findings if finding.kind == "refused")
    assert [case.image_id for case in refused.cases] == [7, 7, None]
    assert ("degenerate", 8, 0) in cases(found)
    assert len(found.data.splits["train"].truth.boxes) == 1


def test_lines_of_open_images(tmp_path):
    pictures(tmp_path / "images", 2)
    (tmp_path / "classes.csv").write_text("/m/1,cell\n")
    head = "ImageID,LabelName,XMin,XMax,YMin,YMax\n"
    lines = ["0,/m/1,0.1,0.5,0.1,0.5", "0,/m/2,0.1,0.5,0.1,0.5", "1,/m/1,0.1,0.5", "1,/m/1,0.1,wide,0.1,0.5"]
    (tmp_path / "boxes.csv").write_text(head + "\n".join([*lines, "1,/m/1,0.2,0.6,0.2,0.6"]))
    places = [tmp_path / "boxes.csv", tmp_path / "classes.csv", tmp_path / "images"]
    found = examine_dataset(OpenImages(), [("train", places)], workers=1)
    refused = next(finding for finding in found.findings if finding.kind == "refused")
    assert [case.image_id for case in refused.cases] == [1, None, 2]
    assert len(found.data.splits["train"].truth.boxes) == 2
