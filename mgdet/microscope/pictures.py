"""The microscope as PNG files: an image under all assigners side by side, all levels together and each by itself."""

import io
import re
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mgdet.evaluation.fonts import drawable
from mgdet.microscope.numbers import Findings, Learning, Picture, Shown
from mgdet.structures import IGNORED

CLS, LOC, BOTH, WITHOUT, MUTED = "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#595959"
"""After Okabe and Ito: colour-blind readers can tell them apart. The shapes say the same."""
FINE = 2
"""Everything is drawn larger by this factor and then made smaller, which smooths it."""
WIDTH, HEIGHT = 380 * FINE, 420 * FINE
"""Of one image in the picture, at most."""
GAP, HEAD, TITLE, LEGEND, TEXT = 10 * FINE, 44 * FINE, 34 * FINE, 40 * FINE, 13 * FINE
KINDS = {"cls": "classification only", "loc": "localization only", "both": "both tasks", "ignored": "ignored"}
SHORT = {"cls": "cls only", "loc": "loc only", "both": "both", "ignored": "ignored"}
COLORS = {"cls": CLS, "loc": LOC, "both": BOTH, "ignored": MUTED}


def file_name(findings: Findings, moment: int, picture: int) -> str:
    """Of the picture of an image at a moment, such as `image-12-step-750.png`."""
    name = re.sub(r"[^\w.-]+", "-", findings.moments[moment].name.partition(" (")[0])
    return f"image-{findings.pictures[picture].id}-{name}.png"


