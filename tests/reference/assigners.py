"""The assigners once more, as slow and obvious as they can be written: loops over images, objects and priors.

Every number is one numpy float32 scalar (or one 0-d torch tensor where a power, an exponential or a sigmoid is
needed), combined in the order a float32 implementation would, so that the IoUs are the same to the last bit and exact
ties and exact thresholds mean the same on both sides. Powers and exponentials may differ in the last bit between
vectorised and scalar code: `close_calls` says whether an example's outcome could hinge on that.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from mgdet.structures import IGNORED, NEGATIVE, Predictions, Priors, Targets

MAX_ORPHANS = 32
TOLERANCE = 2e-6
"""Two different qualities that are closer than this are not told apart reliably."""

ZERO = np.float32(0)
ONE = np.float32(1)


def overlap(a, b):
    """IoU of two boxes given as four float32 scalars each; 0 for anything that is not a box."""
    for value in (*a, *b):
        if not math.isfinite(value):
            return ZERO
    with np.errstate(all="ignore"):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        intersection = width * height if width > 0 and height > 0 else ZERO
        union = area(a) + area(b) - intersection
        if not union > 0:
            return ZERO
        ratio = intersection / union
    return ratio if math.isfinite(ratio) else ZERO


def area(box):
    """Width times height, 0 where either is negative."""
    return max(box[2] - box[0], ZERO) * max(box[3] - box[1], ZERO)


def centre_distance(a, b):
    """Euclidean distance of two box centres."""
    half = np.float32(0.5)
    with np.errstate(all="ignore"):
        dx = (a[0] + half * (a[2] - a[0])) - (b[0] + half * (b[2] - b[0]))
        dy = (a[1] + half * (a[3] - a[1])) - (b[1] + half * (b[3] - b[1]))
        return np.sqrt(dx * dx + dy * dy)


def is_usable(box):
    """True for a box with finite coordinates, a positive width and a positive height."""
    return all(math.isfinite(value) for value in box) and box[2] > box[0] and box[3] > box[1]


def first_best(values):
    """Index of the largest value, the lowest index of several equal ones; None of no values."""
    best = None
    for index, value in enumerate(values):
        if best is None or value > values[best]:
            best = index
    return best


@dataclass
class Image:
    """One image's objects and what is known of them against all priors."""

    objects: list[int]  # indices of the objects that count
    prior_iou: dict[int, list]  # object -> one value per prior
    proximity: dict[int, list]
    regressed: dict[int, list]
    probability: dict[int, list]  # 0-d torch tensors
    amount: int  # of priors


@dataclass
class Ownership:
    """Who owns each prior of an image."""

    owner: list[int | None]
    boosted: list  # boosted quality of (owner, prior), 0 where nobody owns it
    raw: list  # the same before boosting
    owned: dict[int, list[int]]  # object -> its priors, rank 0 first
    forced: dict[int, int | None]  # object -> the prior boosted for it in the first step
    orphans: list[int]


@dataclass
class Outcome:
    """`gt_index` of both tasks, and why the outcome may hinge on rounding."""

    cls: list[list[int]] = field(default_factory=list)
    loc: list[list[int]] = field(default_factory=list)
    close_calls: list[str] = field(default_factory=list)


def read_images(priors: Priors, predictions: Predictions, targets: Targets) -> list[Image]:
    """Every pairwise quantity, one scalar at a time."""
    anchors = [tuple(np.float32(v) for v in box) for box in priors.boxes.tolist()]
    images = []
    for b in range(targets.boxes.shape[0]):
        objects, prior_iou, proximity, regressed, probability = [], {}, {}, {}, {}
        decoded = [tuple(np.float32(v) for v in box) for box in predictions.boxes[b].float().tolist()]
        for g in range(targets.boxes.shape[1]):
            box = tuple(np.float32(v) for v in targets.boxes[b, g].tolist())
            if not targets.valid[b, g] or not is_usable(box):
                continue
            label = int(targets.labels[b, g])
            objects.append(g)
            prior_iou[g], proximity[g], regressed[g], probability[g] = [], [], [], []
            for a, anchor in enumerate(anchors):
                value = overlap(box, anchor)
                prior_iou[g].append(value)
                proximity[g].append(value if value > 0 else -centre_distance(box, anchor))
                regressed[g].append(overlap(decoded[a], box))
                probability[g].append(torch.sigmoid(predictions.logits[b, a, label].detach().float()))
        images.append(Image(objects, prior_iou, proximity, regressed, probability, len(anchors)))
    return images


