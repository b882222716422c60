"""Boxes drawn onto an image, at about its own size. `plots` draws overviews with axes and titles instead."""

import functools
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mgdet.evaluation.fonts import drawable
from mgdet.text import printable

COLORS = ("#ffb000", "#36c5f0", "#ff5c8a", "#7ee081", "#c79bff", "#ff8f45", "#f4f45a", "#4fe3c1")
"""By class."""
SMALLEST, LARGEST = 640, 1920
"""Bounds of the longer side of a picture: text is not readable in less, and nobody looks at more."""


def draw_boxes(
    image: Tensor, boxes: Sequence[Sequence[float]], labels: Sequence[int], texts: Sequence[str]
) -> Image.Image:
    """A picture of the image with its boxes and a text at each.

    Args:
        image: `[3, H, W]` uint8 RGB.
        boxes: `n` boxes xyxy in pixels of `image`, the most important first: it lies on top.
        labels: class of each, which decides its colour.
        texts: what stands at each.
    """
    _, height, width = image.shape
    longest = max(height, width)
    scale = min(max(longest, SMALLEST), LARGEST) / longest
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize(size, Image.Resampling.BICUBIC)
    pen, line = ImageDraw.Draw(picture), max(2, round(max(size) / 400))
    height_of_text = max(12, round(max(size) / 45))
    drawn = list(zip(boxes, labels, strict=True))
    for box, label in reversed(drawn):
        corners = [value * scale for value in box]
        pen.rectangle(_grown(corners, 1), outline="black", width=line + 2)
        pen.rectangle(corners, outline=COLORS[label % len(COLORS)], width=line)
    for (box, label), text in reversed(list(zip(drawn, texts, strict=True))):  # after all boxes: none crosses a text
        shown, file = drawable(text)
        font = _font(file, height_of_text)
        _write(pen, shown, (box[0] * scale, box[1] * scale), COLORS[label % len(COLORS)], font, size)
    return picture


def _write(
    pen: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    color: str,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    """Above the box's upper left corner, within the picture."""
    text = printable(text)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 4
    x = max(0, min(corner[0], size[0] - width))
    y = max(0, min(corner[1] - height, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=color)
    pen.text((x + 3 - left, y + 2 - top), text, fill="black", font=font)


def _grown(box: Sequence[float], by: float) -> list[float]:
    return [box[0] - by, box[1] - by, box[2] + by, box[3] + by]


@functools.cache
def _font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)
