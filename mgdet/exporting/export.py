"""The whole way from a checkpoint to a verified file."""

import copy
import logging
from typing import NamedTuple

import torch

from mgdet.errors import ConfigError, MgdetError
from mgdet.exporting.describe import InputShape, describe, input_shape
from mgdet.exporting.formats import format_named
from mgdet.exporting.onnx import OPSET
from mgdet.exporting.verify import Verification, verify
from mgdet.inference.load import Trained
from mgdet.inference.output import OutputFile
from mgdet.models.detector import Detector

logger = logging.getLogger(__name__)


class Written(NamedTuple):
    """An exported file."""

    path: str
    """Path or URI."""
    size: int
    """Bytes."""
    shape: InputShape
    """The images that its graph takes."""
    metadata: dict[str, str]
    """What the file says about itself."""
    verification: Verification | None
    """How it was compared with the checkpoint; None: it was not."""


def export_detector(
    trained: Trained,
    format: str = "onnx",
    out: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    batch: int | None = None,
    opset: int | None = None,
    verified: bool = True,
) -> Written:
    """Write a detector as a file that needs no mgdet, and see before that it gives the checkpoint's detections.

    Args:
        trained: from `load_detector`; on a GPU, a copy of it is made on the CPU.
        format: a name of `FORMATS`.
        out: path or URI, whose file is replaced; by default `<name of the run>.<suffix>` in the working directory.
        size: height and width of the images; by default those of `data.transform.resize`, if it has a fixed size.
        dynamic: images of any size.
        batch: images at a time; None: any number.
        opset: version of ONNX's operators, 18 by default.
        verified: compare the detections of both.

    Raises:
        ConfigError: an unknown format, or an option that the format or the detector cannot have.
        DataError: `out` cannot be written.
        MgdetError: a package is not installed, the network cannot be written in this format, or its detections differ;
            nothing is written then.
    """
    kind = format_named(format)
    if opset is not None and format != "onnx":
        raise ConfigError(f"opset = {opset}: {format} has none; it is for onnx")
    shape = input_shape(trained, size, dynamic, batch)
    number = (OPSET if opset is None else opset) if format == "onnx" else None
    metadata = describe(trained, shape, format, number)
    file = OutputFile(f"{trained.experiment.name}{kind.suffix}" if out is None else out)
    detector = on_cpu(trained)
    content = kind.write(detector, shape, metadata)
    verification = None
    if verified and kind.open is not None:
        verification = verify(kind.open(content), detector, trained, shape)
        logger.info("verified: %s", verification)
    elif verified:
        _require_same_weights(content, detector)
    file.write_bytes(content)
    return Written(file.uri, len(content), shape, metadata, verification)


def on_cpu(trained: Trained) -> Detector:
    """A copy of the detector on the CPU, in float32 and in evaluation mode, without gradients."""
    detector = copy.deepcopy(trained.detector).to("cpu", torch.float32, memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stub
    return detector.eval().requires_grad_(False)  # type: ignore[no-any-return]  # of the same class


def _require_same_weights(content: bytes, detector: Detector) -> None:
    from safetensors.torch import load

    found, wanted = load(content), detector.state_dict()
    if found.keys() != wanted.keys() or not all(torch.equal(found[name], wanted[name]) for name in wanted):
        raise MgdetError("the weights in the file are not those of the checkpoint")
