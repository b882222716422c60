"""Crops that overlap an object by a drawn minimum (Liu et al., SSD, ECCV 2016, section 2.2)."""

from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mgdet.boxes import pairwise_iou
from mgdet.data.augment.base import CROWD, Augmentation, Draw, Picture

TRIES = 50


class Crop(Augmentation):
    """A random part of the picture that overlaps some object by a minimum IoU, which is drawn from `overlaps`.

    The objects whose centres lie within it stay, cut at its border; of crowds all that lies within it stays. The
    picture stays whole where it has no object, and where none of 50 random parts fits. By default one picture in seven
    is left whole, as in SSD.
    """

    name: ClassVar[str] = "crop"
    probability: float = Field(default=0.857, ge=0, le=1, description="share of the samples that are changed")
    least: float = Field(
        default=0.3, gt=0, le=1, description="least height and width of the part, share of the picture's"
    )
    overlaps: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9), min_length=1, description="minimum IoUs, one of which is drawn"
    )

    def change(self, picture: Picture, draw: Draw) -> Picture:
        """The part has at least one object."""
        objects = picture.boxes[picture.labels != CROWD]
        overlap = self.overlaps[int(draw.rng.integers(len(self.overlaps)))]
        tried = candidates(draw.rng, *picture.size, self.least)
        fits = (pairwise_iou(tried, objects) >= overlap) & centre_within(objects, tried)
        chosen = fits.any(dim=1).nonzero()
        return cut(picture, tried[chosen[0, 0]]) if len(chosen) else picture


def candidates(rng: np.random.Generator, height: int, width: int, least: float) -> Tensor:
    """Random parts of a picture in whole pixels, `[n, 4]` xyxy with n <= `TRIES`: no side is twice the other."""
    sizes = np.maximum(1, (rng.uniform(least, 1, (TRIES, 2)) * [width, height]).astype(np.int64))
    corners = rng.integers(0, np.array([width, height]) - sizes + 1)
    shaped = (sizes.max(axis=1) <= 2 * sizes.min(axis=1)) | (sizes == [width, height]).all(axis=1)
    return torch.from_numpy(np.concatenate([corners, corners + sizes], axis=1)[shaped]).float()


def centre_within(boxes: Tensor, frames: Tensor) -> Tensor:
    """Whether the centre of each box lies in each frame, `[n, 4] x [k, 4] -> [k, n]`."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres > frames[:, None, :2]) & (centres < frames[:, None, 2:])).all(dim=2)


def cut(picture: Picture, frame: Tensor) -> Picture:
    """The part of the picture within `frame`, whole pixels xyxy."""
    x1, y1, x2, y2 = (int(v) for v in frame)
    kept = picture.keep(centre_within(picture.boxes, frame[None])[0] | (picture.labels == CROWD))
    kept = kept.within((x1, y1, x2, y2))
    return Picture(kept.image[:, y1:y2, x1:x2], kept.boxes - kept.boxes.new_tensor([x1, y1, x1, y1]), kept.labels)
