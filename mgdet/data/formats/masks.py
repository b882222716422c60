"""The bounds of COCO's segmentations: polygons, and run-length encoded masks (RLE) in both of their spellings."""

import math
from collections.abc import Sequence
from typing import Any

Bounds = tuple[float, float, float, float]
"""x, y, width, height in pixels."""


def mask_bounds(segmentation: Any) -> Bounds | None:
    """The smallest box around a segmentation; None where it is none, is malformed, or has no area."""
    try:
        if isinstance(segmentation, dict):
            height, width = map(int, segmentation["size"])
            bounds = _rle_bounds(segmentation["counts"], height, width)
        else:
            bounds = _polygon_bounds(segmentation)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None
    return bounds if bounds and bounds[2] > 0 and bounds[3] > 0 and all(map(math.isfinite, bounds)) else None


def mask_size(segmentation: Any) -> tuple[int, int] | None:
    """(height, width) of the image that a run-length encoded mask is of; None for polygons."""
    return (int(segmentation["size"][0]), int(segmentation["size"][1])) if isinstance(segmentation, dict) else None


def _polygon_bounds(segmentation: Any) -> Bounds | None:
    """Of one or several polygons: lists [x1, y1, x2, y2, ...], or a list of points [x, y]."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    values = [[float(v) for v in polygon] for polygon in polygons]
    xs = [x for polygon in values for x in polygon[0::2]]
    ys = [y for polygon in values for y in polygon[1::2]]
    if len(xs) != len(ys) or len(xs) < 3:
        return None
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _rle_bounds(counts: str | Sequence[int], height: int, width: int) -> Bounds | None:
    """Of a mask of this size whose pixels are counted column by column: runs of 0 and 1 in turn, beginning with 0.

    Runs that together are not the mask were damaged, or cut, or are of another size: they have no bounds.
    """
    runs = _decompressed(counts) if isinstance(counts, str) else [int(n) for n in counts]
    if height <= 0 or any(n < 0 for n in runs) or sum(runs) != height * width:
        return None
    left, top, right, bottom, at = math.inf, math.inf, -math.inf, -math.inf, 0
    for index, length in enumerate(runs):
        if index % 2 and length:
            last = at + length - 1
            first_column, last_column = at // height, last // height
            left, right = min(left, first_column), max(right, last_column + 1)
            spans = first_column != last_column  # then it reaches the bottom of a column and the top of the next
            top = min(top, 0 if spans else at % height)
            bottom = max(bottom, height if spans else last % height + 1)
        at += length
    return None if right < left else (float(left), float(top), float(right - left), float(bottom - top))


def _decompressed(text: str) -> list[int]:
    """The runs of COCO's compressed RLE.

    Each character carries five bits, the lowest first, and in the sixth whether more follow; a number's last character
    carries its sign in the fifth bit. From the fourth number on only the difference to the last but one is stored.
    Raises `ValueError` for any other character, and where the last number has no end.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} is no character of a compressed RLE")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("the last number has no end")
    return runs
