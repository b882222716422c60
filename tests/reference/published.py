"""The references' own rules in loops: what each paper's code labels, before any rule of mgdet's.

What a reference leaves to its library, which of several equal values comes first, is decided here as in mgdet: by the
larger DIoU, then by the lower index. Objects without an area are left out (`read_images`), and nothing is adopted.
"""

import math

import numpy as np

from mgdet.structures import IGNORED, NEGATIVE
from tests.reference.assigners import Outcome, image_by_image, is_near_centre
from tests.reference.geometry import ONE, ZERO, Image, area
from tests.reference.ownership import TOLERANCE, first_best, note_close_calls, whole_part

__all__ = ["Outcome", "atss", "fcos", "match", "matcher", "mutual_match", "soft_ranks", "tood", "yolox"]


def best_prior(image: Image, quality: dict[int, list], g: int) -> int:
    """The prior that is worth most to an object."""
    return first_best([(quality[g][a], image.diou[g][a]) for a in range(image.amount)])


def best_object(image: Image, quality: dict[int, list], a: int, among: list[int] | None = None) -> int | None:
    """The object to which a prior is worth most; None of none."""
    objects = image.objects if among is None else among
    found = first_best([(quality[g][a], image.diou[g][a]) for g in objects])
    return None if found is None else objects[found]


def top(image: Image, quality: dict[int, list], g: int, k: int) -> list[int]:
    """The k priors that are worth most to an object, the best first."""
    return sorted(range(image.amount), key=lambda a: (-quality[g][a], -image.diou[g][a], a))[:k]


def threshold_label(value, g: int, high: float, low: float) -> int:
    """Positive, ignored or negative."""
    return g if value >= np.float32(high) else IGNORED if value >= np.float32(low) else NEGATIVE


@image_by_image
def matcher(image: Image, *, high: float = 0.5, low: float = 0.4):
    """torchvision's `Matcher` with low-quality matches: RetinaNet."""
    iou = image.prior_iou
    owner = [best_object(image, iou, a) for a in range(image.amount)]
    labels = [NEGATIVE if g is None else threshold_label(iou[g][a], g, high, low) for a, g in enumerate(owner)]
    for g in image.objects:
        most = max(iou[g])
        if most == 0:
            image.order_matters.append(f"object {g} overlaps nothing: torchvision labels all anchors that it misses")
            continue
        for a in range(image.amount):
            if iou[g][a] == most:
                labels[a] = owner[a]
    return labels, labels


@image_by_image
def match(image: Image, *, shared: str, high: float = 0.5, low: float = 0.4):
    """The baseline in Mutual Guidance's code of 2020: each object's one best anchor is its own.

    An anchor that is the best of several objects is the last one's in that code, and here of the one with the larger
    IoU; `shared` says which: `last` or `larger`.
    """
    iou = image.prior_iou
    forced: dict[int, list[int]] = {}
    for g in image.objects:
        forced.setdefault(best_prior(image, iou, g), []).append(g)
    labels = []
    for a in range(image.amount):
        if a in forced:
            labels.append(forced[a][-1] if shared == "last" else best_object(image, iou, a, forced[a]))
            if len(forced[a]) > 1:
                image.order_matters.append(f"anchor {a} is the best of {forced[a]}")
        else:
            g = best_object(image, iou, a)
            labels.append(NEGATIVE if g is None else threshold_label(iou[g][a], g, high, low))
    return labels, labels


def kept_candidates(image: Image, quality: dict[int, list], shared: str) -> tuple[dict[int, list], dict[int, list]]:
    """Qualities after an object's best is set to 1, and to which objects each prior is still a candidate.

    `shared: both` keeps all column maxima, as the official code does; `one` only the best claim to each prior.
    """
    forced = {g: list(quality[g]) for g in image.objects}
    for g in image.objects:
        forced[g][best_prior(image, quality, g)] = ONE
    kept = {g: [False] * image.amount for g in image.objects}
    for a in range(image.amount):
        claims = [(forced[g][a], quality[g][a], image.diou[g][a]) for g in image.objects]
        winner = first_best(claims)
        if winner is None or claims[winner][0] == 0:
            continue
        tied = [g for g, claim in zip(image.objects, claims, strict=True) if claim[0] == claims[winner][0]]
        if len(tied) > 1:
            image.order_matters.append(f"prior {a} is worth as much to {tied}")
        for g in tied if shared == "both" else [image.objects[winner]]:
            kept[g][a] = True
    return forced, kept


