"""Pictures tell classes apart whatever script their names are in."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.font_manager import findSystemFonts

from mgdet.evaluation import fonts
from mgdet.evaluation.draw import draw_boxes
from mgdet.evaluation.fonts import dejavu, drawable

GREY = torch.full((3, 120, 160), 120, dtype=torch.uint8)


@pytest.fixture(params=["no fonts", "fonts of the machine"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no fonts":
        monkeypatch.setattr(fonts, "_fonts_of_the_machine", tuple)
    drawable.cache_clear()
    fonts._say_once.cache_clear()
    return str(request.param)


@pytest.mark.parametrize(
    ("one", "other"), [("猫", "狗"), ("고양이", "개"), ("ねこ", "いぬ"), ("𓀀", "𓀁"), ("a\x00", "a\x01")]
)
@pytest.mark.usefixtures("machine")
def test_two_classes_are_two_pictures(one: str, other: str) -> None:
    a, b = (np.asarray(draw_boxes(GREY, [[20, 60, 90, 110]], [0], [f"{text} 0.91"])) for text in (one, other))
    assert not np.array_equal(a, b)


def test_what_no_font_has_is_escaped_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fonts, "_fonts_of_the_machine", tuple)
    drawable.cache_clear()
    fonts._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert drawable("猫 0.9") == ("\\u732b 0.9", dejavu())
        assert drawable("狗 0.8") == ("\\u72d7 0.8", dejavu())
    assert len(caplog.records) == 1
    drawable.cache_clear()


def test_a_font_that_has_the_characters_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path("/fonts/own.ttf")
    before = fonts._characters
    monkeypatch.setattr(fonts, "_fonts_of_the_machine", lambda: (own,))
    monkeypatch.setattr(fonts, "_characters", lambda f: frozenset(map(ord, "猫 0.9")) if f == own else before(f))
    drawable.cache_clear()
    assert drawable("猫 0.9") == ("猫 0.9", own)
    assert drawable("Größe α Ж") == ("Größe α Ж", dejavu())
    drawable.cache_clear()


def test_files_that_are_no_fonts_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.ttf").write_text("no font")
    assert fonts._characters(tmp_path / "x.ttf") == frozenset()
    assert isinstance(findSystemFonts(), list)