def draw(findings: Findings, moment: int, picture: int) -> bytes:
    """A PNG: a column for each assigner, a row for all levels and for each level on which something learns."""
    shown, image = findings.shown[moment, picture], findings.pictures[picture]
    names = list(shown.learning)
    counts = [[_count(each, level) for level in range(len(shown.strides))] for each in shown.learning.values()]
    used = [level for level in range(len(shown.strides)) if any(sum(of[level].values()) for of in counts)]
    rows: list[int | None] = [None, *used] if len(used) > 1 else [None]
    height, width = image.pixels.shape[1:]
    scale = min(WIDTH / width, HEIGHT / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    column, row = max(size[0], WIDTH) + GAP, size[1] + HEAD + GAP
    sheet = Image.new("RGB", (GAP + column * len(names), TITLE + row * len(rows) + LEGEND), "white")
    pen = ImageDraw.Draw(sheet)
    when = findings.moments[moment].name
    _write(pen, (GAP, GAP), f"image {image.id} ({image.file_name}), {findings.about['name']}, {when}", TEXT + 3 * FINE)
    base = _pale(image, size)
    for c, name in enumerate(names):
        for r, level in enumerate(rows):
            corner = GAP + c * column, TITLE + r * row
            panel = base.copy()
            _panel(panel, image, shown, shown.learning[name], level, scale)
            where = "all levels" if level is None else f"stride {shown.strides[level]}"
            found = counts[c] if level is None else [counts[c][level]]
            said = ", ".join(f"{sum(one[key] for one in found)} {word}" for key, word in SHORT.items())
            _write(pen, corner, name, TEXT)
            _write(pen, (corner[0], corner[1] + 20 * FINE), f"{where}: {said}", TEXT, MUTED)
            sheet.paste(panel, (corner[0], corner[1] + HEAD - 4 * FINE))
    _legend(pen, TITLE + row * len(rows))
    out = io.BytesIO()
    sheet.resize((sheet.width // FINE, sheet.height // FINE), Image.Resampling.BOX).save(out, "PNG")
    return out.getvalue()


def _count(learning: Learning, level: int) -> dict[str, int]:
    """How many priors of a level learn what, of all priors."""
    cls, loc = (int(task.positives[level].sum()) for task in (learning.cls, learning.loc))
    both = int(learning.both[level])
    return {"cls": cls - both, "loc": loc - both, "both": both, "ignored": int(learning.cls.ignored[level])}


def _kinds(learning: Learning) -> NDArray[np.str_]:
    """What each shown prior learns: a key of `KINDS`, or nothing."""
    cls, loc = learning.cls.owner >= 0, learning.loc.owner >= 0
    ignored = (learning.cls.owner == IGNORED) & ~loc
    choices = [cls & loc, cls, loc, ignored]
    return np.select(choices, ["both", "cls", "loc", "ignored"], "")


def _pale(image: Picture, size: tuple[int, int]) -> Image.Image:
    """The image at half its contrast, on which marks can be seen."""
    pixels = image.pixels.permute(1, 2, 0).numpy()
    return Image.fromarray((255 - (255 - pixels.astype(np.uint16)) // 2).astype(np.uint8)).resize(size)


def _panel(
    panel: Image.Image, image: Picture, shown: Shown, learning: Learning, level: int | None, scale: float
) -> None:
    pen = ImageDraw.Draw(panel)
    for g, box in enumerate(image.boxes):
        lacking = [word for word, task in (("cls", learning.cls), ("loc", learning.loc)) if g in task.without()]
        corners = [float(v) * scale for v in box]
        _frame(pen, corners, lacking)
    kinds = _kinds(learning)
    for kind in reversed(KINDS):  # what is ignored lies below
        chosen = (kinds == kind) & (True if level is None else shown.level == level)
        for x, y in shown.places[chosen] * scale:
            mark(pen, kind, float(x), float(y), 3.6 * FINE)


def _frame(pen: ImageDraw.ImageDraw, box: Sequence[float], lacking: Sequence[str]) -> None:
    """The box of an object; one that lacks a positive is red and dashed, and says which task has none."""
    x1, y1, x2, y2 = box
    if not lacking:
        pen.rectangle((x1 - FINE, y1 - FINE, x2 + FINE, y2 + FINE), outline="white", width=3 * FINE)
        pen.rectangle((x1, y1, x2, y2), outline="black", width=FINE)
        return
    step = 7 * FINE
    for (ax, ay), (bx, by) in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x1, y2), (x2, y2)), ((x1, y1), (x1, y2))):
        pen.line((ax, ay, bx, by), fill="white", width=4 * FINE)
        length = max(abs(bx - ax), abs(by - ay), 1)
        for start in np.arange(0, length, 2 * step):
            s, e = start / length, min(1, (start + step) / length)
            ends = (ax + (bx - ax) * s, ay + (by - ay) * s, ax + (bx - ax) * e, ay + (by - ay) * e)
            pen.line(ends, fill=WITHOUT, width=3 * FINE)
    text = f"no {' or '.join(lacking)}"
    left, top, right, bottom = pen.textbbox((x1, y1), text, font=_font(TEXT))
    pen.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=WITHOUT)
    pen.text((x1, y1), text, fill="white", font=_font(TEXT))


def mark(pen: ImageDraw.ImageDraw, kind: str, x: float, y: float, r: float) -> None:
    """The sign of what a prior learns: triangle, square, circle; a cross for an ignored one."""
    color = COLORS[kind]
    if kind == "ignored":
        for width, fill in ((3 * FINE, "white"), (round(1.4 * FINE), color)):
            pen.line((x - r * 0.6, y - r * 0.6, x + r * 0.6, y + r * 0.6), fill=fill, width=width)
            pen.line((x - r * 0.6, y + r * 0.6, x + r * 0.6, y - r * 0.6), fill=fill, width=width)
    elif kind == "cls":
        corners = [(x, y - r * 1.2), (x + r * 1.1, y + r * 0.8), (x - r * 1.1, y + r * 0.8)]
        pen.polygon(corners, fill=color, outline="black", width=FINE)
    elif kind == "loc":
        pen.rectangle((x - r * 0.85, y - r * 0.85, x + r * 0.85, y + r * 0.85), fill=color, outline="black", width=FINE)
    else:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color, outline="black", width=FINE)


def _legend(pen: ImageDraw.ImageDraw, y: int) -> None:
    x, middle = 2 * GAP, y + LEGEND // 2 - 4 * FINE
    for kind, text in KINDS.items():
        mark(pen, kind, x, middle, 5 * FINE)
        _write(pen, (x + 12 * FINE, middle - 8 * FINE), text, TEXT)
        x += 12 * FINE + round(pen.textlength(text, font=_font(TEXT))) + 28 * FINE
    pen.rectangle((x - 8 * FINE, middle - 6 * FINE, x + 8 * FINE, middle + 6 * FINE), outline=WITHOUT, width=3 * FINE)
    _write(pen, (x + 16 * FINE, middle - 8 * FINE), "object without a positive", TEXT)


def _write(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int, color: str = "black") -> None:
    shown, file = drawable(text)
    pen.text(corner, shown, fill=color, font=ImageFont.truetype(file, size))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(drawable("cls").font, size)
