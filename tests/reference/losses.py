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


def cross_entropy(logit: float, target: float) -> float:
    """-(y log p + (1 - y) log(1 - p))."""
    p = 1 / (1 + math.exp(-logit))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


def quality_focal(logit: float, target: float, beta: float) -> float:
    """Cross-entropy times the distance to the target, to a power."""
    return abs(target - 1 / (1 + math.exp(-logit))) ** beta * cross_entropy(logit, target)


def varifocal(logit: float, target: float, alpha: float, gamma: float) -> float:
    """Positives count as much as their target says; negatives are turned down by their score."""
    if target > 0:
        return target * cross_entropy(logit, target)
    return alpha * (1 / (1 + math.exp(-logit))) ** gamma * cross_entropy(logit, 0.0)


def centerness(prior: Box, box: Box) -> float:
    """FCOS's formula for the centre of the prior; 0 unless strictly inside."""
    x, y = (prior[0] + prior[2]) / 2, (prior[1] + prior[3]) / 2
    left, right, top, bottom = x - box[0], box[2] - x, y - box[1], box[3] - y
    if min(left, right, top, bottom) <= 0:
        return 0.0
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


Value = Callable[[int, int, int], float]
"""A number for (image, sample, object)."""


def class_loss(logits, gt_index, weight, labels, penalty: Callable[[float, float], float], target: Value) -> float:  # type: ignore[no-untyped-def]
    """Sum over images, samples that take part, and classes, divided by the positives' weights (at least 1)."""
    total, weights = 0.0, 0.0
    for image, indices in enumerate(gt_index):
        for sample, owner in enumerate(indices):
            if owner == -2:
                continue
            weights += weight[image][sample] if owner >= 0 else 0.0
            for c, logit in enumerate(logits[image][sample]):
                hit = owner >= 0 and labels[image][owner] == c
                total += penalty(logit, target(image, sample, owner) if hit else 0.0)
    return total / max(1.0, weights)


def positive_loss(gt_index, weight: Value, one: Value) -> float:  # type: ignore[no-untyped-def]
    """Weighted sum of `one` over the positives, divided by the sum of the weights (at least 1)."""
    total, divisor = 0.0, 0.0
    for image, indices in enumerate(gt_index):
        for sample, owner in enumerate(indices):
            if owner >= 0:
                total += weight(image, sample, owner) * one(image, sample, owner)
                divisor += weight(image, sample, owner)
    return total / max(1.0, divisor)


def concordance(x: Sequence[float], y: Sequence[float]) -> float:
    """Lin's: how near the points are to the line y = x."""
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    spread = sum((a - mean_x) ** 2 for a in x) + sum((b - mean_y) ** 2 for b in y)
    joint = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return 2 * joint / (spread + n * (mean_x - mean_y) ** 2)


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Cosine of the angle between the centred vectors."""
    n = len(x)
    dx, dy = [a - sum(x) / n for a in x], [b - sum(y) / n for b in y]
    return math.fsum(a * b for a, b in zip(dx, dy, strict=True)) / math.hypot(*dx) / math.hypot(*dy)


def soft_spearman(x: Sequence[float], y: Sequence[float], temperature: float) -> float:
    """Pearson of y's average ranks and x's soft ones: how many are smaller, as sigmoids of standardised differences."""
    n = len(x)
    mean = sum(x) / n
    std = math.sqrt(sum((v - mean) ** 2 for v in x) / n)

    def softly(v: float, others: Sequence[float]) -> float:
        return 1 + sum(1 / (1 + math.exp((w - v) / std / temperature)) for w in others)

    soft = [softly(x[i], [*x[:i], *x[i + 1 :]]) for i in range(n)]
    hard = [1 + sum(w < v for w in y) + (sum(w == v for w in y) - 1) / 2 for v in y]
    return pearson(soft, hard)


def contrast(p: float, overlap: float, margin: float) -> float:
    """How far score and overlap are apart beyond the margin, less for uncertain scores."""
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    return max(0.0, abs(p - overlap) - margin) / (1 + math.exp(entropy))


def mean_max(probabilities: Sequence[float]) -> float:
    """The mean while all are small, the largest when one is near 1."""
    weights = [1 / (1 - p) for p in probabilities]
    return sum(w * p for w, p in zip(weights, probabilities, strict=True)) / sum(weights)


def box_probability(overlaps: Sequence[float], threshold: float) -> list[float]:
    """How likely each box of an image is that of an object, from their IoUs with it."""
    best = max(max(overlaps), threshold + 1e-12)
    return [min(1.0, max(0.0, (u - threshold) / (best - threshold))) for u in overlaps]


def distribution_focal(logits: Sequence[float], distance: float) -> float:
    """Cross-entropy against the two bins around a distance, each by how near it is."""
    total = sum(math.exp(v) for v in logits)
    y = min(max(distance, 0.0), len(logits) - 1 - 0.01)
    left = math.floor(y)
    shares = [math.exp(v) / total for v in logits]
    return -((left + 1 - y) * math.log(shares[left]) + (y - left) * math.log(shares[left + 1]))
