"""Mutual Supervision: each task weighs the samples of the other (Gao et al., ICCV 2021, arXiv 2109.05986)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.base import Assigner
from mgdet.assign.criteria import class_score, own_pairs, product, regressed_iou, sigmoid, tie_safe_dtype
from mgdet.assign.geometry import Sides
from mgdet.assign.ownership import Ownership
from mgdet.assign.pieces import Criterion
from mgdet.assign.places import At
from mgdet.boxes import iou
from mgdet.structures import NEGATIVE, Assignment, Labels, Predictions, Targets


class MuSu(Assigner):
    """The priors of an object's bag are positive for both tasks, weighted by their rank in the other task.

    With p the score of the object's class, u the IoU of the predicted box and q = u^theta, the bag are the priors
    inside the object with p * q > `bag` * its largest; one of several objects goes to the larger u. Ranks R, from 0,
    are by q * p^alpha for classification and by p * q^alpha for localization, and the weights exp(-R / tau)
    (second-hand: notes on the paper). Of tau it is known that it adapts to the size of the bag, and that
    classification's is twice localization's; the form is not found: here it is `temperature` * size^`growth`.

    The weights belong to `loss.cls.target: one`, where they multiply the loss of a positive. Background counts with
    weight 1 (inferred).
    """

    name: Literal["musu"] = "musu"
    theta: float = Field(default=4.0, gt=0, le=1000, description="power that brings an IoU to a score's scale")
    alpha: float = Field(default=1 / 3, ge=0, le=1, description="power of the task's own quality in its ranks")
    bag: float = Field(default=0.1, ge=0, lt=1, description="share of the best p * u^theta from which a prior belongs")
    temperature: float = Field(
        default=1.0, gt=0, le=1e6, description="tau of localization for a bag of one prior; not published"
    )
    growth: float = Field(
        default=0.5, ge=0, le=1, description="power of the bag's size in tau: 0 constant, 1 proportional; not published"
    )
    cls_temperature: float = Field(default=2.0, gt=0, le=1e6, description="tau of classification by localization's")

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """The same positives for both tasks, with weights of their own."""
        owners = self.find_owners(self._in_bag(predictions), predictions.priors, targets)
        if not targets.boxes.shape[1]:
            labels = Labels(owners.owner, owners.raw)
            return Assignment(labels, labels)
        boxes, label = own_pairs(targets, owners.owner)
        score = sigmoid(predictions.logits.gather(2, label[..., None]).squeeze(2)).nan_to_num(nan=0.0)
        dtype = tie_safe_dtype(score)
        p, q = score.to(dtype), iou(predictions.boxes, boxes).to(dtype) ** self.theta
        cls, loc = (q * p**self.alpha).float(), (p * q**self.alpha).float()
        return Assignment(
            self._weighted(owners, cls, self.cls_temperature, targets), self._weighted(owners, loc, 1.0, targets)
        )

    def _in_bag(self, predictions: Predictions) -> Criterion:
        priors, overlap = predictions.priors, regressed_iou(predictions)
        both = product(class_score(predictions), overlap, (1.0, self.theta), predictions.logits)

        def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
            inside = Sides.of(boxes, priors.take(at)).nearest() > 0
            values = torch.where(inside, both.quality(boxes, labels, at), 0.0)
            belongs = values > self.bag * values.amax(dim=-1, keepdim=True)
            return torch.where(belongs, overlap.quality(boxes, labels, at), 0.0)

        return Criterion(quality, both.reach)

    def _weighted(self, owners: Ownership, value: Tensor, factor: float, targets: Targets) -> Labels:
        positive = owners.owner >= 0
        size = owners.of_owner(owners.count_owned(positive, targets.boxes.shape[1])).clamp(min=1)
        tau = factor * self.temperature * size.to(tie_safe_dtype(value)) ** self.growth
        weight = torch.exp(-owners.rank_by(value) / tau).float().clamp(min=torch.finfo(torch.float32).tiny)
        return Labels(torch.where(positive, owners.owner, NEGATIVE), torch.where(positive, weight, 0.0))
