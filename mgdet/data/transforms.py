"""Resizing and augmentation of an image and its boxes, on uint8 pixels with torchvision's transforms.v2.

Every random number of a training sample comes from (seed, epoch, position) alone, so a sample does not depend on the
loader's workers, on the rank that draws it or on what was drawn before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mgdet.config_base import Config

Side: TypeAlias = Annotated[int, Field(gt=0, le=16_384)]
"""A length of an image, pixels."""


class FixedSize(Config):
    """Every image becomes exactly `height x width`; its aspect ratio is not kept. Batches need no padding."""

    name: Literal["fixed"] = "fixed"
    height: Side = Field(description="height of the network's input, pixels")
    width: Side = Field(description="width of the network's input, pixels")

    def target(self, height: int, width: int, scale: float = 1.0, train: bool = False) -> tuple[int, int]:
        """(height, width) of the network input for an image of `height x width`, times `scale`."""
        return _rounded(self.height * scale, self.width * scale)

    def smallest(self) -> tuple[int, int]:
        """Lower bound of (height, width) over all images; scale jitter cuts or pads to this size."""
        return self.height, self.width


class LongestEdge(Config):
    """The largest size within `height x width` that keeps the aspect ratio."""

    name: Literal["longest_edge"] = "longest_edge"
    height: Side = Field(description="greatest height of the network's input, pixels")
    width: Side = Field(description="greatest width of the network's input, pixels")

    def target(self, height: int, width: int, scale: float = 1.0, train: bool = False) -> tuple[int, int]:
        """(height, width) of the network input for an image of `height x width`, times `scale`."""
        ratio = scale * min(self.height / height, self.width / width)
        return _rounded(height * ratio, width * ratio)

    def smallest(self) -> tuple[int, int]:
        """Lower bound of (height, width) over all images: the long side of a thin one may be either."""
        return (self.height, 1) if self.height < self.width else (1, self.width)


class ShortestEdge(Config):
    """The shortest edge becomes one of `sizes`, less where the longest would exceed `longest`; keeps the aspect ratio.

    Training draws one of the sizes for each image, evaluation takes the largest.
    """

    name: Literal["shortest_edge"] = "shortest_edge"
    sizes: tuple[Side, ...] = Field(
        default=(800,), min_length=1, description="lengths of the shortest edge, pixels; evaluation takes the largest"
    )
    longest: Side = Field(default=1333, description="bound on the longest edge, pixels")

    def target(self, height: int, width: int, scale: float = 1.0, train: bool = False) -> tuple[int, int]:
        """(height, width) of the network input for an image of `height x width`; draws when training."""
        index = int(torch.randint(len(self.sizes), ())) if train and len(self.sizes) > 1 else -1
        shortest = self.sizes[index] if train else max(self.sizes)
        ratio = min(shortest / min(height, width), self.longest / max(height, width))
        return _rounded(height * ratio, width * ratio)

    def smallest(self) -> tuple[int, int]:
        """Lower bound of (height, width) over all images: a thin one is bounded by its longest edge."""
        shortest = min(self.sizes)
        return (1, self.longest) if self.longest <= shortest else (shortest, shortest)


Resize = Annotated[FixedSize | LongestEdge | ShortestEdge, Field(discriminator="name")]


class ColorJitter(Config):
    """Strengths as in `torchvision.transforms.v2.ColorJitter`; 0 leaves a property alone."""

    brightness: float = Field(default=0.2, ge=0, le=100, description="factor drawn from [1 - x, 1 + x]")
    contrast: float = Field(default=0.2, ge=0, le=100, description="factor drawn from [1 - x, 1 + x]")
    saturation: float = Field(default=0.2, ge=0, le=100, description="factor drawn from [1 - x, 1 + x]")
    hue: float = Field(default=0.0, ge=0, le=0.5, description="shift drawn from [-x, x]; 0.5 is half the colour circle")


class ScaleJitter(Config):
    """Large-scale jitter: the size is multiplied by a factor of `low` to `high`, then cut or padded to `resize`."""

    low: float = Field(default=0.5, ge=0.01, le=16, description="least factor of the size")
    high: float = Field(default=1.5, ge=0.01, le=16, description="greatest factor of the size")

    @model_validator(mode="after")
    def _ordered(self) -> "ScaleJitter":
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}: swap them")
        return self


class TransformConfig(Config):
    """What happens to an image before the network. `resize` holds at training and evaluation, the rest at training."""

    resize: Resize = Field(
        default=FixedSize(height=320, width=320), description="how an image gets the size of the network's input"
    )
    hflip: float = Field(default=0.5, ge=0, le=1, description="probability of a flip from left to right")
    vflip: float = Field(default=0.0, ge=0, le=1, description="probability of a flip upside down")
    color: ColorJitter | None = Field(default=None, description="random changes of colour; null: none")
    scale_jitter: ScaleJitter | None = Field(default=None, description="random changes of size; null: none")
    min_box_size: float = Field(
        default=1.0,
        ge=0,
        le=16_384,
        description="boxes narrower or lower after augmentation are dropped, pixels of the network's input",
    )

    @model_validator(mode="after")
    def _jitter_needs_a_canvas(self) -> "TransformConfig":
        if self.scale_jitter is not None and isinstance(self.resize, ShortestEdge):
            raise ValueError(
                "scale_jitter needs an exact size to cut or pad to: use resize.name=fixed or longest_edge, "
                "or with shortest_edge give several resize.sizes instead"
            )
        return self

    def largest_input(self, height: int, width: int) -> tuple[int, int]:
        """The largest (height, width) at which training may see an image of `height x width`."""
        high = 1.0 if self.scale_jitter is None else max(1.0, self.scale_jitter.high)
        return self.resize.target(height, width, high)


def least_side(config: TransformConfig) -> float:
    """The width and height below which training drops a box, pixels of the network's input."""
    return max(config.min_box_size, 1e-3)


