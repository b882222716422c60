"""Expansion: the picture on a larger canvas, which makes objects smaller (Liu et al., SSD, ECCV 2016)."""

import math
from typing import ClassVar

from pydantic import Field

from mgdet.data.augment.base import LARGEST, Augmentation, Draw, Picture, canvas


class Expand(Augmentation):
    """The picture at a random place of a canvas that is up to `most` times as high and wide, in ImageNet's mean."""

    name: ClassVar[str] = "expand"
    most: float = Field(default=4.0, ge=1, le=16, description="greatest height and width of the canvas, in pictures")

    def change(self, picture: Picture, draw: Draw) -> Picture:
        """The canvas has at most `LARGEST` pixels, or those of the picture."""
        height, width = picture.size
        most = max(1.0, min(self.most, math.sqrt(LARGEST / (height * width))))
        ratio = draw.rng.uniform(1, most)
        tall, wide = max(height, int(height * ratio)), max(width, int(width * ratio))
        y, x = int(draw.rng.integers(tall - height + 1)), int(draw.rng.integers(wide - width + 1))
        image = canvas(tall, wide)
        image[:, y : y + height, x : x + width] = picture.image
        return picture._replace(image=image, boxes=picture.boxes + picture.boxes.new_tensor([x, y, x, y]))
