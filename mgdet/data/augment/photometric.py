"""Photometric distortion: random brightness, contrast, saturation and hue (Liu et al., SSD, ECCV 2016)."""

from typing import ClassVar

from pydantic import Field
from torchvision.transforms.v2 import functional as F

from mgdet.data.augment.base import Augmentation, Draw, Picture


class Photometric(Augmentation):
    """Random brightness, contrast, saturation and hue, each with the `probability`; contrast comes first or last."""

    name: ClassVar[str] = "photometric"
    brightness: float = Field(default=0.125, ge=0, le=1, description="factor drawn from [1 - x, 1 + x]")
    contrast: float = Field(default=0.5, ge=0, le=1, description="factor drawn from [1 - x, 1 + x]")
    saturation: float = Field(default=0.5, ge=0, le=1, description="factor drawn from [1 - x, 1 + x]")
    hue: float = Field(
        default=0.05, ge=0, le=0.5, description="shift drawn from [-x, x]; 0.5 is half the colour circle"
    )

    def __call__(self, picture: Picture, draw: Draw) -> Picture:
        """The picture; which of the four changes are made is drawn for each of them."""
        return self.change(picture, draw)

    def change(self, picture: Picture, draw: Draw) -> Picture:
        """The boxes stay."""
        rng, image = draw.rng, picture.image
        steps = [
            (F.adjust_brightness, rng.uniform(1 - self.brightness, 1 + self.brightness)),
            (F.adjust_contrast, rng.uniform(1 - self.contrast, 1 + self.contrast)),
            (F.adjust_saturation, rng.uniform(1 - self.saturation, 1 + self.saturation)),
            (F.adjust_hue, rng.uniform(-self.hue, self.hue)),
        ]
        if rng.random() < 0.5:
            steps.append(steps.pop(1))
        for (adjust, amount), chance in zip(steps, rng.random(len(steps)), strict=True):
            if chance < self.probability and amount != (0 if adjust is F.adjust_hue else 1):
                image = adjust(image, amount)
        return picture._replace(image=image)
