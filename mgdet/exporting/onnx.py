"""ONNX, written by torch's exporter from a trace.

Its newer exporter, from torch.export, takes ten times as long and another package; both give the same operations.
"""

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mgdet.errors import ConfigError, MgdetError
from mgdet.exporting.describe import InputShape
from mgdet.exporting.graph import INPUTS, OUTPUTS, DetectionGraph, suppress_with_torchvision
from mgdet.exporting.packages import require_packages
from mgdet.models.detector import Detector
from mgdet.text import first_line

OPSET = 18
OPSETS = range(18, 21)
"""Those that torch's exporter writes and that are tested; 18 is understood by onnxruntime since 1.14 (2023)."""


COARSEST = 128
"""Stride of the coarsest map, pixels."""


class _NonMaxSuppression(torch.autograd.Function):
    """`graph.Suppress` as ONNX's operator, which suppresses each class of each image by itself."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, classes: int) -> Tensor:
        return suppress_with_torchvision(boxes, scores, labels, iou, classes)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, labels: Any, iou: float, classes: int) -> Any:
        def constant(value: Any) -> Any:
            return g.op("Constant", value_t=torch.tensor(value))

        of_class = g.op("OneHot", labels, constant(classes), constant([0.0, 1.0]), axis_i=1)  # [B, C, K]
        of_class = g.op("Mul", of_class, g.op("Unsqueeze", scores, constant([1])))
        every = constant(torch.iinfo(torch.int32).max)
        found = g.op("NonMaxSuppression", boxes, of_class, every, constant([float(iou)]), constant([0.0]))
        place = g.op("Gather", found, constant([0, 2]), axis_i=1)  # image and candidate of (image, class, candidate)
        nothing = g.op("ConstantOfShape", g.op("Shape", scores), value_t=torch.zeros(1))
        number = g.op("Gather", g.op("Shape", place), constant([0]), axis_i=0)
        marked = g.op("ScatterND", nothing, place, g.op("ConstantOfShape", number, value_t=torch.ones(1)))
        kept = g.op("Greater", marked, constant(0.0))
        kept.setType(scores.type().with_dtype(torch.bool))
        return kept


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, classes: int) -> Tensor:
    kept: Tensor = _NonMaxSuppression.apply(boxes, scores, labels, iou, classes)
    return kept


def write_onnx(detector: Detector, shape: InputShape, metadata: Mapping[str, str]) -> bytes:
    """The content of an ONNX file.

    Args:
        detector: on the CPU, in evaluation mode.
        shape: of the images.
        metadata: what the file says about itself; its `opset` is the version of ONNX's operators.

    Raises:
        ConfigError: an opset that cannot be written.
        MgdetError: a package is not installed, or the network holds what the exporter cannot write.
    """
    opset = int(metadata["opset"])
    if opset not in OPSETS:
        raise ConfigError(f"opset = {opset}: allowed are {OPSETS.start} to {OPSETS.stop - 1}")
    require_packages()
    import onnx

    axes: dict[str, dict[int, str]] = {name: {} for name in (*INPUTS, *OUTPUTS)}
    if shape.batch is None:
        axes = {name: {0: "batch"} for name in axes}
    if shape.size is None:
        axes["images"] |= {2: "height", 3: "width"}
    out = io.BytesIO()
    graph = DetectionGraph(detector, _suppress, dynamic=shape.size is None).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about Python numbers in a trace, and about the newer exporter
            torch.onnx.export(
                graph,
                example(shape),
                out,  # type: ignore[arg-type]  # the exporter of traces takes files
                dynamo=False,
                opset_version=opset,
                input_names=list(INPUTS),
                output_names=list(OUTPUTS),
                dynamic_axes=axes,
            )
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        raise MgdetError(f"this network cannot be written as ONNX: {first_line(error)}") from error
    model = onnx.load_from_string(out.getvalue())
    model.producer_name, model.producer_version = "mgdet", metadata["mgdet"]
    onnx.helper.set_model_props(model, dict(metadata))
    return bytes(model.SerializeToString())


def open_onnx(content: bytes) -> Callable[..., tuple[Tensor, ...]]:
    """The graph of an ONNX file, run by onnxruntime on the CPU, as a function of tensors."""
    from mgdet.exporting.runtime import OnnxDetector

    run = OnnxDetector(content, threads=torch.get_num_threads()).run

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(array) for array in run(*(tensor.numpy() for tensor in inputs)))

    return call


def example(shape: InputShape) -> tuple[Tensor, Tensor, Tensor]:
    """Black images to trace with."""
    side = -(-COARSEST // shape.divisor) * shape.divisor
    height, width = shape.size or (3 * side, 2 * side)  # several cells, because 1 may be taken for a constant
    batch = shape.batch or 2
    sizes = torch.tensor([[height, width]]).repeat(batch, 1)
    return torch.zeros(batch, 3, height, width, dtype=torch.uint8), sizes, sizes.clone()
