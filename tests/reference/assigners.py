"""The assigners once more, as slow and obvious as they can be written: loops over images, objects and priors.

Every number is one numpy float32 scalar, combined in the order a float32 implementation would, so that the IoUs are
the same to the last bit and exact ties and exact thresholds mean the same on both sides; powers, roots and logarithms
are float64. Scores may differ in the last bit between vectorised and scalar code: `close_calls` says whether an
example's outcome could hinge on that.
"""

import math
from dataclasses import dataclass, field
from functools import wraps

import numpy as np

from mgdet.structures import Predictions, Priors, Targets
from tests.reference.geometry import ONE, ZERO, Image, area, read_images
from tests.reference.ownership import (
    Ownership,
    adaptive_quality,
    best_quality,
    count_at_least,
    count_dynamic,
    find_owners,
    note_close_calls,
    owner_labels,
    threshold_labels,
    top_labels,
    whole_part,
)


@dataclass
class Outcome:
    """`gt_index` of both tasks, weights where they are not 1 for every positive, and what the outcome hinges on."""

    cls: list[list[int]] = field(default_factory=list)
    loc: list[list[int]] = field(default_factory=list)
    weights: list[list[float]] | None = None  # the same for both tasks, unless there are
    loc_weights: list[list[float]] | None = None
    close_calls: list[str] = field(default_factory=list)
    order_matters: list[str] = field(default_factory=list)


def image_by_image(label):
    """Make `label(image, **options)`, which gives the labels of both tasks and maybe weights, label a batch.

    The weights are one list for both tasks, or one for each.
    """

    @wraps(label)
    def assign(priors: Priors, predictions: Predictions, targets: Targets, *, adopt: bool = True, **options) -> Outcome:
        outcome = Outcome()
        for image in read_images(priors, predictions, targets):
            image.adopts = adopt
            cls, loc, *weights = label(image, **options)
            outcome.cls.append(cls)
            outcome.loc.append(loc)
            if weights:
                outcome.weights = [*(outcome.weights or []), weights[0]]
                outcome.loc_weights = [*(outcome.loc_weights or []), weights[-1]]
            outcome.close_calls += image.close_calls
            outcome.order_matters += image.order_matters
        return outcome

    return assign


def auto_top_k(image: Image, top_k: int | str) -> int:
    """How many qualities are summed."""
    return top_k if top_k != "auto" else 5 if image.layout.per_location == 1 else 15


# What one image's priors are to its objects ---------------------------------------------------------------------------


def amplify_quality(image: Image, base: dict[int, list], sigma: float, amplify: str) -> dict[int, list]:
    """A quality raised by the classification score of the object's class."""

    def amplified(g, a):
        value, p = float(base[g][a]), float(image.probability[g][a])
        if value == 0:
            return ZERO
        if amplify == "power":
            return np.float32(value ** ((sigma - p) / sigma))
        if amplify == "exponential":
            return min(ONE, np.float32(value * math.exp(p / sigma)))
        raise ValueError(amplify)

    return image.pairwise(amplified)


def centre_quality(image: Image, base_scale: float) -> dict[int, list]:
    """How central the prior is in the object, if the object's size suits the prior's level."""

    def quality(g, a):
        prior, sides, scale = image.priors[a], image.sides[g][a], np.sqrt(area(image.boxes[g]))
        base = np.float32(base_scale) * prior.stride
        large_enough = prior.is_first or scale >= np.float32(0.5) * base
        small_enough = prior.is_last or scale <= np.float32(2) * base
        return min(sides.balance) if sides.least > 0 and large_enough and small_enough else ZERO

    return image.pairwise(quality)


def centerness(image: Image) -> dict[int, list]:
    """FCOS's measure of how central a prior is in the object, 0 outside."""

    def quality(g, a):
        if not image.sides[g][a].least > 0:
            return ZERO
        horizontal, vertical = image.sides[g][a].balance
        return np.sqrt(horizontal * vertical)

    return image.pairwise(quality)


def is_near_centre(image: Image, g: int, a: int, radius: float) -> bool:
    """The prior is less than `radius` strides from the object's centre in both directions."""
    return bool(image.offset[g][a] < np.float32(radius) * image.priors[a].stride)


def is_in_range(image: Image, g: int, a: int, regress_range: tuple[float, float]) -> bool:
    """The distances to the object's sides suit the prior's level."""
    prior = image.priors[a]
    lower = ZERO if prior.is_first else np.float32(regress_range[0]) * prior.stride
    upper = np.float32(math.inf) if prior.is_last else np.float32(regress_range[1]) * prior.stride
    return bool(lower < image.sides[g][a].most <= upper)


