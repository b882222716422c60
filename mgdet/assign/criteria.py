"""Criteria: how well each prior suits each object. `mgdet.assign.ownership` says what is done with them."""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from mgdet.assign.geometry import (
    MARGIN,
    CandidateKind,
    Sides,
    around,
    box_centres,
    footprint_places,
    nearest_per_level,
    outer_levels,
)
from mgdet.assign.pieces import Criterion, Quality
from mgdet.assign.places import ALL, At, Places, indices, take
from mgdet.boxes import box_area, giou, iou, pairwise_iou
from mgdet.structures import Predictions, Priors, Targets

REMEMBERED = 2**22
"""Qualities that `remembered` keeps for an image: 48 MiB with their indices."""


def prior_iou(priors: Priors) -> Criterion:
    """IoU_anchor: overlap of the objects with the anchors, or with the squares of 8 strides around points."""
    return _iou_with(footprint_places(priors))


def regressed_iou(predictions: Predictions) -> Criterion:
    """IoU_regressed: overlap of the objects with the boxes that are now predicted."""
    return _iou_with(Places(predictions.boxes))


def _iou_with(places: Places) -> Criterion:
    def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
        return pairwise_iou(boxes, places.at(at))

    return Criterion(quality, places.touching)


def class_score(predictions: Predictions) -> Criterion:
    """p: the score that each prior now gives to the class of each object."""

    def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
        return sigmoid(of_label(predictions.logits, labels, at)).nan_to_num(nan=0.0)

    return Criterion(quality)


def centre_prior(priors: Priors, base_scale: float) -> Criterion:
    """Mutual Guidance's prior for points (authors' code since October 2021, docs/papers/mutual_guidance.md).

    min of min(l, r) / max(l, r) and min(t, b) / max(t, b) inside the object, on the levels whose base size of
    `base_scale` strides is at most twice and at least half the square root of the object's area; the finest level takes
    all that is smaller, the coarsest all that is larger. 0 elsewhere.
    """

    def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
        here = priors.take(at)
        first, last = outer_levels(here)
        base = base_scale * here.strides
        horizontal, vertical = Sides.of(boxes, here).evenness()
        size = box_area(boxes).sqrt().unsqueeze(-1)
        fits = ((size >= 0.5 * base) | first) & ((size <= 2 * base) | last)
        return torch.where(fits, torch.minimum(horizontal, vertical), 0.0)

    return Criterion(quality, around(priors).touching)


def centerness(priors: Priors) -> Criterion:
    """FCOS's centre-ness of a location in an object (Tian et al., ICCV 2019, equation 3); 0 outside."""

    def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
        horizontal, vertical = Sides.of(boxes, priors.take(at)).evenness()
        return (horizontal * vertical).sqrt()

    return Criterion(quality, around(priors).touching)


def centre_gaussian(boxes: Tensor, priors: Priors, mean: Tensor, sigma: Tensor) -> Tensor:
    """AutoAssign's centre prior G of priors for objects, `[B, g, n]` (Zhu et al., 2020, section 3.3).

    A Gaussian of the distance of the centres in strides, with mean and width `[B, g, 2]` in x and y.
    """
    distance = (box_centres(priors.boxes) - box_centres(boxes).unsqueeze(-2)) / priors.strides[:, None]
    return torch.exp(-0.5 * ((distance - mean.unsqueeze(-2)) / sigma.unsqueeze(-2)) ** 2).prod(dim=-1)


def confidence(predictions: Predictions, power: float, fit: str = "giou") -> Quality:
    """AutoAssign's P and DW's t, in `tie_safe_dtype`: score of the object's class, times how well the box fits.

    The fit is exp(-`power` * GIoU loss), or IoU^`power`. A quality branch's output is a factor of the score.
    """
    score, places, dtype = class_score(predictions), Places(predictions.boxes), tie_safe_dtype(predictions.logits)
    branch = None if predictions.quality is None else sigmoid(predictions.quality).nan_to_num(nan=0.0)

    def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
        p, decoded = score.quality(boxes, labels, at).to(dtype), places.at(at).unsqueeze(-3)
        if branch is not None:
            p = p * take(branch, at).unsqueeze(1)
        if fit == "iou":
            return p * iou(decoded, boxes.unsqueeze(-2)).to(dtype) ** power
        overlap = defined_giou(decoded, boxes.unsqueeze(-2))
        return p * torch.exp(-power * (1 - overlap.to(dtype)))

    return quality


