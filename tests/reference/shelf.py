"""The assigners of other papers, as slow and obvious as those of `tests.reference.assigners`."""

import math
from itertools import pairwise

import numpy as np

from mgdet.structures import IGNORED, NEGATIVE
from tests.reference import assigners
from tests.reference.assigners import image_by_image, is_near_centre
from tests.reference.geometry import ZERO, Image
from tests.reference.losses import focal, giou_of
from tests.reference.ownership import (
    TOLERANCE,
    adaptive_quality,
    best_quality,
    find_owners,
    first_best,
    nearest_candidates,
    note_close_calls,
    owner_labels,
    top_labels,
    whole_part,
)


def logit_of(p: float) -> float:
    """What the losses take; scores of exactly 0 or 1 become the nearest that they can take."""
    p = min(max(p, 1e-40), 1 - 1e-16)
    return math.log(p) - math.log1p(-p)


def own_labels(image: Image, owner: list, value: dict[int, list], quality: dict[int, list]) -> list[int]:
    """Labels of a method that has chosen the owners itself; who has none adopts the best by `quality`."""
    chosen = image.pairwise(lambda g, a: max(value[g][a], np.float32(1e-30)) if owner[a] == g else ZERO)
    found = find_owners(image, chosen, force="none", adopt=False)
    if not image.adopts:
        return owner_labels(found)
    orphans = [g for g in image.objects if not found.owned[g]]
    taken = {mine[0] for mine in found.owned.values() if mine}
    wanted = []
    labels = owner_labels(found)
    for g in orphans:
        keys = [(quality[g][a], image.diou[g][a]) for a in range(image.amount)]
        free = [a for a in range(image.amount) if a not in taken]
        wanted.append(first_best(keys))
        if free and len(wanted) <= 32:
            best = free[first_best([keys[a] for a in free])]
            labels[best] = g
            taken.add(best)
    if orphans and (len(set(wanted)) < len(orphans) or set(wanted) & {m[0] for m in found.owned.values() if m}):
        image.order_matters.append(f"orphans {orphans} want priors {wanted}")
    return labels


@image_by_image
def assign_free_anchor(image: Image, *, bag: int = 50):
    """The best overlaps of each object."""
    selected = best_quality(image, image.prior_iou, dict.fromkeys(image.objects, bag))
    quality = image.pairwise(lambda g, a: image.prior_iou[g][a] if a in selected[g] else ZERO)
    labels = owner_labels(find_owners(image, quality, force="none"))
    return labels, labels


@image_by_image
def assign_ddod(image: Image, *, alpha_cls: float = 0.8, alpha_loc: float = 0.5, top_k: int = 9):
    """ATSS's rule on a mix of score and overlap, one for each task."""
    tasks = []
    for alpha in (alpha_cls, alpha_loc):

        def mixed(g, a, alpha=alpha):
            p, u = float(image.probability[g][a]), float(image.regressed[g][a])
            return np.float32(p ** (1 - alpha) * u**alpha)

        quality = image.pairwise(mixed)
        note_close_calls(image, quality, f"quality of alpha {alpha}")
        tasks.append(owner_labels(find_owners(image, adaptive_quality(image, quality, top_k), force="none")))
    return tuple(tasks)


@image_by_image
def assign_dla(image: Image, *, top_k: int = 9):
    """Overlap of the prediction and of the anchor, added, against the sum of both thresholds."""
    selected = image.pairwise(lambda g, a: ZERO)
    for g in image.objects:
        candidates = nearest_candidates(image, g, top_k)
        threshold = 0.0
        for quality in (image.regressed, image.prior_iou):
            values = [float(quality[g][a]) for a in candidates]
            mean = math.fsum(values) / len(values)
            spread = math.fsum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)
            threshold += mean + math.sqrt(spread)
        for a in candidates:
            value = image.regressed[g][a] + image.prior_iou[g][a]
            if value > 0 and float(value) >= threshold and image.sides[g][a].least > 0.01:
                selected[g][a] = value
            if abs(float(value) - threshold) < TOLERANCE * threshold:
                image.close_calls.append(f"object {g}: {value} at prior {a} is close to {threshold}")
    labels = owner_labels(find_owners(image, selected, force="none"))
    return labels, labels


