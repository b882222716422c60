"""Which files a prediction takes, and what it says of the others."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mgdet.data.decode import decode_image
from mgdet.data.files import image_suffixes
from mgdet.errors import DataError
from mgdet.inference.find import find_images

Image.init()
RED = Image.new("RGB", (8, 6), (200, 10, 30))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    directory = tmp_path / "photos"
    directory.mkdir()
    return directory


def save(path: Path, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    RED.save(path, kind)
    return path


def names(photos: Path, *inputs: Path) -> list[str]:
    found = find_images([str(i) for i in inputs or (photos,)], photos.parent / "out")
    return [path.relative_to(photos).as_posix() for path in found.paths]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", "JPEG"),
        ("b.jfif", "JPEG"),
        ("b.JPE", "JPEG"),
        ("d.jp2", "JPEG2000"),
        ("d.j2k", "JPEG2000"),
        ("f.mpo", "MPO"),
        ("g.tga", "TGA"),
        ("h.PGM", "PPM"),
        ("i.webp", "WEBP"),
        ("j.qoi", "QOI"),
        ("c.avif", "AVIF"),
    ],
)
def test_what_is_read_is_found(photos: Path, name: str, kind: str) -> None:
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    file = save(photos / name, kind)
    assert names(photos) == [name]
    assert decode_image(file.read_bytes()).shape == (3, 6, 8)


def test_suffixes_of_what_pillow_cannot_read_are_none() -> None:
    assert not image_suffixes() & {".pdf", ".eps", ".mpg", ".h5", ".wmf", ".txt", ""}


def test_linked_directories_are_searched_once(photos: Path, tmp_path: Path) -> None:
    save(tmp_path / "far" / "deep" / "cam.png")
    save(photos / "a.png")
    os.symlink("../far", photos / "linked")
    os.symlink("..", tmp_path / "far" / "deep" / "loop")
    os.symlink(photos, photos / "self")
    assert names(photos) == ["a.png", "linked/deep/cam.png"]


def test_what_is_left_out_is_counted(photos: Path) -> None:
    for name in ("a.png", "day1/g", "day1/h.jpg.tmp", ".hidden/i.png", "._a.png"):
        save(photos / name)
    os.mkfifo(photos / "pipe.png")
    found = find_images([str(photos)], photos.parent / "out")
    assert [p.name for p in found.paths] == ["a.png"]
    text = "; ".join(found.passed_over)
    assert "3 left out (not images by their suffix)" in text
    assert "day1/g" in text
    assert "h.jpg.tmp" in text
    assert "2 left out (hidden)" in text
    with pytest.raises(DataError, match="neither a file nor a directory"):
        find_images([str(photos / "pipe.png")], photos.parent / "out")


# --- ids of an annotation file


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    file = tmp_path / "val.json"
    content = {"images": [{"id": i, "file_name": f"{name}.png"} for i, name in ((2, "a"), (0, "b"), (7, "sub/c"))]}
    file.write_text(json.dumps(content))
    return file


def test_ids_are_those_of_the_annotation_file(photos: Path, listing: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "sub/c.png", "other.png"):
        save(photos / name)
    found = find_images([str(photos)], tmp_path / "out", str(listing))
    assert {p.name: i for p, i in zip(found.paths, found.ids or (), strict=True)} == {
        "a.png": 2,
        "b.png": 0,
        "c.png": 7,
    }
    assert any("1 left out (not in" in text and "other.png" in text for text in found.passed_over)


@pytest.mark.parametrize("form", ["x/photos/a.png", "..\\photos\\A.PNG", "./a.png", "https://host/photos/a.png"])
def test_names_of_other_forms_are_matched(photos: Path, tmp_path: Path, form: str) -> None:
    save(photos / "a.png")
    file = tmp_path / "val.json"
    file.write_text(json.dumps({"images": [{"id": 5, "file_name": form}]}))
    for given in (photos, photos / "a.png"):
        assert find_images([str(given)], tmp_path / "out", str(file)).ids == (5,)


def test_ambiguous_names_and_foreign_files_are_refused(photos: Path, listing: Path, tmp_path: Path) -> None:
    save(photos / "z.png")
    with pytest.raises(DataError, match="names none of the 1 images"):
        find_images([str(photos)], tmp_path / "out", str(listing))
    for place in ("one", "two"):
        save(tmp_path / place / "a.png")
    with pytest.raises(DataError, match=r"a\.png \(id 2\) could be"):
        find_images([str(tmp_path / "one"), str(tmp_path / "two")], tmp_path / "out", str(listing))
    listing.write_text("[]")
    with pytest.raises(DataError, match="list of 'images'"):
        find_images([str(photos)], tmp_path / "out", str(listing))


def test_missing_images_of_the_file_are_told(
    photos: Path, listing: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(photos / "a.png")
    assert find_images([str(photos)], tmp_path / "out", str(listing)).ids == (2,)
    assert "2 of its images were not given, such as b.png, sub/c.png" in caplog.text
    shutil.rmtree(photos)