def defined_giou(decoded: Tensor, boxes: Tensor) -> Tensor:
    """Elementwise GIoU; -1, that of boxes infinitely apart, where a coordinate is not finite or an area overflows."""
    defined = decoded.isfinite().all(dim=-1)
    return giou(decoded, boxes).where(defined, -1.0).nan_to_num(nan=-1.0, posinf=-1.0, neginf=-1.0).clamp(-1, 1)


def amplified(prior: Criterion, predictions: Predictions, sigma: float, form: str = "power") -> Criterion:
    """IoU_amplified (Zhang et al., ACCV 2020): a prior's quality raised by its score, 0 exactly where that is 0."""
    score = class_score(predictions)
    dtype = tie_safe_dtype(predictions.logits)

    def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
        base, p = (each.quality(boxes, labels, at).to(dtype) for each in (prior, score))
        raised = base ** ((sigma - p) / sigma) if form == "power" else (base * torch.exp(p / sigma)).clamp(max=1)
        return torch.where(base > 0, raised, 0.0).float()

    return Criterion(quality, prior.reach)


def remembered(criterion: Criterion) -> Criterion:
    """The same criterion, which does not look at labels, for several passes over the objects of one image.

    Where one object is looked at at a time, what another pass asks for again is there already, `REMEMBERED` values at
    most.
    """
    known: dict[tuple[float, ...], tuple[At, Tensor]] = {}
    room = REMEMBERED

    def reach(box: Tensor) -> At:
        found = known.get(tuple(box.tolist()))
        return ALL if criterion.reach is None else found[0] if found else criterion.reach(box)

    def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
        nonlocal room
        if isinstance(at, slice):
            return criterion.quality(boxes, labels, at)
        box = tuple(boxes.flatten().tolist())
        if box in known and known[box][0] is at:
            return known[box][1]
        values = criterion.quality(boxes, labels, at)
        if box not in known and values.numel() <= room:
            room -= values.numel()
            known[box] = at, values
        return values

    return Criterion(quality, reach if criterion.reach else None)


def product(first: Criterion, second: Criterion, powers: tuple[float, float], like: Tensor) -> Criterion:
    """first^powers[0] * second^powers[1], rounded once to float32."""
    dtype = tie_safe_dtype(like)

    def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
        a, b = (each.quality(boxes, labels, at).to(dtype) for each in (first, second))
        return (a ** powers[0] * b ** powers[1]).float()

    # where either is 0 the product is, unless its power is 0
    reaches = [each.reach for each, power in zip((first, second), powers, strict=True) if power > 0 and each.reach]
    return Criterion(quality, reaches[0] if reaches else None)


def within(criterion: Criterion, region: Criterion) -> Criterion:
    """The criterion where `region` is above 0, and 0 elsewhere."""

    def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
        return torch.where(region.quality(boxes, labels, at) > 0, criterion.quality(boxes, labels, at), 0.0)

    return Criterion(quality, region.reach)


def adaptive(
    criterion: Criterion, priors: Priors, candidates: int, of: CandidateKind = "locations", *more: Criterion
) -> Criterion:
    """ATSS's threshold (Zhang et al., CVPR 2020, Algorithm 1) on any quality; what stays above 0 is selected.

    The candidates of an object are, on each level, the `candidates` priors, or the priors at as many locations, that
    are nearest to its centre.
    Those stay whose quality is at least mean + standard deviation of the candidates' and whose centre is inside. With
    `more` criteria the quality is the sum of all, and the threshold the sum of theirs.
    """

    def nearest(boxes: Tensor) -> Tensor:
        return nearest_per_level(boxes, priors, candidates, of)

    def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
        chosen = take(nearest(boxes), at)
        each = [one.quality(boxes, labels, at) for one in (criterion, *more)]
        values = reduce(torch.add, each)
        threshold = reduce(torch.add, [_mean_and_deviation(one, chosen) for one in each])
        inside = Sides.of(boxes, priors.take(at)).nearest() > MARGIN
        return torch.where(chosen & inside & (values.double() >= threshold), values, 0.0)

    return Criterion(quality, lambda box: indices(nearest(box[None, None])))


