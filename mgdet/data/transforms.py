"""Resizing and augmentation of an image and its boxes, on uint8 pixels with torchvision's transforms.v2.

The augmentations of `mgdet.data.augment` come first, in pixels of the file. Every random number of a training sample
comes from (seed, epoch, position) alone, so a sample does not depend on the loader's workers, on the rank that draws it
or on what was drawn before. Only the size that `multi_scale` draws is one of the batch: (seed, epoch, step).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal, Self, TypeAlias

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resize_image

from mgdet.config_base import ByField, Config
from mgdet.data.augment import Augmentation, AugmentConfig, Picture

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


class MultiScale(Config):
    """Each batch has one of a few sizes of the network's input, the same on all workers at a step."""

    factors: tuple[Annotated[float, Field(ge=0.1, le=10)], ...] = Field(
        default=(0.75, 1.0, 1.25),
        min_length=1,
        max_length=16,
        description="the sizes, times that of `resize`; sides are rounded to multiples of 32 pixels",
    )


class Interpolation(Config):
    """A random method of interpolation for each image, at training."""

    methods: tuple[Literal["nearest", "bilinear", "bicubic"], ...] = Field(
        default=("nearest", "bilinear", "bicubic"), min_length=1, description="those that are drawn from"
    )


_METHODS = {
    "nearest": v2.InterpolationMode.NEAREST_EXACT,
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
}


class TransformConfig(Config):
    """What happens to an image before the network. `resize` holds at training and evaluation, the rest at training."""

    resize: Resize = Field(
        default=FixedSize(height=320, width=320), description="how an image gets the size of the network's input"
    )
    hflip: float = Field(default=0.5, ge=0, le=1, description="probability of a flip from left to right")
    vflip: float = Field(default=0.0, ge=0, le=1, description="probability of a flip upside down")
    color: ColorJitter | None = Field(default=None, description="random changes of colour; null: none")
    scale_jitter: ScaleJitter | None = Field(default=None, description="random changes of size; null: none")
    multi_scale: MultiScale | None = Field(
        default=None, description="random sizes of whole batches; null: always that of `resize`"
    )
    interpolation: Interpolation | None = Field(
        default=None, description="random methods of interpolation; null: bilinear"
    )
    augment: Annotated[AugmentConfig, ByField(Augmentation)] = AugmentConfig()
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

    @model_validator(mode="after")
    def _sizes_are_few(self) -> Self:
        if self.multi_scale is not None and self.resize.name != "fixed" and self.scale_jitter is None:
            raise ValueError(
                "multi_scale needs batches of an exact size: use resize.name=fixed, or longest_edge with scale_jitter; "
                "with shortest_edge give several resize.sizes instead"
            )
        return self

    @property
    def resizes(self) -> tuple[Resize, ...]:
        """What `resize` may be in a training: one for each factor of `multi_scale`."""
        factors = (1.0,) if self.multi_scale is None else self.multi_scale.factors
        return tuple(scaled(self.resize, factor) for factor in factors)

    def largest_input(self, height: int, width: int) -> tuple[int, int]:
        """The largest (height, width) at which training may see an image of `height x width`."""
        high = 1.0 if self.scale_jitter is None else max(1.0, self.scale_jitter.high)
        return max(resize.target(height, width, high) for resize in self.resizes)

    def bounds(self) -> tuple[int, int]:
        """Upper bound of (height, width) over all images that the network gets, without padding."""
        sides = [
            (max(r.sizes), r.longest) if isinstance(r, ShortestEdge) else (r.height, r.width) for r in self.resizes
        ]
        return max(height for height, _ in sides), max(width for _, width in sides)

    def smallest(self) -> tuple[int, int]:
        """Lower bound of (height, width) over all images that the network gets."""
        return min(resize.smallest() for resize in self.resizes)


def scaled(resize: Resize, factor: float) -> Resize:
    """The same kind of resizing to other sizes, multiples of 32 pixels; a factor of 1 leaves it as it is."""
    if factor == 1 or isinstance(resize, ShortestEdge):
        return resize
    sides = {side: max(32, round(getattr(resize, side) * factor / 32) * 32) for side in ("height", "width")}
    return resize.model_copy(update=sides)


def least_side(config: TransformConfig) -> float:
    """The width and height below which training drops a box, pixels of the network's input."""
    return max(config.min_box_size, 1e-3)


class EvalTransform:
    """The transform of evaluation and prediction: it only resizes, and drops no box."""

    def __init__(self, config: TransformConfig) -> None:
        self.config = config

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor) -> Picture:
        """Transform an `[3, H, W]` uint8 image with its `[n, 4]` boxes (pixels) and `[n]` labels."""
        picture = Picture(image, boxes.float(), labels)
        return _resized(picture, self.config.resize.target(*picture.size), v2.InterpolationMode.BILINEAR)


