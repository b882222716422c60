"""The objects of an image as they are stored: boxes in pixels of the upright file, plausible areas, none twice."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from mgdet.data.choices import Choices
from mgdet.data.formats.base import AnnotatedImage, AnnotatedObject, DataFormat
from mgdet.data.frames import Frame, Pictured, frames_of, undecided
from mgdet.data.ledger import Ledger
from mgdet.data.readings import check_readings
from mgdet.data.verify import Source, Usable

BORDER_TOLERANCE = 1e-3
"""Pixels by which a box may cross the image's border before it is clipped: less is taken for rounding and kept."""
LARGEST_SHARE, LEAST_AREA, LEAST_BOX = 1.5, 1.0, 32.0
"""An area is plausible up to this share of its box (and 8 pixels more, for rasters of tiny objects). Below one pixel it
is not, in a box above this one."""

Fitted = list[tuple[NDArray[np.float64], AnnotatedObject]]
"""Corners and objects that are kept; an object whose area was replaced has none."""


def annotated_corners(data_format: DataFormat, image: AnnotatedImage, file: Usable) -> NDArray[np.float64]:
    """Corners `[n, 4]` of an image's boxes in the picture that they refer to."""
    size = image.size or file.size
    corners = [data_format.corners(thing.box, size) for thing in image.objects]
    return np.array(corners, dtype=np.float64).reshape(-1, 4)


def frames_of_split(source: Source, data_format: DataFormat, ledger: Ledger) -> list[Frame]:
    """The frame of each usable image, with what is remarkable about it noted."""
    usable = list(source.usable())
    pictured = [
        Pictured(image.size, file.stored, file.orientation, annotated_corners(data_format, image, file))
        for image, file in usable
    ]
    frames = frames_of(pictured)
    for (image, file), known, frame in zip(usable, pictured, frames, strict=True):
        height, width = file.size
        stated = f"annotated {image.size[1]} x {image.size[0]}" if image.size else ""
        if frame.orientation != 1:
            ledger.note("turned", image.file_name)
        elif undecided(known) and image.objects:
            ledger.note("undecided", image.file_name)
        if frame.size != frame.stored:
            ledger.note("rescaled", f"{image.file_name}: {width} x {height}, {stated}")
        if image.size is not None and image.size != file.size:
            ledger.counts["resized"] += 1
            if frame.orientation == 1 and frame.size == frame.stored:
                ledger.note("unmatched", f"{image.file_name}: {width} x {height}, {stated}")
    return frames


def check_units(
    source: Source, data_format: DataFormat, frames: Sequence[Frame], choices: Choices, ledger: Ledger
) -> list[str]:
    """See `check_readings`: refuse, or return warnings."""
    usable = list(zip(source.usable(), frames, strict=True))
    counts = [len(image.objects) for (image, _), _ in usable]
    if not sum(counts):
        return []
    boxes = chain.from_iterable(thing.box for (image, _), _ in usable for thing in image.objects)
    corners = np.concatenate([annotated_corners(data_format, image, file) for (image, file), _ in usable])
    sizes = np.repeat(np.array([frame.size[::-1] for _, frame in usable]), counts, axis=0)
    where = f"{source.content.annotations}, split {source.split!r}"
    return check_readings(
        where, np.fromiter(boxes, dtype=np.float64).reshape(-1, 4), corners, sizes, choices.accept_boxes
    )


def fit_objects(
    source: Source,
    image: AnnotatedImage,
    file: Usable,
    frame: Frame,
    data_format: DataFormat,
    choices: Choices,
    ledger: Ledger,
) -> Fitted:
    """The image's objects that are stored; what is dropped, cut or replaced is noted."""
    corners = annotated_corners(data_format, image, file)
    upright = frame.upright(corners)
    seen: set[tuple[object, ...]] = set()
    kept: Fitted = []
    for thing, annotated, box in zip(image.objects, corners, upright, strict=True):
        fitted = _fitted(thing, box, image, source.split, file, ledger)
        if fitted is None:
            continue
        key = (thing.category, thing.box, bool(thing.iscrowd))
        if key in seen:
            ledger.note("repeated_boxes", f"{image.file_name}: {thing.category} {list(thing.box)}")
            if not choices.keep_repeated:
                continue
        seen.add(key)
        if data_format.says_crowd_and_area:
            ledger.counts["filled_iscrowd"] += thing.iscrowd is None
            ledger.counts["filled_area"] += thing.area is None
        ledger.counts["filled_bbox"] += thing.from_mask
        kept.append((fitted, _with_plausible_area(thing, annotated, frame, image, ledger)))
    return kept


def _fitted(
    thing: AnnotatedObject,
    corners: NDArray[np.float64],
    image: AnnotatedImage,
    split: str,
    file: Usable,
    ledger: Ledger,
) -> NDArray[np.float64] | None:
    """The corners [x1, y1, x2, y2] of the object's box within the image; None, noted, if nothing is left."""
    if not (np.isfinite(corners).all() and corners[2] > corners[0] and corners[3] > corners[1]):
        ledger.drop("degenerate", split, image, thing, "has no area")
        return None
    height, width = file.size
    clipped = corners.clip(0, np.array([width, height] * 2, dtype=np.float64))
    if not (clipped[2:] - clipped[:2] > BORDER_TOLERANCE).all() and not np.array_equal(clipped, corners):
        ledger.drop("outside", split, image, thing, f"is outside the image of {width} x {height} pixels")
        return None
    if np.abs(clipped - corners).max() <= BORDER_TOLERANCE:
        return corners
    ledger.counts["clipped"] += 1
    return clipped


def _with_plausible_area(
    thing: AnnotatedObject, corners: NDArray[np.float64], frame: Frame, image: AnnotatedImage, ledger: Ledger
) -> AnnotatedObject:
    """The object with its area in pixels of the file, or without one where it cannot be the area of this box."""
    if thing.area is None:
        return thing
    box = float(np.prod(corners[2:] - corners[:2]))
    impossible = thing.area <= 0 or thing.area > LARGEST_SHARE * box + 8
    if impossible or (thing.area < LEAST_AREA and box > LEAST_BOX):
        ledger.note("replaced_area", f"{image.file_name}: area {thing.area:g} of a box of {box:g}")
        return thing._replace(area=None)
    x, y = frame.scale
    return thing if x == y == 1.0 else thing._replace(area=thing.area * x * y)
