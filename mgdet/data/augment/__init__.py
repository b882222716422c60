"""Augmentations: one file for each, and a field of `AugmentConfig`."""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from mgdet.config_base import Config
from mgdet.data.augment.base import CROWD, Augmentation, Draw, Mixing, Picture
from mgdet.data.augment.copy_paste import CopyPaste
from mgdet.data.augment.crop import Crop
from mgdet.data.augment.expand import Expand
from mgdet.data.augment.mixup import Mixup
from mgdet.data.augment.mosaic import Mosaic
from mgdet.data.augment.photometric import Photometric
from mgdet.data.augment.rotate import Rotate

__all__ = ["CROWD", "AugmentConfig", "Augmentation", "Draw", "Mixing", "Picture"]


class AugmentConfig(Config):
    """Random changes of a picture before it is resized: every field is one, they follow each other in this order."""

    copy_paste: CopyPaste | None = Field(default=None, description="objects of another picture; null: none")
    mosaic: Mosaic | None = Field(default=None, description="four pictures in one; null: none")
    mixup: Mixup | None = Field(default=None, description="two pictures in one another; null: none")
    photometric: Photometric | None = Field(default=None, description="SSD's changes of colour; null: none")
    expand: Expand | None = Field(default=None, description="a larger canvas around the picture; null: none")
    crop: Crop | None = Field(default=None, description="SSD's crop by minimum IoU; null: none")
    rotate: Rotate | None = Field(default=None, description="quarter turns; null: none")

    def __call__(
        self,
        picture: Picture,
        *,
        seed: int,
        epoch: int,
        position: int,
        epochs: int | None = None,
        other: Callable[[np.random.Generator], Picture] | None = None,
    ) -> Picture:
        """The changed picture, a function of the picture, the other ones and the first three numbers.

        Args:
            picture: with its boxes in pixels of the image.
            seed: of the experiment.
            epoch: from 0.
            position: row of the picture in its split.
            epochs: of the whole training; None: it has no end.
            other: draws another picture of the split; without it a picture is its own other one.
        """
        for name, augmentation in self:
            if not isinstance(augmentation, Augmentation):
                continue
            if isinstance(augmentation, Mixing) and augmentation.is_closed(epoch, epochs):
                continue
            rng = np.random.default_rng([seed, epoch, position, zlib.crc32(name.encode())])
            picture = augmentation(picture, Draw(rng, other or partial(_itself, picture)))
        return picture

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], "AugmentConfig"], tuple[dict[str, Any]]]:
        """Loader processes get it by its fields: no module has the class to which plugins have added some."""
        return _of_fields, (dict(self),)


def _of_fields(fields: dict[str, Any]) -> AugmentConfig:
    config = AugmentConfig()
    config.__dict__.update(fields)
    return config


def _itself(picture: Picture, rng: np.random.Generator) -> Picture:
    return picture
