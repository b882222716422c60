"""The parts of TOOD's head by loops over plain lists."""

import math
from collections.abc import Sequence

Map = list[list[float]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def aligned_score(logit: float, alignment: float) -> float:
    """The geometric mean of two probabilities."""
    return math.sqrt(sigmoid(logit) * sigmoid(alignment))


def dense(weight: Sequence[Sequence[float]], bias: Sequence[float], x: Sequence[float]) -> list[float]:
    """A layer."""
    return [math.fsum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def attention(first, second, average: Sequence[float]) -> list[float]:
    """A weight for each layer of the tower, of two layers (weight, bias) and the mean of each channel."""
    hidden = [max(0.0, v) for v in dense(*first, average)]
    return [sigmoid(v) for v in dense(*second, hidden)]


def reduced(layers: Sequence[Sequence[Map]], weights: Sequence[float], weight, bias) -> list[Map]:
    """All layers, each channel times its layer's weight, and then a convolution of one location."""
    height, width = len(layers[0][0]), len(layers[0][0][0])
    out = [[[0.0] * width for _ in range(height)] for _ in weight]
    for y in range(height):
        for x in range(width):
            values = [w * channel[y][x] for layer, w in zip(layers, weights, strict=True) for channel in layer]
            for channel, value in enumerate(dense(weight, bias, values)):
                out[channel][y][x] = max(0.0, value)
    return out


def sampled(values: Map, y: float, x: float) -> float:
    """Bilinear between the four neighbours; those beyond the map are 0."""
    top, left = math.floor(y), math.floor(x)
    total = 0.0
    for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
        for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
            if 0 <= row < len(values) and 0 <= column < len(values[0]):
                total += weight_y * weight_x * values[row][column]
    return total
