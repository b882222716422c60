"""What an exported file says about itself: plain text under a few keys, the same in every format."""

import json
from typing import Any, NamedTuple

from mgdet import __version__
from mgdet.data.transforms import FixedSize, LongestEdge, TransformConfig
from mgdet.errors import ConfigError
from mgdet.inference.load import Trained
from mgdet.text import redacted

METADATA_FILE = "mgdet.json"
"""Under which TorchScript and torch.export keep the metadata, as JSON."""


class InputShape(NamedTuple):
    """The images `[B, 3, H, W]` that an exported graph takes."""

    size: tuple[int, int] | None
    """Height and width; None: any multiples of `divisor`."""
    batch: int | None
    """Images at a time; None: any number."""
    divisor: int
    """Images are padded to multiples of it, pixels."""

    def __str__(self) -> str:
        size = f"any multiples of {self.divisor}" if self.size is None else f"{self.size[0]} x {self.size[1]}"
        return f"{'any number' if self.batch is None else self.batch} of images of {size} pixels"


def input_shape(
    trained: Trained, size: tuple[int, int] | None = None, dynamic: bool = False, batch: int | None = None
) -> InputShape:
    """The shape that was asked for; by default the size that every image is resized to, if there is one.

    Args:
        trained: the detector.
        size: height and width of the padded images; multiples of `data.loader.divisor`.
        dynamic: any size.
        batch: images at a time; None: any number.

    Raises:
        ConfigError: a size or number that the graph cannot have.
    """
    divisor, transform = trained.experiment.data.loader.divisor, trained.experiment.data.transform
    if batch is not None and batch < 1:
        raise ConfigError(f"batch = {batch}: it must be at least 1; without it the file takes any number of images")
    if size is not None and dynamic:
        raise ConfigError("a fixed size and a dynamic one were asked for: give --size or --dynamic, not both")
    least = _least_size(transform, divisor)
    if size is None:
        size = None if dynamic or not isinstance(transform.resize, FixedSize) else least
        return InputShape(size, batch, divisor)
    if any(side < 1 or side % divisor for side in size):
        nearest = " x ".join(str(max(1, -(-side // divisor)) * divisor) for side in size)
        raise ConfigError(
            f"size = {size[0]} x {size[1]}: both must be multiples of {divisor} (data.loader.divisor), such as "
            f"{nearest}"
        )
    if size[0] < least[0] or size[1] < least[1]:
        raise ConfigError(
            f"size = {size[0]} x {size[1]}: images are resized to up to {least[0]} x {least[1]} pixels and padded to "
            "the size. Give a larger one, or change data.transform.resize with KEY=VALUE"
        )
    return InputShape(size, batch, divisor)


def describe(trained: Trained, shape: InputShape, format: str, opset: int | None) -> dict[str, str]:
    """The metadata of a file; `input` is what `mgdet.exporting.runtime` prepares images by."""
    model = trained.experiment.model
    resize = trained.experiment.data.transform.resize
    values: dict[str, Any] = {
        "mgdet": __version__,
        "format": format,
        "detector": f"{model.name} ({model.backbone})",
        "classes": json.dumps([{"id": c.id, "name": c.name} for c in trained.categories]),
        "input": json.dumps({"resize": resize.model_dump(mode="json"), **shape._asdict()}),
        "postprocess": json.dumps({**model.postprocess.model_dump(mode="json"), **_rescoring(trained)}),
        "checkpoint": redacted(trained.path),
        "epoch": trained.epoch,
        "step": trained.step,
    }
    if opset is not None:
        values["opset"] = opset
    return {key: str(value) for key, value in values.items()}


def _rescoring(trained: Trained) -> dict[str, Any]:
    model = trained.experiment.model
    return {} if model.quality == "none" else {"rescoring": model.rescoring.model_dump(mode="json")}


def _least_size(transform: TransformConfig, divisor: int) -> tuple[int, int]:
    """The least padded height and width that hold every image, so far as the configuration alone can say."""
    resize = transform.resize
    if isinstance(resize, FixedSize | LongestEdge):
        height, width = resize.height, resize.width
    else:  # which of the sides is the longer one, the images say
        height = width = min(max(resize.sizes), resize.longest)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor
