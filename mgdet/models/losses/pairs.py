"""Every prior with every object around it: what losses see in which a prior counts for several objects."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mgdet.assign.criteria import centre_gaussian
from mgdet.assign.geometry import Sides
from mgdet.assign.pieces import usable_objects
from mgdet.boxes import giou, iou
from mgdet.models.losses.base import LossInputs
from mgdet.structures import IGNORED, Predictions


class Pairs(NamedTuple):
    """One object of each image with all priors. `inside` is false everywhere for an object that does not count."""

    label: Tensor  # [B, 1] int64, the objects' classes
    inside: Tensor  # [B, A] bool: the prior counts for the object
    centre: Tensor  # [B, A] the centre prior G, 0 outside
    log_score: Tensor  # [B, A] logarithm of the score of the object's class; with a gradient
    fit: Tensor  # [B, A] GIoU of the predicted box, -1 outside; with a gradient
    overlap: Tensor  # [B, A] IoU of the predicted box

    @property
    def exists(self) -> Tensor:
        """The object has a prior that counts for it, `[B]` bool."""
        return self.inside.any(dim=1)


def pairs_of(inputs: LossInputs, sigma: float) -> Iterator[Pairs]:
    """The pairs, one object of each image at a time: `[B, G, A]` would be large.

    A prior counts for an object if its centre is inside, and if its label names the object, which adopted it for
    instance; such a prior counts like one at the object's centre. `sigma` is the width of the centre prior where the
    detector learns none.
    """
    predictions, targets, owner = inputs.predictions, inputs.targets, inputs.assignment.cls.gt_index
    priors, usable = predictions.priors, usable_objects(targets)
    own = priors.boxes.to(predictions.boxes.dtype)
    log_quality = 0.0 if predictions.quality is None else logsigmoid(predictions.quality)
    for g in range(targets.labels.shape[1]):
        box, label = targets.boxes[:, g : g + 1], targets.labels[:, g : g + 1]
        around = Sides.of(box, priors).nearest().squeeze(1) > 0
        inside = (around | (owner == g)) & usable[:, g : g + 1] & (owner != IGNORED)
        gaussian = centre_gaussian(box, priors, *predictions.centre_of(label, sigma)).squeeze(1)
        centre = torch.where(inside, torch.where(around, gaussian, 1.0), 0.0)
        boxes = torch.where(inside[..., None], box.to(own.dtype), own)  # a masked NaN would still poison gradients
        logits = predictions.logits.gather(2, label[..., None].expand(-1, len(own), 1)).squeeze(2)
        yield Pairs(
            label,
            inside,
            centre,
            logsigmoid(logits) + log_quality,
            torch.where(inside, giou(predictions.boxes, boxes), -1.0),
            torch.where(inside, iou(predictions.boxes.detach(), boxes), 0.0),
        )


def least_of_class(weights: Tensor, pairs: Pairs, weight: Tensor) -> None:
    """Lower the weights `[B, A, C]` of the objects' class, in place, to `weight` `[B, A]` where that is less."""
    label = pairs.label[..., None].expand(-1, weights.shape[1], 1)
    weights.scatter_reduce_(2, label, weight[..., None].to(weights.dtype), "amin")


def joint_score(predictions: Predictions) -> Tensor:
    """p `[B, A, C]`: the class scores, times what the quality branch says where there is one."""
    p = predictions.logits.sigmoid()
    return p if predictions.quality is None else p * predictions.quality.sigmoid().unsqueeze(-1)


def as_background(q: Tensor) -> Tensor:
    """q^2 BCE(q, 0), elementwise: the focal loss of scores as background, with gamma 2."""
    return q**2 * -torch.log1p(-q.clamp(max=1 - torch.finfo(q.dtype).eps))
