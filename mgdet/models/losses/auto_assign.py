"""AutoAssign's loss: a confidence of each object, and the centre prior that is learned with it (Zhu et al., 2020)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.auto_assign import TINY, AutoAssignWeights
from mgdet.boxes import iou
from mgdet.models.losses.bag import BagTerm
from mgdet.models.losses.base import LossInputs, Term
from mgdet.models.losses.pairs import as_background, joint_score, least_of_class, pairs_of
from mgdet.structures import IGNORED, Predictions


class AutoAssignLoss(AutoAssignWeights, BagTerm):
    """-log(sum_j w+_ij P_ij) of each object, and q^2 BCE(q, 0) with q = w-_jc p_jc of each prior and class.

    Both weights are those of `mgdet.assign.auto_assign.AutoAssign` for every object around a prior (equation 7 of the
    paper). The gradient also goes through w+, and so to the centre prior, which a third term keeps from vanishing:
    objects / sum of G. The first is divided by the objects, the second by the sum of G. Of several objects of one class
    around a prior the smallest w- counts (in the code the last one's). Formulas and factors are those of MMDetection's
    `autoassign_head.py` (verified).

    It teaches both tasks: give `loss.cls` and `loss.box` the weight 0.
    """

    name: Literal["auto_assign"] = "auto_assign"
    positive_weight: float = Field(default=0.25, ge=0, le=1e6, description="factor of the objects' part")
    negative_weight: float = Field(default=0.75, ge=0, le=1e6, description="factor of the background's part")
    centre_weight: float = Field(default=0.75, ge=0, le=1e6, description="factor of the centre prior's part")

    def term(self, inputs: LossInputs) -> Term:
        """See `LossTerm`."""
        predictions = inputs.predictions
        best = self._best_overlap(inputs)
        background = torch.ones_like(predictions.logits)
        positive = self._nothing(predictions)
        of_image, centre = (predictions.logits.new_zeros(len(best)) for _ in range(2))
        for pairs in pairs_of(inputs, sigma=1.0):
            joint = (pairs.log_score - self.box_weight * (1 - pairs.fit)).exp()
            together = (self.positive(joint, pairs.centre) * joint).sum(dim=1)
            positive = positive + torch.where(pairs.exists, -together.clamp(min=TINY).log(), 0.0).sum()
            least_of_class(background, pairs, self.negative(torch.where(pairs.inside, best, 0.0), pairs.inside))
            of_image, centre = of_image + pairs.exists, centre + pairs.centre.sum(dim=1)
        taking_part = (inputs.assignment.cls.gt_index != IGNORED).unsqueeze(-1)
        negative = torch.where(taking_part, as_background(background * joint_score(predictions)), 0.0).sum()
        spread = torch.where(of_image > 0, of_image / centre.clamp(min=TINY), 0.0).sum()
        values = (self.positive_weight * positive, self.negative_weight * negative, self.centre_weight * spread)
        normalisers = (of_image.sum(), centre.detach().sum(), torch.full_like(spread.detach(), len(best)))
        return Term(torch.stack(values), torch.stack(normalisers))

    @staticmethod
    def _nothing(predictions: Predictions) -> Tensor:
        """0, from the same parameters as the loss: without objects the graph is the same."""
        learned = predictions.centre_prior
        return 0 * (predictions.deltas.sum() + (learned.mean.sum() + learned.sigma.sum() if learned else 0.0))

    @staticmethod
    @torch.no_grad()
    def _best_overlap(inputs: LossInputs) -> Tensor:
        """The largest IoU of each predicted box with any object of its image, `[B, A]`."""
        predictions, targets = inputs.predictions, inputs.targets
        best = torch.zeros_like(predictions.logits[..., 0])
        for g in range(targets.labels.shape[1]):
            overlap = iou(predictions.boxes, targets.boxes[:, g : g + 1].to(best.dtype))
            best = torch.maximum(best, torch.where(targets.valid[:, g : g + 1], overlap, 0.0))
        return best
