"""Pixels of more than 8 bits: which range they use, and how they are brought to 0..255.

A file stores samples in 16 or 32 bits, whatever its sensor gives; 12 bits are common. Taking the upper 8 of 16 would
leave a 12-bit picture nearly black. So a picture is divided by the power of two for the number of bits that it states
(PNG's sBIT, TIFF's BitsPerSample and MaxSampleValue), if its pixels fit in them; otherwise for the smallest of `DEPTHS`
that holds its brightest pixel. Pictures that use all 16 bits keep their upper 8.
"""

import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DEPTHS = (8, 10, 12, 14, 16, 20, 24, 32)
"""Bits per sample that sensors and their software use."""
DARK_SHARE, DARK_LEVEL = 0.999, 16
"""A picture is nearly black where this share of its 8-bit values lies below this level."""

DEEP_GREY = ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes with more than 8 bits."""
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


class Depth(NamedTuple):
    """How many bits per sample a picture of more than 8 has."""

    stored: int
    """Of the file: 16 or 32."""
    used: int
    """Which the pixels were taken to have."""
    dark: bool
    """Whether the picture is nearly black all the same."""


def to_eight_bits(samples: NDArray[Any], stored: int, stated: int | None) -> tuple[NDArray[np.uint8], Depth]:
    """Samples of more than 8 bits as bytes of the same shape.

    Args:
        samples: integers.
        stored: bits of a sample in the file.
        stated: bits that the file says to use, if it does.

    Raises:
        ValueError: a negative sample.
    """
    low, high = int(samples.min()), int(samples.max())
    if low < 0:
        raise ValueError(
            f"its pixels are signed (down to {low}), which has no agreed black: add an offset and save 8 or 16 bits"
        )
    used = stated if stated and 8 <= stated < stored and high < 2**stated else _holding(high)
    pixels = (samples >> (used - 8)).astype(np.uint8)
    return pixels, Depth(stored, used, bool((pixels < DARK_LEVEL).mean() >= DARK_SHARE))


def _holding(value: int) -> int:
    return next(bits for bits in DEPTHS if value < 2**bits)


def stated_bits(image: Image.Image, significant: int | None) -> int | None:
    """Bits per sample that a file says to use; `significant` is what a PNG's chunk sBIT says."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return significant
    bits = [int(b) for b in _tuple(tags.get(_BITS_PER_SAMPLE))]
    largest = [int(v).bit_length() for v in _tuple(tags.get(_MAX_SAMPLE_VALUE))]
    return max(largest or bits, default=None)


def _tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def has_deep_colour(image: Image.Image) -> bool:
    """Whether the opened, not yet loaded file stores colours in 16 bits, of which Pillow's modes keep the upper 8."""
    return _rawmode(image).endswith((";16B", ";16L", ";16N")) and image.mode not in DEEP_GREY


def choose_lower_bytes(image: Image.Image) -> bool:
    """Let the opened file of `has_deep_colour` load the lower 8 bits of its samples instead of the upper ones.

    Pillow takes one byte of each sample; the rawmode of the other byte order takes the other one. Returns False where
    there is no such rawmode.
    """
    rawmode = _rawmode(image)
    if not rawmode.startswith(("RGB;16", "RGBA;16", "RGBX;16", "CMYK;16")):
        return False
    swapped = rawmode[:-1] + _OTHER_BYTE[rawmode[-1]]
    image.tile = [_with_rawmode(tile, swapped) for tile in image.tile]
    return True


def _with_rawmode(tile: Any, rawmode: str) -> Any:
    args = (rawmode, *tile[3][1:]) if isinstance(tile[3], tuple) else rawmode
    return (
        tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)
    )  # a plain tuple before Pillow 11


def _rawmode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    args = tiles[0][3]
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""
