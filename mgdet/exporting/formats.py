"""The formats that a detector is exported to: how each is written, and how it is run to be verified."""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mgdet.errors import ConfigError, MgdetError
from mgdet.exporting.describe import METADATA_FILE, InputShape
from mgdet.exporting.graph import DetectionGraph, suppress_with_torchvision
from mgdet.exporting.onnx import COARSEST, example, open_onnx, write_onnx
from mgdet.models.detector import Detector
from mgdet.text import first_line

Call = Callable[..., tuple[Tensor, ...]]
"""As `DetectionGraph.forward`."""


class Format(NamedTuple):
    """A kind of file."""

    suffix: str
    write: Callable[[Detector, InputShape, Mapping[str, str]], bytes]
    """Its content, of a detector on the CPU in evaluation mode; raises `MgdetError` where that cannot be."""
    open: Callable[[bytes], Call] | None
    """The graph that it holds; None: it holds weights alone."""


def write_torchscript(detector: Detector, shape: InputShape, metadata: Mapping[str, str]) -> bytes:
    """A TorchScript file; whoever loads it imports torchvision first, which has the operator of suppression."""
    graph = DetectionGraph(detector, suppress_with_torchvision, dynamic=shape.size is None).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about Python numbers in a trace
            traced = torch.jit.trace(graph, example(shape), check_trace=False)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, TypeError) as error:
        raise MgdetError(f"this network cannot be written as TorchScript: {first_line(error)}") from error
    out = io.BytesIO()
    torch.jit.save(traced, out, _extra_files={METADATA_FILE: json.dumps(dict(metadata))})
    return out.getvalue()


def open_torchscript(content: bytes) -> Call:
    """The graph of a TorchScript file."""
    return torch.jit.load(io.BytesIO(content))  # type: ignore[no-any-return, no-untyped-call]  # torch's stub


def write_torch_export(detector: Detector, shape: InputShape, metadata: Mapping[str, str]) -> bytes:
    """A file of torch.export; as for TorchScript, torchvision has to be imported before it is loaded.

    With a dynamic size the images have at least 256 pixels in each direction.
    """
    graph = DetectionGraph(detector, suppress_with_torchvision, dynamic=shape.size is None).eval()
    images: dict[int, object] = {}
    if shape.batch is None:
        images[0] = torch.export.Dim("batch")
    of_batch = dict(images)
    if shape.size is None:
        least = -(-2 * COARSEST // shape.divisor)  # with a single cell a map would be another graph
        images |= {axis: shape.divisor * torch.export.Dim(name, min=least) for axis, name in ((2, "rows"), (3, "cols"))}
    try:
        with torch.no_grad():
            program = torch.export.export(
                graph, example(shape), dynamic_shapes=(images, of_batch, of_batch), strict=False
            )
    except Exception as error:  # of many kinds, each of which means that the network holds what it cannot trace
        raise MgdetError(
            f"this network cannot be written by torch.export as {shape}: {first_line(error)}. With --size and --batch "
            "there is less that has to be proven."
        ) from error
    out = io.BytesIO()
    torch.export.save(program, out, extra_files={METADATA_FILE: json.dumps(dict(metadata))})
    return out.getvalue()


def open_torch_export(content: bytes) -> Call:
    """The graph of a file of torch.export."""
    return torch.export.load(io.BytesIO(content)).module()


def write_safetensors(detector: Detector, shape: InputShape, metadata: Mapping[str, str]) -> bytes:
    """The weights under the names that they have in a checkpoint, and no graph."""
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise MgdetError("export to safetensors needs the package of this name: install mgdet[export]") from error
    return save({name: value.contiguous() for name, value in detector.state_dict().items()}, dict(metadata))


FORMATS = {
    "onnx": Format(".onnx", write_onnx, open_onnx),
    "torchscript": Format(".torchscript", write_torchscript, open_torchscript),
    "torch_export": Format(".pt2", write_torch_export, open_torch_export),
    "safetensors": Format(".safetensors", write_safetensors, None),
}


def format_named(name: str) -> Format:
    """Raises `ConfigError` where there is none of this name."""
    if name not in FORMATS:
        raise ConfigError(f"format = {name!r}: allowed are {', '.join(FORMATS)}")
    return FORMATS[name]
