"""What an augmentation is: a random change of an image and its boxes, in pixels of the file, before it is resized."""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mgdet.config_base import Config

CROWD = -1
"""The label of a crowd, a region in which nothing is learned, on its way to the network: it moves as objects move."""
FILL = (124, 116, 104)
"""RGB of places without a picture: ImageNet's mean, which the network's normalisation makes nearly 0."""
LARGEST = 2**26
"""Pixels to which an augmentation enlarges a picture, at most: 192 MiB."""


class Picture(NamedTuple):
    """An image with its `n` boxes."""

    image: Tensor  # [3, H, W] uint8 RGB
    boxes: Tensor  # [n, 4] float32 xyxy pixels of `image`
    labels: Tensor  # [n] int64, `CROWD` for crowds

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[1], self.image.shape[2]

    def keep(self, chosen: Tensor) -> "Picture":
        """The same image with some of its boxes, by a mask `[n]`."""
        if bool(chosen.all()):
            return self
        return self._replace(boxes=self.boxes[chosen], labels=self.labels[chosen])

    def within(self, frame: tuple[float, float, float, float]) -> "Picture":
        """The same image with its boxes cut at `frame` (x1, y1, x2, y2); those that lie outside are left out."""
        x1, y1, x2, y2 = frame
        low, high = self.boxes.new_tensor([x1, y1, x1, y1]), self.boxes.new_tensor([x2, y2, x2, y2])
        boxes = self.boxes.maximum(low).minimum(high)
        return self._replace(boxes=boxes).keep((boxes[:, 2:] > boxes[:, :2]).all(dim=1))


class Draw(NamedTuple):
    """What an augmentation draws from; the same for a sample whatever was drawn before."""

    rng: np.random.Generator
    """Its own random numbers for this sample."""
    other: Callable[[np.random.Generator], Picture]
    """Another picture of the split, as it is in its file."""


class Augmentation(Config):
    """A random change of a picture: its strengths, and how it is made.

    A sample is changed with the `probability`, independently of other augmentations. What is drawn depends on the seed,
    the epoch, the image and the augmentation's key alone.
    """

    probability: float = Field(default=0.5, ge=0, le=1, description="share of the samples that are changed")

    def __call__(self, picture: Picture, draw: Draw) -> Picture:
        """The picture, changed with the `probability`."""
        return self.change(picture, draw) if draw.rng.random() < self.probability else picture

    @abstractmethod
    def change(self, picture: Picture, draw: Draw) -> Picture:
        """The changed picture; `picture` itself stays as it is. Boxes lie within the image that is returned."""


class Mixing(Augmentation):
    """An augmentation that takes other pictures of the split, and ends before the training does."""

    closing_epochs: int = Field(
        default=1,
        ge=0,
        le=10**9,
        description="last epochs of the training in which it is off, so that the network ends on pictures as they are",
    )

    def is_closed(self, epoch: int, epochs: int | None) -> bool:
        """Whether it is off in `epoch` (from 0) of a training of `epochs`; None: a training without an end."""
        return epochs is not None and epoch >= epochs - self.closing_epochs


def canvas(height: int, width: int) -> Tensor:
    """An image `[3, height, width]` of `FILL`."""
    return torch.tensor(FILL, dtype=torch.uint8)[:, None, None].repeat(1, height, width)
