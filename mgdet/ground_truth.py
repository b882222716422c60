"""The annotations of a split: what data sets give and evaluators take."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgdet.errors import DataError
from mgdet.structures import Category
from mgdet.text import first_of


@dataclass(frozen=True)
class GroundTruth:
    """The annotated objects of a split, `N` images and `M` objects in flat arrays (crowds included, degenerate not).

    Objects may stand in any order. Boxes are xyxy in pixels of the original image file, areas in square pixels (of the
    mask where the source has one: COCO's size ranges are defined by it, not by the box).
    """

    image_ids: NDArray[np.int64]  # [N] the source's own ids: any order, gaps allowed, unique
    heights: NDArray[np.int64]  # [N] pixels
    widths: NDArray[np.int64]  # [N] pixels
    box_image: NDArray[np.int64]  # [M] row of the image, 0..N-1
    boxes: NDArray[np.float64]  # [M, 4]
    labels: NDArray[np.int64]  # [M] contiguous class, position in `categories`
    iscrowd: NDArray[np.bool_]  # [M]
    area: NDArray[np.float64]  # [M]
    categories: tuple[Category, ...]
    tiles: "Tiles | None" = None
    """Where these images are all tiles of larger pictures: those, by which AP is computed."""

    def __post_init__(self) -> None:
        """Refuse arrays that contradict each other. Raises DataError."""
        n, m, c = len(self.image_ids), len(self.box_image), len(self.categories)
        require_lengths("GroundTruth", n, heights=self.heights, widths=self.widths)
        require_lengths("GroundTruth", m, boxes=self.boxes, labels=self.labels, iscrowd=self.iscrowd, area=self.area)
        require_range("GroundTruth.box_image", self.box_image, n, "images")
        require_range("GroundTruth.labels", self.labels, c, "categories")
        for name, ids in (("image ids", self.image_ids.tolist()), ("category ids", [k.id for k in self.categories])):
            if len(set(ids)) != len(ids):
                repeated = first_of([i for i, n in Counter(ids).items() if n > 1], 5)
                raise DataError(f"the {name} of the ground truth are not unique ({repeated} repeat); number them anew")

    def subset(self, positions: NDArray[np.int64]) -> "GroundTruth":
        """The ground truth of some images only, which become rows 0, 1, ... in the given order."""
        row = np.full(len(self.image_ids), -1)
        row[positions] = np.arange(len(positions))
        chosen = row[self.box_image] >= 0
        return GroundTruth(
            self.image_ids[positions],
            self.heights[positions],
            self.widths[positions],
            row[self.box_image[chosen]],
            self.boxes[chosen],
            self.labels[chosen],
            self.iscrowd[chosen],
            self.area[chosen],
            self.categories,
        )


@dataclass(frozen=True)
class Tiles:
    """The larger pictures of which the `N` images of a ground truth are the tiles."""

    whole: GroundTruth
    picture: NDArray[np.int64]  # [N] row of the picture in `whole`
    frames: NDArray[np.int64]  # [N, 4] xyxy of the tile in pixels of the picture


def require_lengths(owner: str, length: int, **arrays: NDArray[Any]) -> None:
    """Check that all arrays have `length` rows. Raises `DataError`."""
    for name, array in arrays.items():
        if len(array) != length:
            raise DataError(f"{owner}.{name} has {len(array)} rows where {length} are expected; pass arrays that match")


def require_range(name: str, values: NDArray[np.int64], end: int, what: str) -> None:
    """Check that all values are in 0..end-1. Raises `DataError`."""
    if len(values) and (values.min() < 0 or values.max() >= end):
        raise DataError(
            f"{name} runs from {values.min()} to {values.max()}, but there are {end} {what} (allowed: 0 to {end - 1}); "
            "was the detector trained on other data?"
        )