@image_by_image
def assign_musu(
    image: Image,
    *,
    theta: float = 4.0,
    alpha: float = 1 / 3,
    bag: float = 0.1,
    temperature: float = 1.0,
    growth: float = 0.5,
    cls_temperature: float = 2.0,
):
    """Bags of the priors that do well in both tasks, weighted by their rank in each."""
    u, p = image.regressed, image.probability
    both = image.pairwise(
        lambda g, a: np.float32(float(p[g][a]) * float(u[g][a]) ** theta) if image.sides[g][a].least > 0 else ZERO
    )
    bags = {}
    for g in image.objects:
        limit = np.float32(bag) * max(both[g])
        bags[g] = [a for a in range(image.amount) if both[g][a] > limit]
        if any(0 < abs(float(v) - float(limit)) <= TOLERANCE * float(limit) for v in both[g]):
            image.close_calls.append(f"object {g}: {limit} bounds its bag")
    found = find_owners(image, image.pairwise(lambda g, a: u[g][a] if a in bags[g] else ZERO), force="none")

    def weights(value, factor):
        exact = image.pairwise(value)
        note_close_calls(image, exact, "value")
        out = [0.0] * image.amount
        for g, mine in found.owned.items():
            order = sorted(mine, key=lambda a: (-exact[g][a], -image.diou[g][a], a))
            for rank, a in enumerate(order):
                tau = factor * temperature * len(mine) ** growth
                out[a] = max(math.exp(-rank / tau), 1.1754943508222875e-38)
        return out

    cls = weights(lambda g, a: np.float32(float(u[g][a]) ** theta * float(p[g][a]) ** alpha), cls_temperature)
    loc = weights(lambda g, a: np.float32(float(p[g][a]) * float(u[g][a]) ** (theta * alpha)), 1.0)
    labels = owner_labels(found)
    return labels, labels, cls, loc


# Losses of candidates -------------------------------------------------------------------------------------------------


def focal_losses(image: Image, a: int) -> tuple[list[float], list[float]]:
    """Of one prior, for each class: against 1 and against 0."""
    logits = [logit_of(float(p)) for p in image.scores[a]]
    return [focal(x, 1.0, 0.25, 2.0) for x in logits], [focal(x, 0.0, 0.25, 2.0) for x in logits]


def classification_cost(image: Image, g: int, a: int) -> float:
    """Focal loss of a prior's scores against the object's class."""
    present, absent = focal_losses(image, a)
    label = image.labels[g]
    return math.fsum(absent) - absent[label] + present[label]


def box_cost(image: Image, g: int, a: int) -> float:
    """1 - GIoU, 2 where a coordinate is not finite or the area of the box around both is beyond float32."""
    box, own = [float(v) for v in image.decoded[a]], [float(v) for v in image.boxes[g]]
    if not all(math.isfinite(v) for v in box):
        return 2.0
    width, height = max(box[2], own[2]) - min(box[0], own[0]), max(box[3], own[3]) - min(box[1], own[1])
    if max(width, 0.0) * max(height, 0.0) > float(np.finfo(np.float32).max):
        return 2.0
    fit = giou_of(box, own)
    return 1 - min(1.0, max(-1.0, fit))


