"""Detect with an exported detector, by NumPy, Pillow and onnxruntime alone.

    detector = OnnxDetector("mine.onnx")
    for found in detector.predict(["a.jpg", "b.jpg"], score=0.3):
        print(found.boxes, found.scores, [detector.classes[i]["name"] for i in found.labels])

This file imports nothing of mgdet and no torch, so that it can be copied into a program of one's own.
"""

import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]
Rule = Mapping[str, Any]
"""How images become the network's input: the entry `input` of the model's metadata."""


class Found(NamedTuple):
    """The `N` detections of one image, the best first."""

    boxes: NDArray[np.float32]  # [N, 4] (x1, y1, x2, y2), pixels of the upright image
    scores: NDArray[np.float32]  # [N]
    labels: NDArray[np.int64]  # [N] positions in `OnnxDetector.classes`


class OnnxDetector:
    """An exported detector.

    Args:
        model: the file or its content.
        threads: CPU threads of one operation; 0: as many as onnxruntime chooses.
        providers: where onnxruntime computes, in order of preference.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        threads: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only
        place = model if isinstance(model, bytes) else os.fspath(model)
        self._session = onnxruntime.InferenceSession(place, options, providers=list(providers))
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.classes: list[dict[str, Any]] = json.loads(self.metadata["classes"])
        self.rule: Rule = json.loads(self.metadata["input"])

    def predict(self, images: Sequence[Any], score: float = 0.0) -> list[Found]:
        """Detect in images: paths or contents of files, Pillow images, or arrays `[H, W, 3]` of uint8 in RGB order.

        Detections below `score` are left out. Raises `ValueError` for an image that cannot be used.
        """
        size = self.rule["batch"] or 1  # one at a time is padded least, and depends on no other image
        out: list[Found] = []
        for start in range(0, len(images), size):
            pixels = [read_image(image) for image in images[start : start + size]]
            filled = pixels + [pixels[-1]] * (size - len(pixels))
            found = self.run(*network_input(filled, self.rule))
            out += [_above(score, *rows) for rows in zip(*found, strict=True)][: len(pixels)]
        return out

    def run(self, images: Pixels, sizes: NDArray[np.int64], original_sizes: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Boxes, scores, labels and counts, as the graph gives them (`DetectionGraph.forward`)."""
        feed = {"images": images, "sizes": sizes, "original_sizes": original_sizes}
        out: list[NDArray[Any]] = self._session.run(["boxes", "scores", "labels", "counts"], feed)
        return out


def _above(score: float, boxes: Any, scores: Any, labels: Any, count: Any) -> Found:
    wanted = slice(0, int((scores[: int(count)] >= score).sum()))  # they are sorted
    return Found(boxes[wanted], scores[wanted], labels[wanted])


def read_image(image: Any) -> Pixels:
    """The pixels `[H, W, 3]` of an image, upright and in RGB order. Raises `ValueError`."""
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"an array of shape {list(image.shape)} and type {image.dtype}: expected [H, W, 3] uint8")
        return image
    try:
        if isinstance(image, bytes | bytearray):
            image = Image.open(io.BytesIO(image))
        elif isinstance(image, str | os.PathLike):
            image = Image.open(os.fspath(image))
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except OSError as error:
        raise ValueError(f"an image cannot be read: {error}") from error


def network_input(images: Sequence[Pixels], rule: Rule) -> tuple[Pixels, NDArray[np.int64], NDArray[np.int64]]:
    """The inputs of the model: images `[B, 3, H, W]`, their sizes `[B, 2]` and those of the originals `[B, 2]`.

    Raises `ValueError` where an image does not fit into the size that the model was exported with.
    """
    sizes = [network_size(image.shape[0], image.shape[1], rule["resize"]) for image in images]
    whole = np.array(sizes, dtype=np.int64).max(axis=0).tolist()
    height, width = rule["size"] or (-(-n // rule["divisor"]) * rule["divisor"] for n in whole)
    if whole[0] > height or whole[1] > width:
        raise ValueError(
            f"an image becomes {whole[0]} x {whole[1]} pixels, and the model takes {height} x {width}: export it with "
            "a larger --size, or with --dynamic"
        )
    batch = np.zeros((len(images), 3, height, width), dtype=np.uint8)
    for i, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        batch[i, :, :h, :w] = resize(image, h, w).transpose(2, 0, 1)
    originals = np.array([image.shape[:2] for image in images], dtype=np.int64)
    return batch, np.array(sizes, dtype=np.int64), originals


def network_size(height: int, width: int, resize: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that an image of `height x width` is resized to; see `data.transform.resize`."""
    if resize["name"] == "fixed":
        return int(resize["height"]), int(resize["width"])
    if resize["name"] == "longest_edge":
        ratio = min(resize["height"] / height, resize["width"] / width)
    else:
        ratio = min(max(resize["sizes"]) / min(height, width), resize["longest"] / max(height, width))
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """Bilinear with antialiasing, `[H, W, 3] -> [height, width, 3]`: on CPUs with AVX2 the bytes are torchvision's.

    The weights are whole numbers, as in `aten/src/ATen/native/cpu/UpSampleKernel.cpp` of PyTorch: rounded at the
    greatest power of two with which they fit into 16 bits. Columns are joined first, then rows.
    """
    if image.shape[1] != width:
        image = _resize_rows(image.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return _resize_rows(image, height) if image.shape[0] != height else image


def _resize_rows(image: Pixels, count: int) -> Pixels:
    first, weights, precision = _weights(image.shape[0], count)
    total = np.full((count, *image.shape[1:]), 1 << (precision - 1), dtype=np.int32)
    for k, weight in _columns(weights):
        total += image[np.minimum(first + k, image.shape[0] - 1)] * weight[:, None, None]
    return (total >> precision).clip(0, 255).astype(np.uint8)


def _columns(weights: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.int32]]]:
    return ((k, weights[:, k]) for k in range(weights.shape[1]) if weights[:, k].any())


def _weights(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """For each of the new rows the first old one that it is made of, the weights of that and those below, and bits."""
    scale = source / target
    support = max(scale, 1.0)
    most = math.ceil(support) * 2 + 1
    centre = scale * (np.arange(target) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    number = np.minimum((centre + support + 0.5).astype(np.int64), source) - first
    k = np.arange(most)
    distance = np.abs((k + first[:, None] - centre[:, None] + 0.5) * (1.0 / support))
    weights = np.where((distance < 1) & (k < number[:, None]), 1.0 - distance, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    largest = float(weights.max())
    precision = next((n for n in range(22) if int(0.5 + largest * (1 << (n + 1))) >= 1 << 15), 22)
    return first, (0.5 + weights * (1 << precision)).astype(np.int32), precision
