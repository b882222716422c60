"""The losses over Python floats, one sample at a time, written from the papers' formulas."""

import math
from collections.abc import Callable, Sequence

Box = Sequence[float]


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _intersection(a: Box, b: Box) -> float:
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou_of(a: Box, b: Box) -> float:
    """Intersection over union, 0 for an empty union."""
    inter = _intersection(a, b)
    union = _area(a) + _area(b) - inter
    return inter / union if union > 0 else 0.0


def giou_of(a: Box, b: Box) -> float:
    """IoU less the empty share of the smallest box around both."""
    hull = _area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    union = _area(a) + _area(b) - _intersection(a, b)
    return iou_of(a, b) - (hull - union) / hull


def focal(logit: float, target: float, alpha: float, gamma: float) -> float:
    """-alpha_t (1 - p_t)^gamma log(p_t), with a target between 0 and 1 mixing both cases."""
    p = 1 / (1 + math.exp(-logit))
    cross_entropy = -(target * math.log(p) + (1 - target) * math.log(1 - p))
    p_t = p * target + (1 - p) * (1 - target)
    balance = alpha * target + (1 - alpha) * (1 - target) if alpha >= 0 else 1.0
    return balance * (1 - p_t) ** gamma * cross_entropy


def l1(x: float) -> float:
    """|x|."""
    return abs(x)


def smooth_l1(x: float, beta: float) -> float:
    """A parabola that meets |x| - beta / 2 at beta."""
    x = abs(x)
    return x * x / (2 * beta) if x < beta else x - beta / 2


def balanced_l1(x: float, alpha: float, gamma: float, beta: float) -> float:
    """Libra R-CNN's loss with its b = e^(gamma / alpha) - 1; the line starts where the curve ends."""
    x, b = abs(x), math.exp(gamma / alpha) - 1

    def curve(v: float) -> float:
        return alpha / b * (b * v + 1) * math.log(b * v / beta + 1) - alpha * v

    return curve(x) if x < beta else curve(beta) + gamma * (x - beta)


def deltas_of(box: Box, anchor: Box, weights: Sequence[float]) -> list[float]:
    """Shift of the centre in anchor sizes and log of the size ratio."""
    out = []
    for low, high in ((0, 2), (1, 3)):
        size = anchor[high] - anchor[low]
        out.append(((box[low] + box[high]) / 2 - (anchor[low] + anchor[high]) / 2) / size)
    for low, high in ((0, 2), (1, 3)):
        out.append(math.log((box[high] - box[low]) / (anchor[high] - anchor[low])))
    return [v * w for v, w in zip(out, weights, strict=True)]


def class_loss(logits, gt_index, weight, labels, alpha: float, gamma: float) -> float:  # type: ignore[no-untyped-def]
    """Sum over images, samples that take part, and classes, divided by the positives (at least 1). Nested lists."""
    total, positives = 0.0, 0
    for image, indices in enumerate(gt_index):
        for sample, owner in enumerate(indices):
            if owner == -2:
                continue
            positives += owner >= 0
            for c, logit in enumerate(logits[image][sample]):
                hit = owner >= 0 and labels[image][owner] == c
                total += focal(logit, weight[image][sample] if hit else 0.0, alpha, gamma)
    return total / max(1, positives)


def box_loss(gt_index, weight, one: Callable[[int, int, int], float]) -> float:  # type: ignore[no-untyped-def]
    """Sum of `one(image, sample, object)` over the positives, divided by their number (at least 1)."""
    total, positives = 0.0, 0
    for image, indices in enumerate(gt_index):
        for sample, owner in enumerate(indices):
            if owner >= 0:
                positives += 1
                total += weight[image][sample] * one(image, sample, owner)
    return total / max(1, positives)