class Transformed(NamedTuple):
    """An image and its `n` boxes as the network sees them."""

    image: Tensor  # [3, h, w] uint8
    boxes: Tensor  # [n, 4] float32 xyxy pixels of `image`
    labels: Tensor  # [n] int64


class EvalTransform:
    """The transform of evaluation and prediction: it only resizes, and drops no box."""

    def __init__(self, config: TransformConfig) -> None:
        self.config = config

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor) -> Transformed:
        """Transform an `[3, H, W]` uint8 image with its `[n, 4]` boxes (pixels) and `[n]` labels."""
        height, width = image.shape[-2:]
        size = self.config.resize.target(height, width)
        image, tv_boxes = F.resize(image, list(size), antialias=True), _as_tv_boxes(boxes, height, width)
        return Transformed(image, _plain(F.resize(tv_boxes, list(size))), labels)


class TrainTransform:
    """The transform of training: it resizes and augments, as a pure function of input, `seed`, `epoch`, `position`."""

    def __init__(self, config: TransformConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        steps: list[v2.Transform] = [_RandomSize(config)]  # first, because the other steps then have fewer pixels
        if config.scale_jitter is not None and not isinstance(config.resize, ShortestEdge):
            canvas = (config.resize.height, config.resize.width)
            steps.append(v2.RandomCrop(canvas, pad_if_needed=True))
        if config.hflip:
            steps.append(v2.RandomHorizontalFlip(config.hflip))
        if config.vflip:
            steps.append(v2.RandomVerticalFlip(config.vflip))
        if config.color is not None:
            steps.append(v2.ColorJitter(**config.color.model_dump()))
        steps.append(v2.ClampBoundingBoxes())
        self._steps = v2.Compose(steps)

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, *, epoch: int, position: int) -> Transformed:
        """Augment an `[3, H, W]` uint8 image with its `[n, 4]` boxes (pixels) and `[n]` labels."""
        height, width = image.shape[-2:]
        with seeded(self.seed, epoch, position):
            out, tv_boxes = self._steps(tv_tensors.Image(image), _as_tv_boxes(boxes, height, width))
        kept = _plain(tv_boxes)
        large = ((kept[:, 2:] - kept[:, :2]) >= least_side(self.config)).all(dim=1)
        return Transformed(_plain(out), kept[large], labels[large])


class _RandomSize(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Resize as the configuration says, with a random factor where it asks for scale jitter."""

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.config = config

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        scale, jitter = 1.0, self.config.scale_jitter
        if jitter is not None:
            scale = float(torch.empty(()).uniform_(jitter.low, jitter.high))
        return {"size": list(self.config.resize.target(height, width, scale, train=True))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resize, inpt, params["size"], antialias=True)


@contextmanager
def seeded(seed: int, epoch: int, position: int) -> Iterator[None]:
    """Seed torch's CPU generator with the three numbers within the block, and restore its state after it.

    `torch.manual_seed` would seed the accelerators as well, and so change the training that runs in the same process.
    """
    state = torch.get_rng_state()
    words = np.random.SeedSequence([seed, epoch, position]).generate_state(1, np.uint64)
    torch.default_generator.manual_seed(int(words[0] >> np.uint64(1)))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _as_tv_boxes(boxes: Tensor, height: int, width: int) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(boxes.float(), format="XYXY", canvas_size=(height, width))


def _plain(value: Tensor) -> Tensor:
    return value.as_subclass(Tensor)


def _rounded(height: float, width: float) -> tuple[int, int]:
    return max(1, round(height)), max(1, round(width))