def amplify_quality(image: Image, sigma: float, amplify: str) -> dict[int, list]:
    """Prior IoU raised by the classification score of the object's class."""
    amplified = {}
    for g in image.objects:
        amplified[g] = []
        for value, p in zip(image.prior_iou[g], image.probability[g], strict=True):
            if value == 0:
                amplified[g].append(ZERO)
            elif amplify == "power":
                amplified[g].append(np.float32(float(value) ** ((sigma - float(p)) / sigma)))
            elif amplify == "exponential":
                raised = np.float32(float(value) * math.exp(float(p) / sigma))
                amplified[g].append(min(ONE, raised))
            else:
                raise ValueError(amplify)
    return amplified


def find_owners(image: Image, quality: dict[int, list], force: bool = True, enough: float = 0.0) -> Ownership:
    """Steps 1 to 4 of ownership under one criterion; without `force` only the column maximum and the ranks."""
    keys = {g: quality[g] if max(quality[g], default=0) > 0 else image.proximity[g] for g in image.objects}
    boosted = {g: list(quality[g]) for g in image.objects}
    forced: dict[int, int | None] = {}
    if force:
        for g in image.objects:
            forced[g] = first_best(keys[g])
            if forced[g] is not None:
                boosted[g][forced[g]] = ONE

    owner: list[int | None] = []
    for a in range(image.amount):
        winner = first_best([boosted[g][a] for g in image.objects])
        owner.append(image.objects[winner] if winner is not None and boosted[image.objects[winner]][a] > 0 else None)

    orphans = []
    for g in image.objects:
        sufficient = [a for a in range(image.amount) if owner[a] == g and boosted[g][a] >= np.float32(enough)]
        if force and not sufficient:
            orphans.append(g)
    untouchable = set()
    for g in image.objects:
        mine = [a for a in range(image.amount) if owner[a] == g]
        if mine and g not in orphans:
            untouchable.add(mine[first_best([boosted[g][a] for a in mine])])
    for g in orphans[:MAX_ORPHANS]:
        free = [a for a in range(image.amount) if a not in untouchable]
        if free:
            taken = free[first_best([keys[g][a] for a in free])]
            owner[taken] = g
            boosted[g][taken] = ONE
            untouchable.add(taken)

    owned = {}
    for g in image.objects:
        mine = [a for a in range(image.amount) if owner[a] == g]
        owned[g] = sorted(mine, key=lambda a: (-boosted[g][a], a))
    return Ownership(
        owner=owner,
        boosted=[ZERO if g is None else boosted[g][a] for a, g in enumerate(owner)],
        raw=[ZERO if g is None else quality[g][a] for a, g in enumerate(owner)],
        owned=owned,
        forced=forced,
        orphans=orphans,
    )


def threshold_labels(found: Ownership, positive_iou: float, negative_iou: float) -> list[int]:
    """The static rule. A prior that nobody owns is negative whatever the thresholds."""
    labels = []
    for g, value in zip(found.owner, found.boosted, strict=True):
        if g is None:
            labels.append(NEGATIVE)
        elif value >= np.float32(positive_iou):
            labels.append(g)
        elif value >= np.float32(negative_iou):
            labels.append(IGNORED)
        else:
            labels.append(NEGATIVE)
    return labels


