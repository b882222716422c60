"""Copy-paste of boxes: objects of another picture, with what is in their boxes (after Dwibedi et al., ICCV 2017).

Without masks the background within a box comes along, and a detector may learn the seam: it is off by default.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mgdet.boxes import box_area
from mgdet.data.augment.base import CROWD, Draw, Mixing, Picture
from mgdet.data.augment.mosaic import joined

TRIES = 20


class CopyPaste(Mixing):
    """Up to `most` objects of another picture at random places, where they cover little of the objects that are there.

    An object for which none of 20 places is free, or which is larger than the picture, is left out.
    """

    name: ClassVar[str] = "copy_paste"
    most: int = Field(default=3, ge=1, le=100, description="objects that are pasted, at most")
    covered: float = Field(
        default=0.1, ge=0, le=1, description="greatest share of the area of an object that a pasted one may cover"
    )

    def change(self, picture: Picture, draw: Draw) -> Picture:
        """Whole pixels are pasted, so that a box keeps its place in them."""
        rng, other = draw.rng, draw.other(draw.rng)
        objects = (other.labels != CROWD).nonzero()[:, 0]
        order = objects[torch.from_numpy(rng.permutation(len(objects)))][: int(rng.integers(1, self.most + 1))]
        image, (height, width) = picture.image.clone(), picture.size
        for index in order.tolist():
            box = other.boxes[index]
            x1, y1 = (int(v) for v in box[:2].floor())
            x2, y2 = (int(v) for v in box[2:].ceil())
            if x2 - x1 > width or y2 - y1 > height:
                continue
            places = rng.integers(0, [width - (x2 - x1) + 1, height - (y2 - y1) + 1], (TRIES, 2))
            for x, y in places.tolist():
                patch = picture.boxes.new_tensor([x, y, x + x2 - x1, y + y2 - y1])
                if bool((covered(picture.boxes, patch) <= self.covered).all()):
                    image[:, y : y + y2 - y1, x : x + x2 - x1] = other.image[:, y1:y2, x1:x2]
                    moved = box + box.new_tensor([x - x1, y - y1] * 2)
                    picture = joined(image, [picture, Picture(image, moved[None], other.labels[index][None])])
                    break
        return picture._replace(image=image)


def covered(boxes: Tensor, patch: Tensor) -> Tensor:
    """The share of the area of each box that the patch covers, `[n, 4] x [4] -> [n]`."""
    sides = (torch.minimum(boxes[:, 2:], patch[2:]) - torch.maximum(boxes[:, :2], patch[:2])).clamp(min=0)
    return sides.prod(dim=1) / box_area(boxes).clamp(min=1e-6)
