"""EXIF's orientation: how stored pixels, and boxes that refer to them, are turned upright.

The values 1 to 8 say where the stored picture's first row and first column are seen (EXIF 2.3, tag 0x0112).
"""

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
"""(height, width) in pixels."""


def is_turned(orientation: int) -> bool:
    """Whether the upright picture's width is the stored one's height."""
    return 5 <= orientation <= 8


def upright_pixels(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Stored pixels `[h, w, 3]` as they are seen upright. A value other than 2 to 8 leaves them alone."""
    if is_turned(orientation):
        pixels = pixels.transpose(1, 0, 2)  # rows become columns: 5; the others mirror this
    flip_vertically, flip_horizontally = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flip_vertically else 1, :: -1 if flip_horizontally else 1]


def upright_boxes(boxes: NDArray[np.float64], orientation: int, stored: Size) -> NDArray[np.float64]:
    """Boxes `[n, 4]` xyxy in pixels of the stored picture, in pixels of the upright one.

    Args:
        boxes: corners; x1 <= x2 and y1 <= y2 hold before and after.
        orientation: EXIF's.
        stored: size of the stored picture.
    """
    x1, y1, x2, y2 = boxes.T
    height, width = stored
    if is_turned(orientation):
        x1, y1, x2, y2, height, width = y1, x1, y2, x2, width, height
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return np.stack([x1, y1, x2, y2], axis=1)