def top_labels(found: Ownership, positives: dict[int, int], kept: dict[int, int] | None = None) -> list[int]:
    """The first `positives[g]` priors of each object are positive, those up to `kept[g]` ignored."""
    labels = [NEGATIVE] * len(found.owner)
    for g, mine in found.owned.items():
        for rank, a in enumerate(mine):
            if rank < positives[g]:
                labels[a] = g
            elif kept is not None and rank < kept[g]:
                labels[a] = IGNORED
    return labels


def count_at_least(found: Ownership, threshold: float) -> dict[int, int]:
    """How many priors each object owns with a boosted quality of `threshold` or more."""
    return {g: sum(1 for a in mine if found.boosted[a] >= np.float32(threshold)) for g, mine in found.owned.items()}


def count_dynamic(found: Ownership, top_k: int, close_calls: list[str]) -> dict[int, int]:
    """At least one, else the whole part of the summed raw quality of the best `top_k` priors."""
    counts = {}
    for g, mine in found.owned.items():
        terms = [float(found.raw[a]) for a in mine[:top_k]]
        total = math.fsum(terms)
        if abs(total - round(total)) < 1e-5 and any(term * 1024 % 1 for term in terms):
            close_calls.append(f"object {g}: the qualities sum to {total}")
        counts[g] = max(1, math.floor(total))
    return counts


def find_close_calls(image: Image, quality: dict[int, list], name: str) -> list[str]:
    """Rows and columns of a quality matrix in which two different values are nearly equal."""
    lines = [(f"{name} of object {g}", quality[g]) for g in image.objects]
    for a in range(image.amount):
        lines.append((f"{name} of prior {a}", [quality[g][a] for g in image.objects]))
    close = []
    for where, values in lines:
        ordered = sorted(float(v) for v in values)
        for low, high in pairwise(ordered):
            if 0 < high - low < TOLERANCE:
                close.append(f"{where}: {low} and {high}")
    return close


def assign_max_iou(
    priors: Priors,
    predictions: Predictions,
    targets: Targets,
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    force_match: bool = True,
) -> Outcome:
    """The static baseline, the same for both tasks."""
    outcome = Outcome()
    for image in read_images(priors, predictions, targets):
        labels = threshold_labels(
            find_owners(image, image.prior_iou, force_match, positive_iou), positive_iou, negative_iou
        )
        outcome.cls.append(labels)
        outcome.loc.append(list(labels))
    return outcome


def assign_mutual_guidance(
    priors: Priors,
    predictions: Predictions,
    targets: Targets,
    *,
    sigma: float = 2.0,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    amplify: str = "power",
    count: str = "iou",
    top_k: int = 15,
    direction: str = "both",
) -> Outcome:
    """Each task's positives chosen by the other task's predictions."""
    outcome = Outcome()
    for image in read_images(priors, predictions, targets):
        static = find_owners(image, image.prior_iou, enough=positive_iou)
        static_labels = threshold_labels(static, positive_iou, negative_iou)
        positives = count_at_least(static, positive_iou)
        kept = count_at_least(static, negative_iou)

        if direction in ("both", "loc_to_cls"):
            found = find_owners(image, image.regressed, enough=positive_iou)
            if count == "iou":
                outcome.cls.append(top_labels(found, positives, kept))
            else:
                outcome.cls.append(top_labels(found, count_dynamic(found, top_k, outcome.close_calls)))
        else:
            outcome.cls.append(static_labels)

        if direction in ("both", "cls_to_loc"):
            amplified = amplify_quality(image, sigma, amplify)
            outcome.close_calls.extend(find_close_calls(image, amplified, "amplified quality"))
            found = find_owners(image, amplified, enough=positive_iou)
            if count == "iou":
                outcome.loc.append(top_labels(found, positives))
            else:
                outcome.loc.append(top_labels(found, count_dynamic(found, top_k, outcome.close_calls)))
        else:
            outcome.loc.append(list(static_labels))
    return outcome