class TrainTransform:
    """The transform of training: it augments and resizes, as a pure function of input, `seed`, `epoch`, `position`.

    With `multi_scale` the size is a function of `seed`, `epoch` and the `step` of the batch.

    Args:
        config: what is done.
        seed: of the experiment.
        epochs: of the whole training, after which some augmentations close; None: it has no end.
    """

    def __init__(self, config: TransformConfig, seed: int, epochs: int | None = None) -> None:
        self.config, self.seed, self.epochs = config, seed, epochs
        self._steps = [_Steps(config, resize) for resize in config.resizes]

    def __call__(
        self,
        image: Tensor,
        boxes: Tensor,
        labels: Tensor,
        *,
        epoch: int,
        position: int,
        step: int = 0,
        other: Callable[[np.random.Generator], Picture] | None = None,
    ) -> Picture:
        """Augment an `[3, H, W]` uint8 image with its `[n, 4]` boxes (pixels) and `[n]` labels.

        `step` is the number of the batch in its epoch; `other` draws another picture of the split.
        """
        picture = Picture(image, boxes.float(), labels)
        numbers = {"seed": self.seed, "epoch": epoch, "position": position}
        picture = self.config.augment(picture, **numbers, epochs=self.epochs, other=other)
        with seeded(**numbers):
            picture = self._steps[self._size(epoch, step)](picture)
        large = ((picture.boxes[:, 2:] - picture.boxes[:, :2]) >= least_side(self.config)).all(dim=1)
        return picture.keep(large)

    def _size(self, epoch: int, step: int) -> int:
        """Which of the sizes a batch has: the same on every rank."""
        if len(self._steps) == 1:
            return 0
        return int(np.random.default_rng([self.seed, epoch, step, _SIZES]).integers(len(self._steps)))


_SIZES = 0x5CA1E
"""Sets the random numbers of `multi_scale` apart from those of the order, which have the same seed and epoch."""


class _Steps:
    """What is done with every image after the augmentations, at one size of the network's input.

    What torchvision does for each image to find out what its inputs are takes as long as the resizing, so it is called
    only where it does more than a line would.
    """

    def __init__(self, config: TransformConfig, resize: Resize) -> None:
        self.config, self.resize = config, resize
        self.crop = self.color = None
        if config.scale_jitter is not None and not isinstance(resize, ShortestEdge):
            self.crop = v2.RandomCrop((resize.height, resize.width), pad_if_needed=True)
        if config.color is not None:
            self.color = v2.ColorJitter(**config.color.model_dump())

    def __call__(self, picture: Picture) -> Picture:
        picture = _resized(picture, *self._drawn(*picture.size))  # first: the other steps then have fewer pixels
        if self.crop is not None:
            boxes = tv_tensors.BoundingBoxes(picture.boxes, format="XYXY", canvas_size=picture.size)
            image, boxes = self.crop(tv_tensors.Image(picture.image), boxes)
            picture = Picture(image.as_subclass(Tensor), boxes.as_subclass(Tensor), picture.labels)
        image, boxes, labels = picture
        height, width = picture.size
        if _happens(self.config.hflip):
            image, (x1, y1, x2, y2) = image.flip(-1), boxes.unbind(1)
            boxes = torch.stack([-(x2 - width), y1, -(x1 - width), y2], 1)
        if _happens(self.config.vflip):
            image, (x1, y1, x2, y2) = image.flip(-2), boxes.unbind(1)
            boxes = torch.stack([x1, -(y2 - height), x2, -(y1 - height)], 1)
        if self.color is not None:
            image = self.color(image)
        cut = torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], 2).reshape(-1, 4)
        return Picture(image, cut, labels)

    def _drawn(self, height: int, width: int) -> tuple[tuple[int, int], v2.InterpolationMode]:
        """The size of an image and the interpolation, with a random factor and a random method where asked for."""
        scale, jitter, methods = 1.0, self.config.scale_jitter, self.config.interpolation
        if jitter is not None:
            scale = float(torch.empty(()).uniform_(jitter.low, jitter.high))
        size, method = self.resize.target(height, width, scale, train=True), "bilinear"
        if methods is not None:
            method = methods.methods[int(torch.randint(len(methods.methods), ()))]
        return size, _METHODS[method]


def _happens(probability: float) -> bool:
    return probability > 0 and bool(torch.rand(1) < probability)


def _resized(picture: Picture, size: tuple[int, int], method: v2.InterpolationMode) -> Picture:
    (height, width), (new_height, new_width) = picture.size, size
    image = resize_image(picture.image, list(size), interpolation=method, antialias=True)
    x, y = new_width / width, new_height / height
    return Picture(image, picture.boxes * picture.boxes.new_tensor([x, y, x, y]), picture.labels)


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


def _rounded(height: float, width: float) -> tuple[int, int]:
    return max(1, round(height)), max(1, round(width))