def own_centre_samples(image: Image, radius: float | None, regress_range: tuple[float, float]) -> Ownership:
    """Each object's central priors on the level that suits its size; a prior of several goes to the smallest."""

    def quality(g, a):
        if not image.sides[g][a].least > 0 or not is_in_range(image, g, a, regress_range):
            return ZERO
        if radius is not None and not is_near_centre(image, g, a, radius):
            return ZERO
        return ONE / (ONE + min(area(image.boxes[g]), np.float32(1e30)))

    return find_owners(image, image.pairwise(quality), force="none")


def own_adaptive(image: Image, quality: dict[int, list], k: int) -> Ownership:
    """ATSS's rule for any quality."""
    return find_owners(image, adaptive_quality(image, quality, k), force="none")


# The assigners --------------------------------------------------------------------------------------------------------


@image_by_image
def assign_max_iou(
    image: Image,
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    force_match: bool = True,
    force_ties: bool = True,
):
    """The static baseline, the same for both tasks."""
    force = "none" if not force_match else "ties" if force_ties else "best"
    found = find_owners(image, image.prior_iou, force=force, adopt=force_match, enough=positive_iou)
    labels = threshold_labels(found, positive_iou, negative_iou)
    return labels, labels


@image_by_image
def assign_center_sampling(
    image: Image, *, radius: float | None = 1.5, regress_range: tuple[float, float] = (4.0, 8.0)
):
    """FCOS's rule, the same for both tasks."""
    labels = owner_labels(own_centre_samples(image, radius, regress_range))
    return labels, labels


@image_by_image
def assign_atss(image: Image, *, top_k: int = 9):
    """A threshold for each object, from the overlaps of the priors around its centre."""
    labels = owner_labels(own_adaptive(image, image.prior_iou, top_k))
    return labels, labels


@image_by_image
def assign_task_aligned(image: Image, *, alpha: float = 1.0, beta: float = 6.0, top_k: int = 13):
    """The priors inside an object that are best at both tasks now, weighted by how good they are."""
    u, p = image.regressed, image.probability
    alignment = image.pairwise(lambda g, a: np.float32(float(p[g][a]) ** alpha * float(u[g][a]) ** beta))
    inside = image.pairwise(lambda g, a: alignment[g][a] if image.sides[g][a].least > 0.01 else ZERO)
    selected = best_quality(image, inside, dict.fromkeys(image.objects, top_k))
    found = find_owners(image, image.pairwise(lambda g, a: u[g][a] if a in selected[g] else ZERO), force="none")

    weights = [0.0] * image.amount
    for g, mine in found.owned.items():
        largest = max((alignment[g][a] for a in mine), default=ZERO)
        if 0 < largest < 1e-36:
            image.close_calls.append(f"object {g}: alignments of {largest} have few digits")
        best = max((u[g][a] for a in mine), default=ZERO)
        for a in mine:
            weights[a] = float(alignment[g][a] / largest * best) if largest > 0 else 1.0
    labels = owner_labels(found)
    return labels, labels, weights


@image_by_image
def assign_simota(
    image: Image, *, radius: float = 2.5, top_k: int = 10, iou_weight: float = 3.0, cls_weight: float = 1.0
):
    """The cheapest priors of each object, as many as its best overlaps add up to.

    Roots and logarithms are of float32 scores: above a logit of about 9, where 1 - s has few digits left, other codes
    may rank otherwise.
    """
    in_box = image.pairwise(lambda g, a: image.sides[g][a].least > 0)
    in_centre = image.pairwise(lambda g, a: is_near_centre(image, g, a, radius))

    def quality(g, a):
        if not in_box[g][a] and not in_centre[g][a]:
            return 0.0
        bce = 0.0
        for label, p in enumerate(image.scores[a]):
            s = math.sqrt(float(p))
            right = s if label == image.labels[g] else 1 - s
            bce -= max(math.log(right), -100.0) if right > 0 else -100.0
        cost = cls_weight * bce + iou_weight * -math.log(float(image.regressed[g][a]) + 1e-8)
        return (1.0 if in_box[g][a] and in_centre[g][a] else 0.0) + 1 / (1 + cost)

    exact = image.pairwise(quality)
    note_close_calls(image, exact, "quality")
    rounded = image.pairwise(lambda g, a: np.float32(exact[g][a]))
    counts = {}
    for g in image.objects:
        overlaps = [float(image.regressed[g][a]) for a in range(image.amount) if in_box[g][a] or in_centre[g][a]]
        counts[g] = whole_part(image, g, sorted(overlaps, reverse=True)[:top_k])
    selected = best_quality(image, rounded, counts)
    found = find_owners(image, image.pairwise(lambda g, a: rounded[g][a] if a in selected[g] else ZERO), force="none")
    labels = owner_labels(found)
    return labels, labels


