"""Mixup: two pictures in one another (Zhang et al., Bag of Freebies, arXiv 1902.04103, section 3.1)."""

from typing import ClassVar

import torch
from pydantic import Field

from mgdet.data.augment.base import Draw, Mixing, Picture, canvas
from mgdet.data.augment.mosaic import joined


class Mixup(Mixing):
    """The weighted mean of the picture and another one, upper left corner on upper left corner, with the boxes of both.

    The weight is drawn from a Beta distribution. Every object counts in full, unlike in the paper.
    """

    name: ClassVar[str] = "mixup"
    alpha: float = Field(
        default=8.0,
        gt=0,
        le=1000,
        description="both parameters of the Beta distribution; the larger, the nearer to 1/2",
    )

    def change(self, picture: Picture, draw: Draw) -> Picture:
        """The image is as high and wide as the larger of both."""
        other, share = draw.other(draw.rng), float(draw.rng.beta(self.alpha, self.alpha))
        height, width = (max(sides) for sides in zip(picture.size, other.size, strict=True))
        first, second = (_on_canvas(p, height, width) for p in (picture, other))
        mixed = torch.lerp(first.float(), second.float(), share).round().to(torch.uint8)
        return joined(mixed, [picture, other])


def _on_canvas(picture: Picture, height: int, width: int) -> torch.Tensor:
    if picture.size == (height, width):
        return picture.image
    image = canvas(height, width)
    image[:, : picture.size[0], : picture.size[1]] = picture.image
    return image
