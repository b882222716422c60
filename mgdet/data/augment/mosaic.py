"""Mosaic: four pictures in one (Bochkovskiy et al., YOLOv4, arXiv 2004.10934, figure 3)."""

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from mgdet.boxes import box_area
from mgdet.data.augment.base import CROWD, Draw, Mixing, Picture, canvas


class Mosaic(Mixing):
    """The picture and three others in the four quarters of a canvas of its own size, which meet at a random point.

    Each is scaled to fit into `low` to `high` times the canvas and has a corner at that point. What reaches over the
    canvas is cut off.
    """

    name: ClassVar[str] = "mosaic"
    low: float = Field(default=0.5, ge=0.05, le=4, description="least size of a picture, share of the canvas")
    high: float = Field(default=1.0, ge=0.05, le=4, description="greatest size of a picture, share of the canvas")
    margin: float = Field(
        default=0.25, ge=0, le=0.5, description="least distance of the meeting point from the border, share of the side"
    )
    visible: float = Field(
        default=0.25, ge=0, le=1, description="objects of which a smaller share of the area is visible are left out"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}: swap them")
        return self

    def change(self, picture: Picture, draw: Draw) -> Picture:
        """One other picture at a time is in memory."""
        rng, (height, width) = draw.rng, picture.size
        x, y = (round(side * rng.uniform(self.margin, 1 - self.margin)) for side in (width, height))
        image, parts = canvas(height, width), []
        own = int(rng.integers(4))
        for quarter in range(4):
            part = picture if quarter == own else draw.other(rng)
            part = scaled_to_fit(part, height, width, rng.uniform(self.low, self.high))
            tall, wide = part.size
            left, upper = x - wide * (quarter % 2 == 0), y - tall * (quarter < 2)
            frame = max(0, left), max(0, upper), min(width, left + wide), min(height, upper + tall)
            x1, y1, x2, y2 = frame
            image[:, y1:y2, x1:x2] = part.image[:, y1 - upper : y2 - upper, x1 - left : x2 - left]
            moved = part._replace(boxes=part.boxes + part.boxes.new_tensor([left, upper, left, upper]))
            parts.append(moved.keep(self._visible(moved, frame)).within(frame))
        return joined(image, parts)

    def _visible(self, picture: Picture, frame: tuple[int, int, int, int]) -> Tensor:
        """Which boxes `[n]` are visible enough within `frame`; crowds always are."""
        low, high = picture.boxes.new_tensor(frame[:2] * 2), picture.boxes.new_tensor(frame[2:] * 2)
        share = box_area(picture.boxes.maximum(low).minimum(high)) / box_area(picture.boxes)
        return (share >= self.visible) | (picture.labels == CROWD)


def scaled_to_fit(picture: Picture, height: int, width: int, factor: float) -> Picture:
    """The picture with its aspect ratio, at `factor` times the largest size within `height x width`."""
    tall, wide = picture.size
    ratio = factor * min(height / tall, width / wide)
    size = max(1, round(tall * ratio)), max(1, round(wide * ratio))
    scale = picture.boxes.new_tensor([size[1] / wide, size[0] / tall] * 2)
    return picture._replace(image=F.resize(picture.image, list(size), antialias=True), boxes=picture.boxes * scale)


def joined(image: Tensor, parts: list[Picture]) -> Picture:
    """The boxes of all parts, which are in pixels of `image`."""
    boxes, labels = (t for t in zip(*((p.boxes, p.labels) for p in parts), strict=True))
    return Picture(image, torch.cat(boxes), torch.cat(labels))
