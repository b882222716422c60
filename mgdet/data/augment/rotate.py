"""Quarter turns: for pictures without an upper side, such as those of microscopes and aeroplanes."""

from typing import ClassVar

import torch

from mgdet.data.augment.base import Augmentation, Draw, Picture


class Rotate(Augmentation):
    """One, two or three quarter turns, each as likely."""

    name: ClassVar[str] = "rotate"

    def change(self, picture: Picture, draw: Draw) -> Picture:
        """No pixel is interpolated, and no box loses accuracy."""
        return turned(picture, int(draw.rng.integers(1, 4)))


def turned(picture: Picture, quarters: int) -> Picture:
    """The picture after this many quarter turns to the left."""
    boxes = picture.boxes
    height, width = picture.size
    for _ in range(quarters % 4):
        x1, y1, x2, y2 = boxes.unbind(dim=1)
        boxes = torch.stack([y1, width - x2, y2, width - x1], dim=1)
        height, width = width, height
    return Picture(torch.rot90(picture.image, quarters, (1, 2)).contiguous(), boxes, picture.labels)
