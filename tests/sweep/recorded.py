"""A recorded table of trials, `recorded.json`: a real training that is small enough to be done 700 times.

    python -m tests.sweep.recorded     # records it again, some seconds

What is trained: a network with one hidden layer of eight units learns, from the scores and the size of a detection,
whether the detection is right. The detections are those of a network trained on BCCD
(`tests/evaluation/bccd_predictions.npz`); one is right if it has an IoU of 0.5 or more with an object of the class of
its best score. Loss: focal loss with `gamma` and alpha 0.25. Steps: 40 of SGD over every eighth detection of the even
images, with learning rate, momentum and weight decay. Value: the average precision of the order in which it puts the
detections of the odd images. The table has this value at 7 x 5 x 5 x 4 points of the four keys; between them it is
interpolated, linearly in momentum and gamma and in the logarithms of the others.
"""

import itertools
import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("recorded.json")
BCCD = Path(__file__).parents[1] / "evaluation" / "bccd_predictions.npz"
AXES = {
    "train.optimizer.lr": np.geomspace(0.01, 10, 7),
    "train.optimizer.momentum": np.linspace(0, 0.95, 5),
    "loss.cls.gamma": np.linspace(0, 5, 5),
    "train.optimizer.weight_decay": np.geomspace(1e-5, 1e-1, 4),
}
LOGARITHMIC = {"train.optimizer.lr", "train.optimizer.weight_decay"}
SPACE = {
    key: {"loguniform" if key in LOGARITHMIC else "uniform": [float(f"{axis[0]:g}"), float(f"{axis[-1]:g}")]}
    for key, axis in AXES.items()
}
"""The same as the `space` of a sweep."""


class Recorded:
    """The value of any trial of the space, from the table."""

    def __init__(self):
        from scipy.interpolate import RegularGridInterpolator

        table = np.array(json.loads(FILE.read_text())).reshape([len(axis) for axis in AXES.values()])
        axes = [np.log(axis) if key in LOGARITHMIC else axis for key, axis in AXES.items()]
        self._interpolate = RegularGridInterpolator(axes, table, bounds_error=False, fill_value=None)

    def __call__(self, params):
        point = [np.log(params[key]) if key in LOGARITHMIC else params[key] for key in AXES]
        return float(self._interpolate(point)[0])


def detections():
    """Features, whether each is right, and the image, of all detections."""
    data = np.load(BCCD)
    boxes, scores = data["boxes"].astype(float), data["scores"].astype(float)
    images, object_image = data["image"].astype(int), data["box_image"].astype(int)
    right = np.zeros(len(boxes), bool)
    for i in set(images):
        mine, theirs = np.flatnonzero(images == i), np.flatnonzero((object_image == i) & ~data["crowd"])
        a, b = boxes[mine][:, None], data["objects"][theirs].astype(float)[None]
        size = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
        overlap = size.prod(-1)
        area = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
        iou = overlap / np.maximum(area[0] + area[1] - overlap, 1e-9)
        same = scores[mine].argmax(1)[:, None] == data["labels"][theirs].astype(int)[None]
        right[mine] = ((iou >= 0.5) & same).any(1)
    sizes = np.log(np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3))
    features = np.concatenate([np.log(scores.clip(1e-4, 1)), sizes], 1)
    return (features - features.mean(0)) / features.std(0), right, images


def average_precision(order, right):
    """Mean precision at the right ones, in the order of falling scores."""
    hits = right[np.argsort(-order, kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def focal_slopes(logits, right, gamma, alpha=0.25):
    """The derivative of the focal loss (Lin et al., ICCV 2017, appendix B) by each logit."""
    sign = np.where(right, 1.0, -1.0)
    p = 1 / (1 + np.exp(-np.clip(sign * logits, -60, 60)))
    weight = np.where(right, alpha, 1 - alpha)
    return sign * weight * (1 - p) ** gamma * (gamma * p * np.log(p) + p - 1)


def record():
    features, right, images = detections()
    learn, judge = np.flatnonzero(images % 2 == 0)[::8], images % 2 == 1
    x, y = features[learn], right[learn]
    lr, momentum, gamma, decay = (np.array(v)[:, None] for v in zip(*itertools.product(*AXES.values()), strict=True))
    rng, runs = np.random.default_rng(0), len(lr)
    first = np.repeat(rng.normal(0, 1 / np.sqrt(x.shape[1]), (1, x.shape[1] * 8)), runs, 0)
    second = np.repeat(rng.normal(0, 1 / np.sqrt(8), (1, 8)), runs, 0)
    weights = [first, np.zeros((runs, 8)), second, np.zeros((runs, 1))]
    speeds = [np.zeros_like(w) for w in weights]

    def hidden(inputs):
        return np.tanh(inputs @ weights[0].reshape(runs, -1, 8) + weights[1][:, None])

    for _ in range(40):
        units = hidden(x)
        logits = (units * weights[2][:, None]).sum(-1) + weights[3]
        slopes = focal_slopes(logits, y, gamma) / len(x)
        back = slopes[..., None] * weights[2][:, None] * (1 - units**2)
        gradients = [
            np.einsum("ni,rnh->rih", x, back).reshape(runs, -1),
            back.sum(1),
            (units * slopes[..., None]).sum(1),
            slopes.sum(1, keepdims=True),
        ]
        for weight, speed, gradient in zip(weights, speeds, gradients, strict=True):
            speed *= momentum
            speed += gradient + decay * weight
            weight -= lr * speed
    found = []
    for run in range(runs):
        units = np.tanh(features[judge] @ weights[0][run].reshape(-1, 8) + weights[1][run])
        found.append(round(average_precision(np.nan_to_num(units @ weights[2][run]), right[judge]), 4))
    FILE.write_text("[" + ",".join(map(str, found)) + "]\n")
    values = np.array(found)
    print(f"{runs} values, {values.min()} to {values.max()}, median {np.median(values)}")


if __name__ == "__main__":
    record()
