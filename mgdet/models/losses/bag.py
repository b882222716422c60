"""Losses of whole objects, and FreeAnchor's: of an object's bag one prior must be good (Zhang et al., NeurIPS 2019)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mgdet.boxes import iou
from mgdet.models.losses.base import LossInputs, LossTerm, Term
from mgdet.models.losses.box import SmoothL1Loss
from mgdet.models.losses.targets import box_targets, class_of
from mgdet.structures import IGNORED, Predictions, Targets

TINY = 1e-12


class BagTerm(LossTerm):
    """A loss of whole objects: their priors are learned together, for both tasks."""


class FreeAnchorLoss(BagTerm):
    """alpha * positive bags + (1 - alpha) * negatives, divided by the number of objects that have a bag.

    A bag are the priors that are positive for an object in classification, whatever assigner chose them. With
    P_ij = p_j(c_i) * exp(-smooth L1 loss) an object costs -log(sum_j w_ij P_ij), w_ij = 1 / (1 - P_ij) normalised over
    its bag ("mean-max": the mean while all are bad, the maximum when one is good; equations 6 and 8 of the paper). A
    prior costs q^gamma * BCE(q, 0) / `bag` for each class, q = p * (1 - the largest box probability for an object of
    that class); the box probability is the predicted box's IoU, scaled from 0 at `box_iou` to 1 at the object's best.
    Formulas and numbers are those of MMDetection's `free_anchor_retina_head.py` (verified).

    It teaches both tasks: give `loss.cls` and `loss.box` the weight 0.
    """

    name: Literal["free_anchor"] = "free_anchor"
    alpha: float = Field(default=0.5, ge=0, le=1, description="share of the bags in the loss")
    gamma: float = Field(default=2.0, ge=0, le=1000, description="how much easy negatives are turned down")
    bag: int = Field(default=50, ge=1, le=10_000, description="negatives are divided by this times the objects")
    box_iou: float = Field(default=0.6, ge=0, lt=1, description="IoU from which a predicted box may be the object's")
    beta: float = Field(default=0.11, ge=1e-6, le=1e6, description="of the smooth L1 loss in P")
    box_weight: float = Field(default=0.75, ge=0, le=1e6, description="factor of the smooth L1 loss in P")

    def term(self, inputs: LossInputs) -> Term:
        """See `LossTerm`."""
        bags, objects = self._bags(inputs)
        taking_part = (inputs.assignment.cls.gt_index != IGNORED).unsqueeze(-1)
        negatives = torch.where(taking_part, self._negatives(inputs.predictions, inputs.targets), 0.0).sum()
        return Term(self.alpha * bags + (1 - self.alpha) * negatives / self.bag, objects)

    def _bags(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """The sum over the objects that have a bag, and how many these are."""
        predictions, targets, labels = inputs.predictions, inputs.targets, inputs.assignment.cls
        boxes, positive = box_targets(labels, targets, predictions.priors)
        cost = self.box_weight * SmoothL1Loss(beta=self.beta)(predictions, boxes, inputs.coder)
        score = predictions.logits.gather(2, class_of(labels, targets)[..., None]).squeeze(2).sigmoid()
        together = torch.where(positive, score * (-cost).exp(), 0.0)
        weight = torch.where(positive, 1 / (1 - together).clamp(min=TINY), 0.0)
        images, count = targets.labels.shape
        first = torch.arange(images, device=positive.device)[:, None] * (count + 1)
        slot = (first + torch.where(positive, labels.gt_index, count)).flatten()  # the last slot is nobody's

        def over_bags(values: Tensor) -> Tensor:
            total = values.new_zeros(images * (count + 1)).index_add(0, slot, values.flatten())
            return total.view(images, count + 1)[:, :count]

        has_bag = over_bags(positive.to(weight.dtype)) > 0
        probability = over_bags(weight * together) / torch.where(has_bag, over_bags(weight), 1.0)
        loss = -torch.where(has_bag, probability, 1.0).log().clamp(min=-100)
        return loss.sum(), has_bag.sum()

    def _negatives(self, predictions: Predictions, targets: Targets) -> Tensor:
        """The loss of every prior and class as background, `[B, A, C]`."""
        logits = predictions.logits
        q = logits.sigmoid() * (1 - self.box_probability(predictions, targets))
        return q.clamp(min=TINY) ** self.gamma * -torch.log1p(-q).clamp(min=-100)

    @torch.no_grad()
    def box_probability(self, predictions: Predictions, targets: Targets) -> Tensor:
        """How likely each prior's box is that of an object of each class, `[B, A, C]` in [0, 1]."""
        found = torch.zeros_like(predictions.logits)
        for g in range(targets.labels.shape[1]):  # one object of each image at a time: [B, G, A] would be large
            overlap = iou(predictions.boxes, targets.boxes[:, g : g + 1])
            best = overlap.amax(dim=1, keepdim=True).clamp(min=self.box_iou + TINY)
            likely = ((overlap - self.box_iou) / (best - self.box_iou).clamp(min=TINY)).clamp(0, 1)
            likely = torch.where(targets.valid[:, g : g + 1], likely, 0.0).to(found.dtype)
            label = targets.labels[:, g, None, None].expand(-1, found.shape[1], 1)
            found.scatter_reduce_(2, label, likely[..., None], "amax")
        return found
