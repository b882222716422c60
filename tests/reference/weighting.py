"""AutoAssign and DW: weights of every prior inside an object, by loops."""

import math
from typing import NamedTuple

import numpy as np

from tests.reference.assigners import image_by_image
from tests.reference.geometry import ZERO, Image
from tests.reference.losses import giou_of, iou_of
from tests.reference.ownership import find_owners, note_close_calls, owner_labels
from tests.reference.shelf import box_cost

TINY = 1e-12


def gaussian(image: Image, g: int, a: int, mean, sigma) -> float:
    """Of the distance of the centres in strides."""
    prior, box = image.priors[a], [float(v) for v in image.boxes[g]]
    x = (float(prior.centre[0]) - (box[0] + box[2]) / 2) / float(prior.stride)
    y = (float(prior.centre[1]) - (box[1] + box[3]) / 2) / float(prior.stride)
    return math.exp(-((x - mean[0]) ** 2) / (2 * sigma[0] ** 2)) * math.exp(-((y - mean[1]) ** 2) / (2 * sigma[1] ** 2))


def is_inside(image: Image, g: int, a: int) -> bool:
    """The centre of the prior is strictly inside the object."""
    return bool(image.sides[g][a].least > 0)


def labelled(image: Image, weight: dict[int, list]):
    """Each prior goes to the object with the largest weight."""
    note_close_calls(image, weight, "weight")
    found = find_owners(image, weight, force="none")
    labels = owner_labels(found)
    weights = [0.0] * image.amount
    for a, g in enumerate(labels):
        if g >= 0:
            weights[a] = float(weight[g][a]) or 1.0
    return labels, labels, weights


def auto_positive(joint: list[float], centre: list[float], sharpness: float) -> list[float]:
    """AutoAssign's w+ of one object."""
    each = [math.exp(sharpness * p) * g for p, g in zip(joint, centre, strict=True)]
    total = max(TINY, math.fsum(each))
    return [value / total for value in each]


def auto_negative(overlaps: list[float], inside: list[bool]) -> list[float]:
    """AutoAssign's w- of one object."""
    values = [1 / max(TINY, 1 - u) for u in overlaps]
    own = [v for v, here in zip(values, inside, strict=True) if here]
    return [
        1 - (v - min(own) + TINY) / (max(own) - min(own) + TINY) if here else 1.0
        for v, here in zip(values, inside, strict=True)
    ]


def dual_positive(t: list[float], centre: list[float], mu: float, mu_of_sum: float) -> list[float]:
    """DW's w_pos of one object."""
    total = math.fsum(math.exp(mu_of_sum * v) * v * g for v, g in zip(t, centre, strict=True))
    return [math.exp(mu * v) * v * g / max(TINY, total) for v, g in zip(t, centre, strict=True)]


def dual_negative(overlaps: list[float], inside: list[bool], negatives: str = "relative") -> list[float]:
    """DW's P_neg of one object, with a square of the IoU."""
    own = [(1 - u * u) / 0.75 for u, here in zip(overlaps, inside, strict=True) if here]
    out = []
    for u, here in zip(overlaps, inside, strict=True):
        if not here or u < 0.5:
            out.append(1.0)
        elif negatives == "fixed":
            out.append(max(0.0, (0.95**2 - u * u) / (0.95**2 - 0.25)))
        else:
            least, most = min(own), min(1.0, max(own))
            out.append(((1 - u * u) / 0.75 - least + TINY) / (most - least + TINY))
    return out


@image_by_image
def assign_auto_assign(image: Image, *, box_weight: float = 5.0, sharpness: float = 3.0):
    """The prior's weight is by its confidence and by where it lies."""
    weight = {}
    for g in image.objects:
        joint = [
            float(image.probability[g][a]) * math.exp(-box_weight * box_cost(image, g, a)) for a in range(image.amount)
        ]
        centre = [gaussian(image, g, a, (0, 0), (1, 1)) if is_inside(image, g, a) else 0.0 for a in range(image.amount)]
        weight[g] = [np.float32(w) for w in auto_positive(joint, centre, sharpness)]
    return labelled(image, weight)


@image_by_image
def assign_dw(
    image: Image,
    *,
    fit: str = "giou",
    beta: float = 5.0,
    mu: float = 5.0,
    mu_of_sum: float = 3.0,
    sigma: float = 1.11,
    negatives: str = "relative",
):
    """The prior's weight is by its consistency and by where it lies."""
    weight = {g: [ZERO] * image.amount for g in image.objects}
    for g in image.objects:
        t = []
        for a in range(image.amount):
            fits = float(image.regressed[g][a]) ** beta if fit == "iou" else math.exp(-beta * box_cost(image, g, a))
            t.append(float(image.probability[g][a]) * fits)
        centre = [
            gaussian(image, g, a, (0, 0), (sigma, sigma)) if is_inside(image, g, a) else 0.0
            for a in range(image.amount)
        ]
        weight[g] = [np.float32(w) for w in dual_positive(t, centre, mu, mu_of_sum)]
    return labelled(image, weight)


