"""Fonts for class names in any script: pictures must tell classes apart.

DejaVu, which matplotlib brings along, has no Chinese, Japanese or Korean and shows every character that it lacks as the
same empty box. Such a text is drawn in a font of the machine that has all its characters, or else each character that
DejaVu lacks is written as its escape, such as `\\u732b`.
"""

import functools
import logging
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)


class Drawable(NamedTuple):
    """A text, and the font file that has all its characters."""

    text: str
    font: Path


@functools.lru_cache(maxsize=4096)
def drawable(text: str) -> Drawable:
    """The text as it can be drawn. Control characters are always escaped."""
    text = "".join(c if c.isprintable() else _escaped(c) for c in text)
    wanted = frozenset(map(ord, text))
    base = dejavu()
    if wanted <= _characters(base):
        return Drawable(text, base)
    lacking = wanted - _characters(base)
    for font in _fonts_of_the_machine():
        if wanted <= _characters(font):
            return Drawable(text, font)
    _say_once()
    return Drawable("".join(_escaped(c) if ord(c) in lacking else c for c in text), base)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode() if character.isascii() else f"\\u{ord(character):04x}"


# Matplotlib is imported where it is needed: most processes that import this module draw nothing.


@functools.cache
def dejavu() -> Path:
    """The font that Matplotlib brings along."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


@functools.cache
def _characters(font: Path) -> frozenset[int]:
    """The characters of a font, none where the file cannot be used."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(str(font)).get_charmap())
    except (OSError, RuntimeError, ValueError, TypeError):
        return frozenset()


@functools.cache
def _fonts_of_the_machine() -> tuple[Path, ...]:
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(map(Path, findSystemFonts())))


@functools.cache
def _say_once() -> None:
    logger.warning(
        "no font of this machine has all characters of the class names: pictures show them as escapes. Install one "
        "that has, such as Noto Sans CJK"
    )
