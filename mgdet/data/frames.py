"""The picture that an image's boxes refer to, where the annotated size shows that it is not the file as it is upright.

Two things are common. A file carries an EXIF orientation, and its boxes refer to the pixels as they are stored. Or
files were made smaller (or larger) and the annotations were not. In both cases the annotated size says so, and the
boxes can be brought to the upright file. Where the size alone proves nothing, the other images of the split decide.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mgdet.data.orientation import Size, is_turned, upright_boxes

CLOSE = 2
"""Pixels by which an annotated size may differ and still be taken for that of the file."""

Boxes = NDArray[np.float64]  # [n, 4] xyxy


class Frame(NamedTuple):
    """How to bring boxes to the upright file."""

    size: Size
    """The size of the picture that the boxes refer to."""
    stored: Size
    """The size of the file before it is turned."""
    orientation: int = 1
    """By which the boxes are turned; 1: they are upright already."""

    @property
    def scale(self) -> tuple[float, float]:
        """Factors (x, y) from the boxes' picture to the file."""
        return self.stored[1] / self.size[1], self.stored[0] / self.size[0]

    def upright(self, boxes: Boxes) -> Boxes:
        """Boxes `[n, 4]` xyxy of this frame in pixels of the upright file."""
        if self.size != self.stored:
            boxes = boxes * np.array(self.scale * 2)
        return upright_boxes(boxes, self.orientation, self.stored) if self.orientation != 1 else boxes


class Pictured(NamedTuple):
    """What is known of an image and its boxes."""

    stated: Size | None
    """The annotated size."""
    stored: Size
    orientation: int
    boxes: Boxes
    """Corners, as they are annotated."""

    @property
    def upright(self) -> Size:
        """Size of the file when it is seen upright."""
        return self.stored[::-1] if is_turned(self.orientation) else self.stored


def frames_of(images: Sequence[Pictured]) -> list[Frame]:
    """The frame of each image of a split."""
    sizes_of_files = _stored_frame_is_proven(images)
    scaled = [i for i in images if i.stated and not _close(i.stated, i.upright) and not _close(i.stated, i.stored)]
    same_shape = [i for i in scaled if _same_shape(i.stated, i.upright) or _same_shape(i.stated, i.stored)]
    other_shape = [i for i in scaled if not (_same_shape(i.stated, i.upright) or _same_shape(i.stated, i.stored))]
    rescale = not any(_exceed(i.boxes, i.stated) and not _exceed(i.boxes, i.upright) for i in same_shape)
    stretch = any(_exceed(i.boxes, i.upright) for i in other_shape) and not any(
        _exceed(i.boxes, i.stated) for i in other_shape
    )
    return [_frame(image, sizes_of_files, rescale, stretch) for image in images]


def _frame(image: Pictured, stored_frame: bool, rescale: bool, stretch: bool) -> Frame:
    stated, upright, stored = image.stated, image.upright, image.stored
    here = Frame(upright, upright)
    if stated is None:
        return here
    if _close(stated, upright):
        undecided = image.orientation != 1 and _close(stated, stored)
        return Frame(stored, stored, image.orientation) if undecided and stored_frame else here
    if is_turned(image.orientation) and _close(stated, stored):
        return Frame(stored, stored, image.orientation)
    if _same_shape(stated, upright):
        return Frame(stated, upright) if rescale else here
    if is_turned(image.orientation) and _same_shape(stated, stored):
        return Frame(stated, stored, image.orientation) if rescale else here
    return Frame(stated, upright) if stretch else here


def undecided(image: Pictured) -> bool:
    """Whether the annotated size fits the stored and the upright picture alike, although they differ."""
    return image.orientation != 1 and (
        image.stated is None or (_close(image.stated, image.upright) and _close(image.stated, image.stored))
    )


def _stored_frame_is_proven(images: Sequence[Pictured]) -> bool:
    """Whether some image of the split states the stored size where the upright one differs, and none the reverse."""
    turned = [i for i in images if i.stated and is_turned(i.orientation) and not _close(i.stored, i.upright)]
    return any(_close(i.stated, i.stored) for i in turned) and not any(_close(i.stated, i.upright) for i in turned)


def _close(a: Size | None, b: Size) -> bool:
    return a is not None and abs(a[0] - b[0]) <= CLOSE and abs(a[1] - b[1]) <= CLOSE


def _same_shape(a: Size | None, b: Size) -> bool:
    """Whether one size is the other times a factor, up to the rounding to whole pixels."""
    if a is None or min(a) <= 0:
        return False
    (h, w), (height, width) = (a, b) if a[0] * a[1] >= b[0] * b[1] else (b, a)
    return abs(w * height - h * width) <= max(h, w)


def _exceed(boxes: Boxes, size: Size | None) -> bool:
    """Whether some box reaches clearly beyond a picture of this size."""
    if size is None or not len(boxes):
        return False
    limit = np.array([size[1], size[0]] * 2, dtype=np.float64)
    return bool((boxes > limit * 1.01 + CLOSE).any())
