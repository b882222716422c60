"""From a file name to the file: every obvious reading, and what is said where none leads there."""

import logging
import unicodedata

import pytest

from tests.data.scenes import Scene, refused, said


def named(scene: Scene, name: str) -> None:
    scene.content["images"][0]["file_name"] = name


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("cam1/x.png", "cam1\\x.png"),
        ("cam1/x.png", "images/cam1/x.png"),
        ("cam1/x.png", "./cam1//x.png "),
        ("my photo.png", "my%20photo.png"),
        ("cam1/x.png", "https://host/d/e/cam1/x.png?width=5"),
        ("x.png", "file:///data/x.png"),
        ("x.png", "C:\\data\\images\\x.png"),
        ("x.png", "/mnt/other/images/x.png"),
        ("x.png", "\\\\server\\share\\x.png"),
        ("x.png", "../images/x.png"),
        ("x.png", "X.PNG"),
        ("Cam 1/X.png", "cam%201\\x.PNG"),
        (unicodedata.normalize("NFD", "é.png"), unicodedata.normalize("NFC", "é.png")),
        (unicodedata.normalize("NFC", "ガ.png"), unicodedata.normalize("NFD", "ガ.png")),
    ],
)
def test_a_name_is_read_in_the_only_way_that_leads_to_a_file(
    scene: Scene, file: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (scene.images / file).parent.mkdir(exist_ok=True)
    (scene.images / "0001.png").rename(scene.images / file)
    named(scene, name)
    with caplog.at_level(logging.WARNING):
        renamed = scene.prepare().changes.renamed
    assert renamed == (name != "../images/x.png")  # this one never leaves the directory
    if renamed:
        assert "1 file names led to their file only by another reading" in said(caplog)
    assert scene.dataset().file_name(0) == name
    assert scene.coverage() == 1.0


@pytest.mark.parametrize(
    ("files", "name", "says"),
    [
        (["a/x.png"], "x.png", "in {images} there is a/x.png"),
        (["x.jpg"], "x.png", "in {images} there is x.jpg"),
        (["a/x.png", "A/X.png"], "A\\x.png", "a/x.png, are equally near"),
        (["a/x.png"], "b/x.png", "there is a/x.png"),
        ([], "nowhere.png", "there is no such file"),
        (["d.png/y.png"], "d.png", "it is a directory"),
    ],
)
def test_what_a_name_may_have_meant_is_told(scene: Scene, files: list[str], name: str, says: str) -> None:
    for file in files:
        (scene.images / file).parent.mkdir(exist_ok=True)
        (scene.images / file).write_bytes((scene.images / "0001.png").read_bytes())
    named(scene, name)
    text = refused(scene)
    for part in says.format(images=scene.images).split(", "):
        assert part in text


def test_two_names_of_other_machines_do_not_share_a_file(scene: Scene) -> None:
    """The last parts of two different paths are the same: at least one of them is another picture."""
    scene.content["images"][0]["file_name"] = "/data/day1/0001.png"
    scene.content["images"][1]["file_name"] = "/data/day2/0001.png"
    assert "so could /data/day2/0001.png: give exact names" in refused(scene)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_file_outside_of_the_directory_is_read_only_if_allowed(scene: Scene, absolute: bool) -> None:
    (scene.images / "0001.png").rename(scene.root / "secret.png")
    named(scene, str(scene.root / "secret.png") if absolute else "../secret.png")
    assert "it lies outside of the image directory" in refused(scene)
    assert scene.prepare(allow_outside=True).splits["train"].images == 4