@image_by_image
def mutual_match(image: Image, *, shared: str, sigma: float = 2.0, high: float = 0.5, low: float = 0.4):
    """Mutual Guidance's code of 2020, with its correction of 2021: nothing of quality 0 is chosen."""
    iou, p = image.prior_iou, image.probability
    amplified = image.pairwise(
        lambda g, a: ZERO if iou[g][a] == 0 else np.float32(float(iou[g][a]) ** ((sigma - float(p[g][a])) / sigma))
    )
    note_close_calls(image, amplified, "amplified")
    static, counted = kept_candidates(image, iou, shared)

    def count(g: int, threshold: float) -> int:
        return sum(counted[g][a] and static[g][a] >= np.float32(threshold) for a in range(image.amount))

    def choose(quality: dict[int, list], ignore: bool) -> list[int]:
        _, kept = kept_candidates(image, quality, shared)
        labels, value = [NEGATIVE] * image.amount, [ZERO] * image.amount
        for g in image.objects:
            mine = [a for a in top(image, quality, g, image.amount) if kept[g][a]]
            for rank, a in enumerate(mine[: count(g, low)]):
                if rank < count(g, high):
                    if labels[a] < 0 or quality[g][a] > value[a]:
                        labels[a], value[a] = g, quality[g][a]
                elif ignore and labels[a] == NEGATIVE:
                    labels[a] = IGNORED
        return labels

    return choose(image.regressed, ignore=True), choose(amplified, ignore=False)


@image_by_image
def fcos(image: Image, *, radius: float | None = 1.5, low: float = 4.0, high: float = 8.0):
    """FCOS: locations in the middle of an object, on the level of its size, belong to the smallest object.

    A distance that equals a bound belongs to the finer level. FCOS's own code gives it to both, torchvision's to none.
    """
    labels = []
    for a, prior in enumerate(image.priors):
        chosen, smallest = NEGATIVE, (math.inf, math.inf)
        for g in image.objects:
            sides = image.sides[g][a]
            inside = sides.least > 0 and (radius is None or is_near_centre(image, g, a, radius))
            large_enough = prior.is_first or sides.most > np.float32(low) * prior.stride
            small_enough = prior.is_last or sides.most <= np.float32(high) * prior.stride
            size = (min(float(area(image.boxes[g])), 1e30), -float(image.diou[g][a]))
            if inside and large_enough and small_enough and size < smallest:
                chosen, smallest = g, size
        labels.append(chosen)
    for g in image.objects:
        others = [area(image.boxes[o]) for o in image.objects if o != g]
        mine = area(image.boxes[g])
        if any(0 < abs(float(o) - float(mine)) < TOLERANCE * float(mine) for o in others):
            image.close_calls.append(f"object {g} is nearly as large as another")
    return labels, labels


@image_by_image
def atss(image: Image, *, k: int = 9, of: str = "locations"):
    """ATSS: `of` locations in the authors' later code, of anchors in their first one and in MMDetection."""
    iou = image.prior_iou
    selected: dict[int, list[int]] = {}
    for g in image.objects:
        candidates = []
        for level in sorted({prior.level for prior in image.priors}):
            on_level = [a for a, prior in enumerate(image.priors) if prior.level == level]
            groups: dict[int, list[int]] = {}
            for a in on_level:
                groups.setdefault(image.priors[a].location if of == "locations" else a, []).append(a)
            nearest = sorted(
                groups.items(),
                key=lambda item, g=g: (image.distance[g][item[1][0]], -max(image.diou[g][a] for a in item[1]), item[0]),
            )
            candidates += [a for _, group in nearest[:k] for a in group]
        values = [float(iou[g][a]) for a in candidates]
        mean = math.fsum(values) / len(values)
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))
        for a, value in zip(candidates, values, strict=True):
            if len(set(values)) > 1 and abs(value - mean - spread) < TOLERANCE * (mean + spread):
                image.close_calls.append(f"object {g}: {value} is close to the threshold")
            if value >= mean + spread and image.sides[g][a].least > 0.01 and value > 0:
                selected.setdefault(a, []).append(g)
    labels = [best_object(image, iou, a, selected[a]) if a in selected else NEGATIVE for a in range(image.amount)]
    return labels, labels


