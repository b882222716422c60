"""Who owns which prior of an image, how many of them are positive, and where that hinges on rounding."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mgdet.structures import IGNORED, NEGATIVE
from tests.reference.geometry import ONE, ZERO, Image

MAX_ORPHANS = 32
TOLERANCE = 4e-6
"""Two different qualities whose ratio is closer to 1 than this are not told apart reliably."""


@dataclass
class Ownership:
    """Who owns each prior of an image."""

    owner: list[int | None]
    boosted: list  # boosted quality of (owner, prior), 0 where nobody owns it
    raw: list  # the same before boosting
    owned: dict[int, list[int]]  # object -> its priors, rank 0 first
    orphans: list[int]


def first_best(values):
    """Index of the largest value, the lowest index of several equal ones; None of no values."""
    best = None
    for index, value in enumerate(values):
        if best is None or value > values[best]:
            best = index
    return best


def find_owners(
    image: Image, quality: dict[int, list], *, force: str = "best", adopt: bool = True, enough: float = 0.0
) -> Ownership:
    """The steps of ownership under one criterion."""
    keys = image.pairwise(lambda g, a: (quality[g][a], image.diou[g][a]))
    boosted = {g: list(quality[g]) for g in image.objects}
    if force == "best":
        for g in image.objects:
            best = first_best(keys[g])
            if best is not None:
                boosted[g][best] = ONE

    owner: list[int | None] = []
    for a in range(image.amount):
        column = [(boosted[g][a], *keys[g][a]) for g in image.objects]
        winner = first_best(column)
        owner.append(image.objects[winner] if winner is not None and column[winner][0] > 0 else None)
        if owner[a] is not None and column.count(column[winner]) > 1:
            image.order_matters.append(f"several objects have {column[winner]} at prior {a}")

    if force == "ties":
        for g in image.objects:
            most = max(quality[g])
            for a in range(image.amount):
                if quality[g][a] == most > 0:
                    boosted[owner[a]][a] = ONE

    if adopt and image.adopts:
        orphans = []
        for g in image.objects:
            if not any(owner[a] == g and boosted[g][a] >= np.float32(enough) for a in range(image.amount)):
                orphans.append(g)
        taken = set()
        for g in image.objects:
            mine = [a for a in range(image.amount) if owner[a] == g]
            if g not in orphans:
                taken.add(mine[first_best([keys[g][a] for a in mine])])
        wanted = []
        for g in orphans:
            free = [a for a in range(image.amount) if a not in taken]
            wanted += [free[first_best([keys[g][a] for a in free])]] if free else []
        if len(set(wanted)) < len(orphans) or len(orphans) > MAX_ORPHANS:
            image.order_matters.append(f"orphans {orphans} want priors {wanted}")
        for g in orphans[:MAX_ORPHANS]:
            free = [a for a in range(image.amount) if a not in taken]
            if free:
                chosen = free[first_best([keys[g][a] for a in free])]
                owner[chosen] = g
                boosted[g][chosen] = ONE
                taken.add(chosen)
    else:
        orphans = []

    owned = {}
    for g in image.objects:
        mine = [a for a in range(image.amount) if owner[a] == g]
        owned[g] = sorted(mine, key=lambda a: (-boosted[g][a], *(-key for key in keys[g][a]), a))
    return Ownership(
        owner=owner,
        boosted=[ZERO if g is None else boosted[g][a] for a, g in enumerate(owner)],
        raw=[ZERO if g is None else quality[g][a] for a, g in enumerate(owner)],
        owned=owned,
        orphans=orphans,
    )


def nearest_candidates(image: Image, g: int, k: int) -> list[int]:
    """All priors of the `k` locations of each level that are nearest to the object's centre."""
    candidates = []
    for level in range(1 + max(prior.level for prior in image.priors)):
        nearest = {}  # location -> its distance and the largest DIoU of its priors
        for a, prior in enumerate(image.priors):
            if prior.level == level:
                far, diou = nearest.get(prior.location, (image.distance[g][a], -ONE))
                nearest[prior.location] = far, max(diou, image.diou[g][a])
        chosen = sorted(nearest, key=lambda at: (nearest[at][0], -nearest[at][1], at))[:k]
        candidates += [a for a, p in enumerate(image.priors) if p.level == level and p.location in chosen]
    return candidates


def adaptive_quality(image: Image, quality: dict[int, list], k: int) -> dict[int, list]:
    """The quality where a candidate reaches mean + standard deviation of the object's candidates, else 0."""
    selected = {}
    for g in image.objects:
        candidates = nearest_candidates(image, g, k)
        values = [float(quality[g][a]) for a in candidates]
        mean = math.fsum(values) / len(values)
        spread = 0.0
        if len(values) > 1:
            spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
        threshold = mean + spread
        selected[g] = [ZERO] * image.amount
        for a, value in zip(candidates, values, strict=True):
            if value > 0 and value >= threshold and image.sides[g][a].least > 0.01:
                selected[g][a] = quality[g][a]
            if len(set(values)) > 1 and abs(value - threshold) < TOLERANCE * threshold:
                image.close_calls.append(f"object {g}: {value} at prior {a} is close to {threshold}")
    return selected


def best_quality(image: Image, score: dict[int, list], counts: dict[int, int]) -> dict[int, list[int]]:
    """The `counts[g]` priors with the largest score above 0, of each object; by DIoU, then by index, among equals."""
    selected = {}
    for g in image.objects:
        order = sorted(range(image.amount), key=lambda a: (-score[g][a], -image.diou[g][a], a))
        selected[g] = [a for a in order[: counts[g]] if score[g][a] > 0]
        if 0 < counts[g] < image.amount:
            high, low = float(score[g][order[counts[g] - 1]]), float(score[g][order[counts[g]]])
            if 0 < high - low < TOLERANCE * high:
                image.close_calls.append(f"object {g}: the last chosen has {high}, the next {low}")
    return selected


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


def owner_labels(found: Ownership) -> list[int]:
    """Every owned prior is positive."""
    return [NEGATIVE if g is None else g for g in found.owner]


def count_at_least(found: Ownership, threshold: float) -> dict[int, int]:
    """How many priors each object owns with a boosted quality of `threshold` or more."""
    return {g: sum(1 for a in mine if found.boosted[a] >= np.float32(threshold)) for g, mine in found.owned.items()}


def count_dynamic(image: Image, found: Ownership, top_k: int) -> dict[int, int]:
    """At least one, else the whole part of the summed raw quality of the best `top_k` priors."""
    return {g: whole_part(image, g, [float(found.raw[a]) for a in mine[:top_k]]) for g, mine in found.owned.items()}


def whole_part(image: Image, g: int, terms: list[float]) -> int:
    """max(1, floor(sum)) of an object's qualities."""
    total = math.fsum(terms)
    if abs(total - round(total)) < 1e-5 and any(term * 1024 % 1 for term in terms):
        image.close_calls.append(f"object {g}: the qualities sum to {total}")
    return max(1, math.floor(total))


def note_close_calls(image: Image, quality: dict[int, list], name: str) -> None:
    """Note rows and columns of a quality matrix in which two different values are nearly equal."""
    lines = [(f"{name} of object {g}", quality[g]) for g in image.objects]
    for a in range(image.amount):
        lines.append((f"{name} of prior {a}", [quality[g][a] for g in image.objects]))
    for where, values in lines:
        ordered = sorted(float(v) for v in values)
        for low, high in pairwise(ordered):
            if 0 < high - low < TOLERANCE * high:
                image.close_calls.append(f"{where}: {low} and {high}")