def mixture_bound(image: Image, g: int, losses: list[float]) -> float:
    """The largest loss that belongs to the better of two normal distributions, up to its most likely one."""
    if len(losses) < 2:
        return -math.inf
    weight, mean, variance = [0.5, 0.5], [min(losses), max(losses)], [1.0, 1.0]

    def likelihoods(x):
        return [
            math.log(weight[c])
            - 0.5 * (math.log(2 * math.pi) + math.log(variance[c]) + (x - mean[c]) ** 2 / variance[c])
            for c in (0, 1)
        ]

    def together(pair):
        return max(pair) + math.log(math.fsum(math.exp(v - max(pair)) for v in pair))

    before = -math.inf
    for _ in range(100):
        each = [likelihoods(x) for x in losses]
        average = math.fsum(together(pair) for pair in each) / len(losses)
        shares = [[math.exp(pair[c] - together(pair)) for pair in each] for c in (0, 1)]
        for c in (0, 1):
            size = math.fsum(shares[c]) + 10 * np.finfo(np.float64).eps
            mean[c] = math.fsum(s * x for s, x in zip(shares[c], losses, strict=True)) / size
            square = math.fsum(s * x * x for s, x in zip(shares[c], losses, strict=True)) / size
            variance[c] = square - mean[c] ** 2 + 1e-6
            weight[c] = size / len(losses)
        change, before = abs(average - before), average
        if abs(change - 1e-3) < 1e-6:
            image.close_calls.append(f"object {g}: the fit nearly ends")
        if change < 1e-3:
            break
    each = [likelihoods(x) for x in losses]
    foreground = [x for x, (one, two) in zip(losses, each, strict=True) if one >= two]
    if any(0 < abs(one - two) < 1e-4 for one, two in each):
        image.close_calls.append(f"object {g}: a loss lies between the distributions")
    if not foreground:
        return -math.inf
    density = sorted(((together(likelihoods(x)), -x) for x in foreground), reverse=True)
    if any(0 < density[0][0] - value < 1e-4 for value, _ in density):
        image.close_calls.append(f"object {g}: two losses are nearly equally likely")
    return -density[0][1]


@image_by_image
def assign_paa(image: Image, *, candidate_iou: float = 0.1, top_k: int = 9, box_weight: float = 1.3):
    """The better of two groups of candidates by their losses."""
    found = find_owners(image, image.prior_iou, force="ties", adopt=False)
    losses = {}
    owner: list = [None] * image.amount
    for g, mine in found.owned.items():
        candidates = [a for a in mine if found.boosted[a] >= np.float32(candidate_iou)]
        for a in candidates:
            losses[a] = float(np.float32(classification_cost(image, g, a) + box_weight * box_cost(image, g, a)))
        ordered = sorted(losses[a] for a in candidates)
        if any(0 < abs(x - y) < 1e-5 * max(1.0, x) for x, y in pairwise(ordered)):
            image.close_calls.append(f"object {g}: losses are nearly equal")
        chosen = []
        for level in range(1 + max(prior.level for prior in image.priors)):
            here = [a for a in candidates if image.priors[a].level == level]
            chosen += sorted(here, key=lambda a: (losses[a], -image.diou[g][a], a))[:top_k]
        bound = mixture_bound(image, g, sorted(losses[a] for a in chosen))
        for a in chosen:
            if losses[a] <= bound:
                owner[a] = g
    value = image.pairwise(lambda g, a: np.float32(1 / (1 + losses[a])) if owner[a] == g else ZERO)
    labels = own_labels(image, owner, value, image.prior_iou)
    return labels, labels


