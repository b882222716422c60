"""The detections of one image as a value of their own, and the images that can be given to a detector."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mgdet.data.choices import MAX_PIXELS
from mgdet.data.decode import decode_image, from_pillow
from mgdet.errors import DataError, MgdetError
from mgdet.files import read_regular
from mgdet.structures import Category, Detections

if TYPE_CHECKING:
    import supervision

ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | Tensor
"""A local image file, a Pillow image, a `[H, W, 3]` uint8 RGB array, or a `[3, H, W]` uint8 RGB tensor."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The `N` detections of one image, the best score first."""

    boxes: NDArray[np.float64]
    """`[N, 4]` (x1, y1, x2, y2) in pixels of the upright original, within its borders."""
    scores: NDArray[np.float64]
    """`[N]` in [0, 1]."""
    labels: NDArray[np.int64]
    """`[N]` positions in `classes`."""
    classes: tuple[Category, ...]
    """The classes of the detector, each with the `id` and `name` of its data set."""
    size: tuple[int, int]
    """Height and width of the upright original."""

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.classes[label].name for label in self.labels.tolist()]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """The detections in COCO's results format: boxes are (x, y, width, height), ids those of the data set."""
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": self.classes[label].id,
                "category_name": self.classes[label].name,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), score, label in rows
        ]

    def to_supervision(self) -> "supervision.Detections":
        """The detections for the package `supervision`, with `data["class_name"]` as its annotators expect.

        Raises:
            MgdetError: the package is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MgdetError(
                "to_supervision needs the package supervision: install it (pip install supervision)"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=np.str_)},
        )


def predictions(
    detections: Detections, sizes: Sequence[tuple[int, int]], classes: tuple[Category, ...], score: float
) -> list[Prediction]:
    """A value for each image of a batch.

    Args:
        detections: of `B` images, on the CPU.
        sizes: height and width of each of them.
        classes: in order of the label.
        score: detections below it are left out.
    """
    wanted = detections.valid & (detections.scores >= score)
    out = []
    for i, (height, width) in enumerate(sizes):
        boxes = detections.boxes[i][wanted[i]].double()
        # Scaling in float32 may end a rounding error beyond the border
        boxes = boxes.minimum(boxes.new_tensor([width, height, width, height]))
        scores, labels = detections.scores[i][wanted[i]].double(), detections.labels[i][wanted[i]]
        out.append(Prediction(boxes.numpy(), scores.numpy(), labels.numpy(), classes, (height, width)))
    return out


def pixels_of(image: ImageLike, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The `[3, H, W]` uint8 RGB pixels of an image, upright; a file may have at most `max_pixels`.

    Raises:
        DataError: a file or Pillow image that cannot be read, or an array or tensor of another shape or type.
    """
    if isinstance(image, Tensor):
        return _checked(image, "tensor", tuple(image.shape), len(image.shape) == 3 and image.shape[0] == 3)
    if isinstance(image, np.ndarray):
        fits = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() if fits else image
        return _checked(pixels, "array", image.shape, fits)
    if isinstance(image, Image.Image):
        try:
            data = _unread_file(image)
            return from_pillow(image) if data is None else decode_image(data, "the Pillow image", max_pixels)
        except (OSError, ValueError) as error:
            raise DataError(f"the Pillow image cannot be read: {error}") from error
    if isinstance(image, str | os.PathLike):
        try:
            return decode_image(read_regular(image), str(image), max_pixels)
        except OSError as error:
            raise DataError(f"{image}: cannot be read ({error}). Give the path of an image file.") from error
    raise DataError(f"an image is a {type(image).__name__}: {_ALLOWED}")


def _unread_file(image: Image.Image) -> bytes | None:
    """The whole file of an image that Pillow has opened and not decoded yet: Pillow takes damaged JPEGs for whole."""
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None) or image.tell() != 0:
        return None
    place = file.tell()
    file.seek(0)
    data: bytes = file.read()
    file.seek(place)
    return data


_ALLOWED = (
    "expected a file's path, a Pillow image, a NumPy array [height, width, 3] of uint8 in RGB order, or a torch tensor "
    "[3, height, width] of uint8 in RGB order"
)


def _checked(pixels: Any, kind: str, shape: tuple[int, ...], fits: bool) -> Tensor:
    """The pixels, if shape, type and size are those of an RGB image of bytes."""
    if not fits or pixels.dtype != torch.uint8:
        raise DataError(
            f"an image is a {kind} of shape {list(shape)} and type {str(pixels.dtype).removeprefix('torch.')}: "
            f"{_ALLOWED}. Scale floats to 0..255 first; OpenCV reads BGR: turn it with image[..., ::-1]"
        )
    if 0 in shape:
        raise DataError(f"an image is a {kind} of shape {list(shape)}: it has no pixels")
    return pixels.cpu()  # type: ignore[no-any-return]  # a tensor: its type was checked