def _mean_and_deviation(values: Tensor, chosen: Tensor) -> Tensor:
    """The sum of both over the chosen of the last dimension, `[..., 1]` float64."""
    count = chosen.sum(dim=-1, keepdim=True)
    precise = torch.where(chosen, values, 0.0).double()
    mean = precise.sum(dim=-1, keepdim=True) / count
    squares = torch.where(chosen, (precise - mean) ** 2, 0.0).sum(dim=-1, keepdim=True)
    return mean + (squares / (count - 1).clamp(min=1)).sqrt()


def of_label(values: Tensor, labels: Tensor, at: At = ALL) -> Tensor:
    """Of what priors have for each class `[B, A, C]`, that for the class of each object `[B, g]`: `[B, g, n]`."""
    if isinstance(at, slice):
        return values.transpose(1, 2).gather(1, labels[:, :, None].expand(-1, -1, values.shape[1]))
    return torch.stack([values[0, :, label].index_select(0, at) for label in labels[0].tolist()])[None]


ROWS = 512
"""Priors whose scores of all classes are looked at together, so that they stay in the processor's cache."""


def over_classes(loss: Callable[[Tensor], Tensor], logits: Tensor, at: At) -> Tensor:
    """An elementwise `loss` of logits `[B, A, C]`, summed over the classes of some priors, `[B, n]`."""
    if isinstance(at, slice):
        return loss(logits).sum(dim=-1)
    return torch.cat([loss(logits[:, rows]).sum(dim=-1) for rows in torch.split(at, ROWS)], dim=1)


def focal_present(logits: Tensor) -> Tensor:
    """Focal loss of logits against 1 (Lin et al., ICCV 2017, equation 5; alpha 0.25, gamma 2), in `tie_safe_dtype`."""
    p = logits.to(tie_safe_dtype(logits)).sigmoid().nan_to_num(nan=0.0)
    return -0.25 * (1 - p) ** 2 * torch.log(p).clamp(min=-100)


def focal_absent(logits: Tensor) -> Tensor:
    """Focal loss of logits against 0, likewise."""
    p = logits.to(tie_safe_dtype(logits)).sigmoid().nan_to_num(nan=0.0)
    return -0.75 * p**2 * torch.log1p(-p).clamp(min=-100)


def own_pairs(targets: Targets, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Box `[B, A, 4]` and class `[B, A]` of each prior's owner `[B, A]`; those of some object where it is -1.

    There must be at least one object.
    """
    owner = owner.clamp(min=0)
    return targets.boxes.gather(1, owner[..., None].expand(-1, -1, 4)), targets.labels.gather(1, owner)


def sigmoid(values: Tensor) -> Tensor:
    """The sigmoid, the same for a value wherever it stands in memory.

    On a CPU torch takes other instructions for the last few elements and at the borders between threads. So there it
    is given parts that one thread works through and that end where the instructions do.
    """
    if values.device.type != "cpu":
        return values.sigmoid()
    flat = values.reshape(-1)
    filled = torch.nn.functional.pad(flat, (0, -len(flat) % 64))
    return torch.cat([part.sigmoid_() for part in torch.split(filled, 2**15)])[: len(flat)].view_as(values)


def tie_safe_dtype(like: Tensor) -> torch.dtype:
    """The type in which powers, exponentials and logarithms are taken.

    These differ in the last bit between SIMD lanes and a loop's remainder, so on a CPU two identical objects would not
    tie for every chunk size; in float64 the difference is rounded away.
    """
    return torch.float64 if like.device.type == "cpu" else torch.float32