# The losses -----------------------------------------------------------------------------------------------------------


class Scene(NamedTuple):
    """One image as plain numbers."""

    objects: dict[int, tuple[int, list[float]]]  # object -> class and box
    priors: list[list[float]]
    strides: list[float]
    scores: list[list[float]]  # prior -> p of each class, with the quality branch in it
    decoded: list[list[float]]
    owner: list[int]  # the labels of classification

    def around(self, g: int) -> tuple[list[bool], list[bool]]:
        """Which priors count for an object, and which are inside it."""
        x1, y1, x2, y2 = self.objects[g][1]
        counts, inside = [], []
        for prior, owner in zip(self.priors, self.owner, strict=True):
            x, y = (prior[0] + prior[2]) / 2, (prior[1] + prior[3]) / 2
            inside.append(x1 < x < x2 and y1 < y < y2)
            counts.append((inside[-1] or owner == g) and owner != -2)
        return counts, inside

    def centres(self, g: int, mean, sigma) -> list[float]:
        """The centre prior of an object."""
        box, out = self.objects[g][1], []
        for a, (counts, inside) in enumerate(zip(*self.around(g), strict=True)):
            prior, value = self.priors[a], 1.0
            for axis in (0, 1):
                far = (prior[axis] + prior[axis + 2] - box[axis] - box[axis + 2]) / 2 / self.strides[a] - mean[axis]
                value *= math.exp(-(far**2) / (2 * sigma[axis] ** 2))
            out.append((value if inside else 1.0) if counts else 0.0)
        return out


def background(scene: Scene, weights: list[list[float]], inner: bool) -> float:
    """Every prior and class as background; the weight multiplies the score (`inner`), or the loss."""
    total = 0.0
    for a, row in enumerate(scene.scores):
        for c, p in enumerate(row) if scene.owner[a] != -2 else ():
            q = p * weights[a][c] if inner else p
            total += (1.0 if inner else weights[a][c]) * q * q * -math.log(1 - q)
    return total


def lowered(scene: Scene, g: int, weights: list[list[float]], found: list[float]) -> None:
    """Of several objects of a class the smallest weight counts."""
    label = scene.objects[g][0]
    for a, value in enumerate(found):
        weights[a][label] = min(weights[a][label], value)


def auto_assign_loss(scenes: list[Scene], mean, sigma) -> float:
    """AutoAssign's three parts, with mean and width of the centre prior of each class."""
    positive = negative = spread = objects = centre_sum = 0.0
    for scene in scenes:
        weights = [[1.0] * len(row) for row in scene.scores]
        found, of_image = 0, 0.0
        best = [max((iou_of(box, o[1]) for o in scene.objects.values()), default=0.0) for box in scene.decoded]
        for g, (label, box) in scene.objects.items():
            counts, _ = scene.around(g)
            if not any(counts):
                continue
            joint = [
                row[label] * math.exp(-5 * (1 - giou_of(decoded, box)))
                for row, decoded in zip(scene.scores, scene.decoded, strict=True)
            ]
            centre = scene.centres(g, mean[label], sigma[label])
            each = auto_positive(joint, centre, 3.0)
            positive -= math.log(max(TINY, math.fsum(w * p for w, p in zip(each, joint, strict=True))))
            lowered(scene, g, weights, auto_negative(best, counts))
            found, of_image = found + 1, of_image + math.fsum(centre)
        negative += background(scene, weights, inner=True)
        spread += found / of_image if found else 0.0
        objects, centre_sum = objects + found, centre_sum + of_image
    parts = positive / max(1, objects), negative / max(1, centre_sum), spread / len(scenes)
    return 0.25 * parts[0] + 0.75 * parts[1] + 0.75 * parts[2]


def dual_weighting_loss(scenes: list[Scene], fit: str, negatives: str) -> float:
    """DW's two parts."""
    positive = negative = objects = not_negative = 0.0
    for scene in scenes:
        weights = [[1.0] * len(row) for row in scene.scores]
        for g, (label, box) in scene.objects.items():
            counts, _ = scene.around(g)
            objects += any(counts)
            overlaps = [iou_of(decoded, box) for decoded in scene.decoded]
            losses = [5 * (1 - giou_of(decoded, box)) for decoded in scene.decoded]
            fits = [u**5 if fit == "iou" else math.exp(-cost) for u, cost in zip(overlaps, losses, strict=True)]
            t = [row[label] * f for row, f in zip(scene.scores, fits, strict=True)]
            each = dual_positive(t, scene.centres(g, (0, 0), (1.11, 1.11)), 5.0, 3.0)
            for w, row, cost in zip(each, scene.scores, losses, strict=True):
                positive += 0.25 * w * (cost - math.log(row[label]))
            if any(counts):
                lowered(scene, g, weights, dual_negative(overlaps, counts, negatives))
        negative += background(scene, weights, inner=False)
        not_negative += math.fsum(1 - w for row in weights for w in row)
    return positive / max(1, objects) + negative / max(1, not_negative)