@image_by_image
def assign_ota(
    image: Image,
    *,
    radius: float = 2.5,
    top_k: int = 20,
    iou_weight: float = 1.5,
    epsilon: float = 0.1,
    iterations: int = 50,
):
    """Optimal transport, with every prior in the plan and 10^6 for what is no candidate."""
    able = image.pairwise(lambda g, a: bool(image.sides[g][a].least > 0.01 and is_near_centre(image, g, a, radius)))
    rows = [g for g in image.objects if any(able[g])]
    supply = {
        g: whole_part(
            image,
            g,
            sorted((float(image.regressed[g][a]) * able[g][a] for a in range(image.amount)), reverse=True)[:top_k],
        )
        for g in rows
    }
    priors = range(image.amount)
    kernel = []
    for g in rows:
        costs = [
            classification_cost(image, g, a)
            - iou_weight * math.log(max(float(image.regressed[g][a]), 1.1920929e-07))
            + (0.0 if able[g][a] else 1e6)
            for a in priors
        ]
        kernel.append([-cost / epsilon for cost in costs])
    kernel.append([-math.fsum(focal_losses(image, a)[1]) / epsilon for a in priors])
    wanted = [float(supply[g]) for g in rows]
    wanted.append(max(0.0, image.amount - sum(wanted)))

    def log_sum(values):
        most = max(values)
        return most + math.log(math.fsum(math.exp(v - most) for v in values))

    row, column = [1.0] * len(kernel), [1.0] * image.amount
    for _ in range(iterations):
        column = [math.log(1 + 1e-8) - log_sum([k[a] + r for k, r in zip(kernel, row, strict=True)]) for a in priors]
        row = [
            math.log(w + 1e-8) - log_sum([k[a] + column[a] for a in priors])
            for w, k in zip(wanted, kernel, strict=True)
        ]
    plan = [[k[a] + r + column[a] for a in priors] for k, r in zip(kernel, row, strict=True)]
    scaled = [[np.float32(v - max(line)) for v in line] for line in plan]
    owner: list = [None] * image.amount
    for a in priors:
        able_here = [i for i, g in enumerate(rows) if able[g][a]]
        if not able_here:
            continue

        def key(i, a=a):
            return scaled[i][a], np.float32(math.exp(plan[i][a])), image.diou[rows[i]][a], -i

        best = max(able_here, key=key)
        if scaled[best][a] >= scaled[-1][a]:
            owner[a] = rows[best]
        rivals = [float(scaled[i][a]) for i in (*able_here, -1) if i != best]
        if any(abs(float(scaled[best][a]) - v) < 1e-3 * max(1.0, abs(v)) for v in rivals):
            image.close_calls.append(f"prior {a}: nearly as much from several")
    value = image.pairwise(lambda g, a: np.float32(math.exp(plan[rows.index(g)][a])) if owner[a] == g else ZERO)
    labels = own_labels(image, owner, value, image.prior_iou)
    return labels, labels


# The control ----------------------------------------------------------------------------------------------------------

WORD = 2**64


def hashed(value: int) -> int:
    """SplitMix64's last steps."""
    value = (value + 0x1E3779B97F4A7C15) % WORD
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB % WORD
    return value ^ value >> 31


def bits(value) -> int:
    """A float32 as a signed integer, in 64 bits."""
    return int((np.float32(value) + np.float32(0)).view(np.int32)) % WORD


OTHERS = {
    "max_iou": assigners.assign_max_iou,
    "center_sampling": assigners.assign_center_sampling,
    "atss": assigners.assign_atss,
    "task_aligned": assigners.assign_task_aligned,
    "simota": assigners.assign_simota,
    "mutual_guidance": assigners.assign_mutual_guidance,
}


def assign_permutation(priors, predictions, targets, *, of="auto", redraw="step", seed=0, floor=0.0, adopt=True):
    """As many for each object as the other method, by lot."""
    if of == "auto":
        of = "center_sampling" if priors.layout.points else "max_iou"
    other = OTHERS[of](priors, predictions, targets, adopt=adopt)
    keys = [
        sum(int(v) for v in row.float().contiguous().view(-1).add(0.0).numpy().view(np.int32)) % WORD
        for row in predictions.logits[..., 0].float()
    ]
    position = iter(range(len(keys)))
    shared = of not in ("mutual_guidance", "mutual_labeling")

    @image_by_image
    def draw(image: Image):
        b = next(position)

        def labels(task, found):
            start = hashed(2 * seed + task)
            start = hashed(start ^ keys[b]) if redraw == "step" else start

            def lot(g, a):
                outside = priors.layout.points and not image.sides[g][a].least > 0
                if not image.prior_iou[g][a] > np.float32(floor) or outside:
                    return ZERO
                key = start ^ image.labels[g]
                for side in image.boxes[g]:
                    key = hashed(key ^ bits(side))
                return np.float32(((hashed(key ^ hashed(a)) >> 40 & 0xFFFFFF) + 1) / 2**24)

            owners = find_owners(image, image.pairwise(lot), force="none")
            drawn = top_labels(owners, {g: found.count(g) for g in image.objects})
            return [IGNORED if d == NEGATIVE and f == IGNORED else d for d, f in zip(drawn, found, strict=True)]

        cls = labels(0, other.cls[b])
        return cls, cls if shared else labels(1, other.loc[b])

    outcome = draw(priors, predictions, targets, adopt=adopt)
    outcome.close_calls += other.close_calls
    outcome.order_matters += other.order_matters
    return outcome
