"""Whether boxes are in the unit and order that their format says: looked at for a whole split.

A single box cannot tell, many can: boxes of another unit or order lie within one pixel, or leave their images, and fit
when the four numbers are read otherwise.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mgdet.errors import DataError

Numbers = NDArray[np.float64]  # [n, 4]

MISFITS = 0.1
"""Share of boxes outside of their image above which other readings are tried."""
EXPLAINED = 0.01
"""Share of boxes that may stay outside under a reading that explains the others."""
FEW = 3
"""So many boxes prove nothing."""
MANY = 20
"""So many boxes somewhere reach beyond the middle of their image."""

_READINGS: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "x, y, width, height": lambda v, size: _sized(v),
    "x1, y1, x2, y2 (corners)": lambda v, size: v,
    "centre x, centre y, width, height": lambda v, size: _centred(v),
    "y, x, height, width": lambda v, size: _sized(v[:, [1, 0, 3, 2]]),
    "y1, x1, y2, x2 (corners)": lambda v, size: v[:, [1, 0, 3, 2]],
    "x, y, width, height in percent of the image": lambda v, size: _sized(v * np.tile(size, 2) / 100),
    "x, y, width, height in thousandths of the image": lambda v, size: _sized(v * np.tile(size, 2) / 1000),
    "x1, y1, x2, y2 in percent of the image": lambda v, size: v * np.tile(size, 2) / 100,
    "x1, y1, x2, y2 in thousandths of the image": lambda v, size: v * np.tile(size, 2) / 1000,
}


def check_readings(where: str, numbers: Numbers, corners: Numbers, sizes: Numbers, accept: bool) -> list[str]:
    """Refuse the boxes of a split that are certainly in another unit or order; what is only likely is returned.

    Args:
        where: how messages name the annotations.
        numbers: as they are annotated, `[n, 4]`.
        corners: what the format makes of them, xyxy in pixels of the annotated picture, `[n, 4]`.
        sizes: (width, height) of the annotated picture of each box, `[n, 2]`.
        accept: say what would be refused instead.

    Raises:
        DataError: the message names the other reading, its share of the boxes and the remedy.
    """
    finite = np.isfinite(numbers).all(axis=1) & np.isfinite(corners).all(axis=1)
    if not finite.all():
        numbers, corners, sizes = numbers[finite], corners[finite], sizes[finite]
    certain, likely = _fractions(numbers, corners), _cramped(corners, sizes)
    if certain is None:
        certain = _other_reading(numbers, corners, sizes)
    if isinstance(certain, str):
        if not accept:
            raise DataError(f"{where}: {certain} Convert them, or pass --accept-boxes if they are right. {_NOTHING}")
        return [f"{where}: {certain}"]
    return [f"{where}: {text}" for text in (_some_fractions(numbers, corners), likely) if text]


_NOTHING = "Nothing was written."


def within_a_pixel(numbers: Numbers, corners: Numbers) -> NDArray[np.bool_]:
    """Which boxes lie within one pixel of the upper left corner, as boxes in fractions of the image do."""
    small = (np.abs(numbers).max(axis=1, initial=0) <= 1.001) & (np.abs(corners).max(axis=1, initial=0) <= 2.002)
    return np.asarray(small)


def _fractions(numbers: Numbers, corners: Numbers) -> str | None:
    within = within_a_pixel(numbers, corners)
    if not len(within) or within.mean() < 0.5:
        return None
    count = "all" if within.all() else f"{int(within.sum())} of"
    return (
        f"{count} {len(within)} boxes lie within 1 pixel of the upper left corner: are they fractions of the image? "
        "Boxes are in pixels: multiply by width and height."
    )


def _some_fractions(numbers: Numbers, corners: Numbers) -> str | None:
    within = int(within_a_pixel(numbers, corners).sum())
    if not within:
        return None
    return (
        f"{within} of {len(numbers)} boxes lie within 1 pixel of the upper left corner: are they fractions of the "
        "image? Boxes are in pixels."
    )


def _other_reading(numbers: Numbers, corners: Numbers, sizes: Numbers) -> str | None:
    misfit = ~_fit(corners, sizes)
    if misfit.sum() < FEW or misfit.mean() <= MISFITS:
        return None
    for name, read in _READINGS.items():
        other = read(numbers, sizes)
        if not np.allclose(other, corners) and (~_fit(other, sizes)).mean() <= EXPLAINED:
            return (
                f"{int(misfit.sum())} of {len(misfit)} boxes ({misfit.mean():.0%}) would be cut or dropped, and read "
                f"as {name} they fit into their images."
            )
    return None


def _cramped(corners: Numbers, sizes: Numbers) -> str | None:
    if len(corners) < MANY:
        return None
    reach = (corners[:, 2:] / sizes).max(axis=0)
    if (reach >= 0.5).any() or (reach <= 0.0).any():
        return None
    return (
        f"no box of {len(corners)} reaches beyond {reach[0]:.0%} of its image's width and {reach[1]:.0%} of its "
        "height: are they in another unit, such as percent, or of images of another size?"
    )


def _fit(corners: Numbers, sizes: Numbers) -> NDArray[np.bool_]:
    """Whether a box has an area and lies in its image, give or take two pixels or a hundredth."""
    slack = np.maximum(2.0, 0.01 * sizes)
    inside = (corners[:, :2] >= -slack).all(axis=1) & (corners[:, 2:] <= sizes + slack).all(axis=1)
    return np.asarray(inside & (corners[:, 2:] > corners[:, :2]).all(axis=1))


def _sized(v: Numbers) -> Numbers:
    return np.concatenate([v[:, :2], v[:, :2] + v[:, 2:]], axis=1)


def _centred(v: Numbers) -> Numbers:
    return np.concatenate([v[:, :2] - v[:, 2:] / 2, v[:, :2] + v[:, 2:] / 2], axis=1)
