"""Criteria: how well each prior suits each object. See `mgdet.assign.ownership` for what is done with them."""

import torch
from torch import Tensor

from mgdet.assign.geometry import MARGIN, CandidateKind, Sides, footprints, nearest_per_level, outer_levels
from mgdet.assign.ownership import Criterion
from mgdet.boxes import box_area, pairwise_iou
from mgdet.structures import Predictions, Priors


def prior_iou(priors: Priors) -> Criterion:
    """IoU_anchor: overlap of the objects with the anchors, or with the squares of 8 strides around points."""
    boxes_of_priors = footprints(priors)

    def criterion(boxes: Tensor, labels: Tensor) -> Tensor:
        return pairwise_iou(boxes, boxes_of_priors)

    return criterion


def regressed_iou(predictions: Predictions) -> Criterion:
    """IoU_regressed: overlap of the objects with the boxes that are now predicted."""

    def criterion(boxes: Tensor, labels: Tensor) -> Tensor:
        return pairwise_iou(boxes, predictions.boxes)

    return criterion


def class_score(predictions: Predictions) -> Criterion:
    """p: the score that each prior now gives to the class of each object."""
    scores = predictions.logits.sigmoid()

    def criterion(boxes: Tensor, labels: Tensor) -> Tensor:
        return score_of_label(scores, labels)

    return criterion


def centre_prior(priors: Priors, base_scale: float) -> Criterion:
    """Mutual Guidance's prior for points (authors' code since October 2021, docs/papers/mutual_guidance.md).

    min of min(l, r) / max(l, r) and min(t, b) / max(t, b) inside the object, on the levels whose base size of
    `base_scale` strides is at most twice and at least half the square root of the object's area; the finest level takes
    all that is smaller, the coarsest all that is larger. 0 elsewhere.
    """
    first, last = outer_levels(priors)
    base = base_scale * priors.strides

    def criterion(boxes: Tensor, labels: Tensor) -> Tensor:
        horizontal, vertical = Sides.of(boxes, priors).evenness()
        size = box_area(boxes).sqrt().unsqueeze(-1)
        fits = ((size >= 0.5 * base) | first) & ((size <= 2 * base) | last)
        return torch.where(fits, torch.minimum(horizontal, vertical), 0.0)

    return criterion


def centerness(priors: Priors) -> Criterion:
    """FCOS's centre-ness of a location in an object (Tian et al., ICCV 2019, equation 3); 0 outside."""

    def criterion(boxes: Tensor, labels: Tensor) -> Tensor:
        horizontal, vertical = Sides.of(boxes, priors).evenness()
        return (horizontal * vertical).sqrt()

    return criterion


def amplified(prior: Criterion, predictions: Predictions, sigma: float, form: str = "power") -> Criterion:
    """IoU_amplified (Zhang et al., ACCV 2020): a prior's quality raised by its score, 0 exactly where that is 0."""
    score = class_score(predictions)
    dtype = tie_safe_dtype(predictions.logits)

    def criterion(boxes: Tensor, labels: Tensor) -> Tensor:
        quality, p = prior(boxes, labels).to(dtype), score(boxes, labels).to(dtype)
        power = form == "power"
        raised = quality ** ((sigma - p) / sigma) if power else (quality * torch.exp(p / sigma)).clamp(max=1)
        return torch.where(quality > 0, raised, 0.0).float()

    return criterion


def product(first: Criterion, second: Criterion, powers: tuple[float, float], like: Tensor) -> Criterion:
    """first^powers[0] * second^powers[1], rounded once to float32."""
    dtype = tie_safe_dtype(like)

    def criterion(boxes: Tensor, labels: Tensor) -> Tensor:
        a, b = first(boxes, labels).to(dtype), second(boxes, labels).to(dtype)
        return (a ** powers[0] * b ** powers[1]).float()

    return criterion


def within(criterion: Criterion, region: Criterion) -> Criterion:
    """The criterion where `region` is above 0, and 0 elsewhere."""

    def restricted(boxes: Tensor, labels: Tensor) -> Tensor:
        return torch.where(region(boxes, labels) > 0, criterion(boxes, labels), 0.0)

    return restricted


def adaptive(criterion: Criterion, priors: Priors, candidates: int, of: CandidateKind = "locations") -> Criterion:
    """ATSS's threshold (Zhang et al., CVPR 2020, Algorithm 1) on any quality; what stays above 0 is selected.

    The candidates of an object are, on each level, the `candidates` priors, or the priors at as many locations, that
    are nearest to its centre.
    Those stay whose quality is at least mean + standard deviation of the candidates' and whose centre is inside.
    """

    def thresholded(boxes: Tensor, labels: Tensor) -> Tensor:
        quality = criterion(boxes, labels)
        chosen = nearest_per_level(boxes, priors, candidates, of)
        count = chosen.sum(dim=-1, keepdim=True)
        values = torch.where(chosen, quality, 0.0).double()
        mean = values.sum(dim=-1, keepdim=True) / count
        squares = torch.where(chosen, (values - mean) ** 2, 0.0).sum(dim=-1, keepdim=True)
        threshold = mean + (squares / (count - 1).clamp(min=1)).sqrt()
        inside = Sides.of(boxes, priors).nearest() > MARGIN
        return torch.where(chosen & inside & (values >= threshold), quality, 0.0)

    return thresholded


def score_of_label(scores: Tensor, labels: Tensor) -> Tensor:
    """Score `[B, g, A]` that each prior gives to the class of each object, from scores `[B, A, C]` and `[B, g]`."""
    index = labels[:, :, None].expand(-1, -1, scores.shape[1])
    return scores.transpose(1, 2).gather(1, index).nan_to_num(nan=0.0)


def tie_safe_dtype(like: Tensor) -> torch.dtype:
    """The type in which powers, exponentials and logarithms are taken.

    These differ in the last bit between SIMD lanes and a loop's remainder, so on a CPU two identical objects would not
    tie for every chunk size; in float64 the difference is rounded away.
    """
    return torch.float64 if like.device.type == "cpu" else torch.float32
