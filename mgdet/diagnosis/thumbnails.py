"""Small pictures of cases: the whole picture, or the surroundings of the boxes that a case is about."""

import io

import numpy as np
from PIL import Image, ImageDraw

from mgdet.data.decode import decode_image
from mgdet.diagnosis.base import Case, Corners, Data
from mgdet.errors import DataError
from mgdet.evaluation.draw import COLORS

WIDTH, HEIGHT = 320, 240
"""Pixels of a thumbnail, at most."""
SURROUNDINGS = 3.0
"""How much larger than its boxes the part of the picture is that is shown."""
LEAST = 96.0
"""Pixels of a side of that part, at least."""


def thumbnail(case: Case, data: Data) -> bytes | None:
    """A JPEG of the case with its boxes, the first one on top; None where its picture cannot be read."""
    if case.row is None:
        return None
    try:
        pixels = decode_image(data.splits[case.split].read(case.row), case.file_name)
    except (DataError, OSError):
        return None
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    x1, y1, x2, y2 = _part(case.boxes, picture.size)
    scale = min(WIDTH / (x2 - x1), HEIGHT / (y2 - y1))
    size = max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))
    shown = picture.resize(size, Image.Resampling.BICUBIC, (x1, y1, x2, y2))
    pen = ImageDraw.Draw(shown)
    for color, box in reversed([*zip(COLORS, case.boxes, strict=False)]):
        left, top, right, bottom = ((v - o) * scale for v, o in zip(box, (x1, y1, x1, y1), strict=True))
        if right >= left and bottom >= top:
            pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black", width=4)
            pen.rectangle((left, top, right, bottom), outline=color, width=2)
    out = io.BytesIO()
    shown.save(out, "JPEG", quality=75)
    return out.getvalue()


def _part(boxes: tuple[Corners, ...], size: tuple[int, int]) -> Corners:
    """The part of a picture of (width, height) that is shown: the surroundings of the boxes, or all of it."""
    width, height = size
    if not boxes:
        return 0.0, 0.0, float(width), float(height)
    corners = np.array(boxes)
    low, high = corners[:, :2].min(axis=0).clip(0, size), corners[:, 2:].max(axis=0).clip(0, size)
    middle, reach = (low + high) / 2, max(LEAST, SURROUNDINGS * float((high - low).max())) / 2
    (x1, y1), (x2, y2) = (middle - reach).clip(0, size), (middle + reach).clip(0, size)
    if x2 - x1 < 1 or y2 - y1 < 1:
        return 0.0, 0.0, float(width), float(height)
    return float(x1), float(y1), float(x2), float(y2)
