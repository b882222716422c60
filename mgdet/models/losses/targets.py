"""From labels to what each prior should say: a class, a box, a quality."""

import torch
from torch import Tensor

from mgdet.boxes import iou
from mgdet.structures import Labels, Predictions, Priors, Targets


def is_positive(labels: Labels) -> Tensor:
    """Who has an object in this task, `[B, A]` bool."""
    return labels.gt_index >= 0


def class_of(labels: Labels, targets: Targets) -> Tensor:
    """Class `[B, A]` int64 of each positive's object; some class for all others."""
    if targets.labels.shape[1] == 0:
        return torch.zeros_like(labels.gt_index)
    return targets.labels.gather(1, labels.gt_index.clamp(min=0))


def class_targets(labels: Labels, targets: Targets, like: Tensor) -> Tensor:
    """Classification target `[B, A, C]`: the label's weight at the class of its object, 0 elsewhere."""
    value = torch.where(is_positive(labels), labels.weight, 0.0).to(like.dtype)
    return torch.zeros_like(like).scatter_(2, class_of(labels, targets)[..., None], value[..., None])


def box_targets(labels: Labels, targets: Targets, priors: Priors) -> tuple[Tensor, Tensor]:
    """The box `[B, A, 4]` that each prior regresses to, and who is positive `[B, A]`.

    Priors that are not positive get their own box, whose encoding is finite: a masked NaN would still poison gradients.
    """
    positive = is_positive(labels)
    own = priors.boxes.expand(*positive.shape, 4)
    if targets.boxes.shape[1] == 0:
        return own, positive
    boxes = targets.boxes.gather(1, labels.gt_index.clamp(min=0)[..., None].expand(-1, -1, 4))
    return torch.where(positive[..., None], boxes, own), positive


def own_iou(predictions: Predictions, boxes: Tensor) -> Tensor:
    """IoU `[B, A]` of each prior's predicted box with its entry of `boxes` `[B, A, 4]`; no gradient."""
    return iou(predictions.boxes.detach(), boxes)


def centerness(priors: Priors, boxes: Tensor) -> Tensor:
    """Centre-ness `[B, A]` of each prior's centre in its box of `boxes` `[B, A, 4]` (Tian et al., ICCV 2019, eq. 3).

    sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)): 1 at the centre of the box, 0 on its sides and outside.
    """
    centre = 0.5 * (priors.boxes[:, :2] + priors.boxes[:, 2:])
    before, after = centre - boxes[..., :2], boxes[..., 2:] - centre
    nearer, farther = torch.minimum(before, after), torch.maximum(before, after)
    inside = (nearer > 0).all(dim=-1)
    return torch.where(inside, (nearer / farther).prod(dim=-1), 0.0).sqrt()


def full_precision(value: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return value.to(torch.promote_types(value.dtype, torch.float32))