@image_by_image
def assign_mutual_guidance(
    image: Image,
    *,
    sigma: float = 2.0,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    force_ties: bool = False,
    amplify: str = "power",
    prior: str = "auto",
    count: str = "auto",
    top_k: int | str = "auto",
    candidates: int = 9,
    base_scale: float = 3.0,
    direction: str = "both",
):
    """Each task's positives chosen by the other task's predictions."""
    points = image.layout.points
    if count == "auto":
        count = "dynamic_k" if points else "iou"
    if prior == "auto":
        prior = "centre" if points and count != "mean_std" else "iou"
    base = image.prior_iou if prior == "iou" else centre_quality(image, base_scale)
    force = "ties" if force_ties else "best"
    static = None if points else find_owners(image, image.prior_iou, force=force, enough=positive_iou)

    def adaptive(quality):
        return owner_labels(own_adaptive(image, quality, candidates))

    def dynamic(quality):
        found = find_owners(image, quality, enough=positive_iou)
        return top_labels(found, count_dynamic(image, found, auto_top_k(image, top_k)))

    def guided(quality, ignore):
        if count == "mean_std":
            return adaptive(quality)
        if count == "dynamic_k":
            return dynamic(quality)
        kept = count_at_least(static, negative_iou) if ignore else None
        return top_labels(find_owners(image, quality, enough=positive_iou), count_at_least(static, positive_iou), kept)

    def unguided():
        if count == "mean_std":
            return adaptive(base)
        if points:
            return dynamic(base)
        return threshold_labels(static, positive_iou, negative_iou)

    cls = guided(image.regressed, ignore=True) if direction in ("both", "loc_to_cls") else unguided()
    if direction not in ("both", "cls_to_loc"):
        return cls, unguided()
    amplified = amplify_quality(image, base, sigma, amplify)
    note_close_calls(image, amplified, "amplified quality")
    return cls, guided(amplified, ignore=False)


@image_by_image
def assign_mutual_labeling(
    image: Image,
    *,
    direction: str,
    count: str,
    criterion: str,
    sigma: float = 2.0,
    alpha: float = 1 / 3,
    theta: float = 4.0,
    top_k: int | str = "auto",
    candidates: int = 9,
    region: str = "box",
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    force_ties: bool = True,
    radius: float | None = 1.5,
    regress_range: tuple[float, float] = (4.0, 8.0),
):
    """Each task's positives chosen by the other task's predictions among what the baseline could choose from."""
    points = image.layout.points
    u, p = image.regressed, image.probability
    closeness = centerness(image) if points else image.prior_iou

    def allowed(g, a):
        if not points:
            return image.prior_iou[g][a] > 0
        if not image.sides[g][a].least > 0 or not is_in_range(image, g, a, regress_range):
            return False
        return region == "box" or radius is None or is_near_centre(image, g, a, radius)

    def cls_quality(g, a):
        if not allowed(g, a):
            return ZERO
        if criterion == "regularised":
            return np.float32(float(u[g][a]) ** theta * float(p[g][a]) ** alpha)
        return u[g][a]

    def loc_quality(g, a):
        if not allowed(g, a):
            return ZERO
        if criterion == "score":
            return p[g][a]
        if criterion == "regularised":
            return np.float32(float(p[g][a]) * float(u[g][a]) ** (theta * alpha))
        if closeness[g][a] == 0:
            return ZERO
        return np.float32(float(closeness[g][a]) ** ((sigma - float(p[g][a])) / sigma))

    if points:
        enough = 0.0
        static = own_centre_samples(image, radius, regress_range)
        static_labels = owner_labels(static)
        positives = kept = {g: len(mine) for g, mine in static.owned.items()}
    else:
        enough = positive_iou
        static = find_owners(image, image.prior_iou, force="ties" if force_ties else "best", enough=positive_iou)
        static_labels = threshold_labels(static, positive_iou, negative_iou)
        positives, kept = count_at_least(static, positive_iou), count_at_least(static, negative_iou)

    def guided(quality, ignore):
        if count == "mean_std":
            return owner_labels(own_adaptive(image, quality, candidates))
        if count == "dynamic_k":
            found = find_owners(image, quality)
            return top_labels(found, count_dynamic(image, found, auto_top_k(image, top_k)))
        return top_labels(find_owners(image, quality, enough=enough), positives, kept if ignore else None)

    cls, loc = static_labels, static_labels
    if direction in ("both", "loc_to_cls"):
        quality = image.pairwise(cls_quality)
        if criterion == "regularised":
            note_close_calls(image, quality, "cls quality")
        cls = guided(quality, ignore=True)
    if direction in ("both", "cls_to_loc"):
        quality = image.pairwise(loc_quality)
        note_close_calls(image, quality, "loc quality")
        loc = guided(quality, ignore=False)
    return cls, loc