@image_by_image
def tood(image: Image, *, alpha: float = 1.0, beta: float = 6.0, k: int = 13):
    """TOOD: of the k best aligned of an object those whose centre is inside; soft targets."""
    u, p = image.regressed, image.probability
    t = image.pairwise(lambda g, a: np.float32(float(p[g][a]) ** alpha * float(u[g][a]) ** beta))
    note_close_calls(image, t, "alignment")
    selected: dict[int, list[int]] = {}
    for g in image.objects:
        for a in top(image, t, g, k):
            if t[g][a] > 0 and image.sides[g][a].least > 0.01:
                selected.setdefault(a, []).append(g)
    labels = [best_object(image, u, a, selected[a]) if a in selected else NEGATIVE for a in range(image.amount)]
    weights = [0.0] * image.amount
    for a, g in enumerate(labels):
        if g >= 0:
            mine = [b for b in range(image.amount) if labels[b] == g]
            most = max(t[g][b] for b in mine)
            if most < 1e-36:
                image.close_calls.append(f"object {g}: alignments of {most} have few digits")
            weights[a] = float(t[g][a] / most * max(u[g][b] for b in mine))
    return labels, labels, weights


@image_by_image
def yolox(image: Image, *, version: str, k: int = 10):
    """SimOTA as in YOLOX 0.3.0, or as since January 2023 (`yolox-2023`), for an objectness of 1."""
    new = version == "yolox-2023"
    inside = image.pairwise(lambda g, a: image.sides[g][a].least > 0)
    central = image.pairwise(lambda g, a: is_near_centre(image, g, a, 1.5 if new else 2.5))
    first = central if new else image.pairwise(lambda g, a: inside[g][a] and central[g][a])
    mine = central if new else image.pairwise(lambda g, a: inside[g][a] or central[g][a])
    candidates = [a for a in range(image.amount) if any(mine[g][a] for g in image.objects)]

    def worth(g: int, a: int) -> float:
        """Falls with the cost; what is not in the object's own middle costs more than all that is."""
        if a not in candidates:
            return 0.0
        cost = -3 * math.log(float(image.regressed[g][a]) + 1e-8)
        for label, p in enumerate(image.scores[a]):
            right = math.sqrt(float(p)) if label == image.labels[g] else 1 - math.sqrt(float(p))
            cost -= max(math.log(right), -100.0) if right > 0 else -100.0
        return float(first[g][a]) + 1 / (1 + cost)

    exact = image.pairwise(worth)
    note_close_calls(image, exact, "cost")
    rounded = image.pairwise(lambda g, a: np.float32(exact[g][a]))
    selected: dict[int, list[int]] = {}
    for g in image.objects:
        overlaps = sorted((float(image.regressed[g][a]) for a in candidates), reverse=True)
        for a in top(image, rounded, g, whole_part(image, g, overlaps[:k])):
            if rounded[g][a] > 0:
                selected.setdefault(a, []).append(g)
    labels = [NEGATIVE] * image.amount
    for a, objects in selected.items():
        labels[a] = objects[0] if len(objects) == 1 else best_object(image, rounded, a)
    return labels, labels


def soft_ranks(values: list[float], strength: float = 1.0) -> list[float]:
    """Soft ranks as in Correlation Loss's code: the projection of values / strength onto the permutahedron.

    By isotonic regression of the sorted values less (n, ..., 1), pooling violators (Blondel et al., ICML 2020).
    """
    n = len(values)
    order = sorted(range(n), key=lambda i: -values[i])
    blocks: list[list[float]] = []  # [sum, size] of each block, whose means must fall
    for place, i in enumerate(order):
        blocks.append([values[i] / strength - (n - place), 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] <= blocks[-1][0] / blocks[-1][1]:
            total, size = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += size
    fitted = [total / size for total, size in blocks for _ in range(int(size))]
    ranks = [0.0] * n
    for place, i in enumerate(order):
        ranks[i] = values[i] / strength - fitted[place]
    return ranks
