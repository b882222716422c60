"""DW's loss: each prior is a positive and a negative at once, with weights of their own (Li et al., CVPR 2022)."""

from typing import Literal

import torch
from pydantic import Field

from mgdet.assign.dw import DualWeights
from mgdet.models.losses.bag import BagTerm
from mgdet.models.losses.base import LossInputs, Term
from mgdet.models.losses.pairs import as_background, joint_score, least_of_class, pairs_of
from mgdet.structures import IGNORED


class DualWeightingLoss(DualWeights, BagTerm):
    """alpha * sum of w_pos (-log p + beta * GIoU loss), and P_neg p^2 BCE(p, 0) of each prior and class.

    Both weights are those of `mgdet.assign.dw.DW` for every object around a prior, and no gradient goes through them;
    p^2 is the importance I_neg of a negative, which has one. The first part is divided by the objects, the second by
    the sum of 1 - P_neg. Of several objects of one class around a prior the smallest P_neg counts (in the code the last
    one's). Formulas and factors are those of the authors' `dw_head.py` (verified).

    It teaches both tasks: give `loss.cls` and `loss.box` the weight 0.
    """

    name: Literal["dw"] = "dw"
    alpha: float = Field(default=0.25, ge=0, le=1e6, description="factor of the positives")

    def term(self, inputs: LossInputs) -> Term:
        """See `LossTerm`."""
        predictions = inputs.predictions
        probability = torch.ones_like(predictions.logits)
        positive = predictions.deltas.sum() * 0  # the graph is the same without objects
        objects = positive.detach()
        for pairs in pairs_of(inputs, sigma=self.sigma):
            box_loss = self.beta * (1 - pairs.fit)
            with torch.no_grad():
                fit = pairs.overlap**self.beta if self.fit == "iou" else (-box_loss).exp()
                weight = self.positive(pairs.log_score.exp() * fit, pairs.centre)
                least_of_class(probability, pairs, self.negative(pairs.overlap, pairs.inside))
            cost = torch.where(pairs.inside, box_loss - pairs.log_score, 0.0)
            positive = positive + (weight * cost).sum()
            objects = objects + pairs.exists.sum()
        taking_part = (inputs.assignment.cls.gt_index != IGNORED).unsqueeze(-1)
        background = probability * as_background(joint_score(predictions))
        negative = torch.where(taking_part, background, 0.0).sum()
        return Term(torch.stack([self.alpha * positive, negative]), torch.stack([objects, (1 - probability).sum()]))
