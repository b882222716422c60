"""The sum of all loss terms of a batch, each normalised by its own positives in the whole optimizer step."""

from collections.abc import Callable
from functools import reduce
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mgdet.config_base import ByName, Config
from mgdet.models.coder import Coder
from mgdet.models.losses.auto_assign import AutoAssignLoss
from mgdet.models.losses.bag import FreeAnchorLoss
from mgdet.models.losses.base import LossInputs, LossTerm, Term
from mgdet.models.losses.box import BoxLoss, L1Loss
from mgdet.models.losses.classification import ClassLoss, FocalLoss
from mgdet.models.losses.contrast import TaskContrastLoss
from mgdet.models.losses.correlation import CorrelationLoss
from mgdet.models.losses.distribution import DistributionFocalLoss
from mgdet.models.losses.dw import DualWeightingLoss
from mgdet.models.losses.quality import QualityKind, QualityLoss
from mgdet.models.losses.targets import full_precision, is_positive
from mgdet.structures import Assignment, Predictions, Targets

BagLoss = Annotated[FreeAnchorLoss | AutoAssignLoss | DualWeightingLoss, ByName()]
OverStep = Callable[[Tensor], Tensor]
"""From this batch's normalisers to those of the optimizer step: the sum over its micro-batches, the mean over workers.

The identity for one worker with one micro-batch. Every batch of a step gets the same answer.
"""


class Losses(NamedTuple):
    """The losses of a batch on one worker: scalar tensors on its device."""

    total: Tensor  # to be differentiated
    terms: dict[str, Tensor]  # what it is the sum of, by field of `LossConfig`; without a gradient
    counts: dict[str, Tensor]  # positives of `cls`, of `loc` and of `both` tasks, summed over the images


class LossConfig(Config):
    """The terms of the loss: every field is one, and the total is their weighted sum. `null` leaves one out."""

    cls: ClassLoss = Field(default=FocalLoss(), description="loss of the classification task")
    box: BoxLoss = Field(default=L1Loss(), description="loss of the localization task")
    quality: QualityLoss = Field(default=QualityLoss(), description="loss of the quality branch, where there is one")
    correlation: CorrelationLoss | None = Field(
        default=None, description="adds 1 - correlation of score and IoU over the positives; null: no such term"
    )

    contrast: TaskContrastLoss | None = Field(
        default=None, description="adds what score and IoU of a positive differ by; null: no such term"
    )
    distribution: DistributionFocalLoss | None = Field(
        default=None, description="teaches the distributions of model.bins; null: no such term"
    )
    bag: BagLoss | None = Field(
        default=None,
        description="a loss of whole objects, in place of cls and box, whose weight is 0 then; null: no such term",
    )

    def __call__(
        self,
        predictions: Predictions,
        targets: Targets,
        assignment: Assignment,
        coder: Coder,
        over_step: OverStep,
        quality: QualityKind = "none",
        share: float = 1.0,
    ) -> Losses:
        """Scalars for a gradient that is *summed* over micro-batches and *averaged* over workers.

        A term is divided by its normaliser in the whole step, at least 1: the sum of the positives' weights in
        classification and localization, the number of positives of the quality branch. So (with that much in the step)
        the gradient is that of one worker with all images in one batch, except for the correlation, which each
        micro-batch takes over its own positives. Every prior takes part, masked: a batch without objects runs the same
        graph and the same collective. Nothing waits for the device.

        Args:
            predictions: of this micro-batch, with the graph.
            targets: its objects.
            assignment: its labels.
            coder: the detector's.
            over_step: the normalisers of the step for those of this micro-batch, `[terms] -> [terms]`.
            quality: what the detector's quality branch predicts.
            share: share of this micro-batch in the worker's images of the step, with which a term counts that has no
                normaliser.
        """
        inputs = LossInputs(predictions.map(full_precision), targets, assignment, coder, quality)
        configured = {name: value for name, value in self if isinstance(value, LossTerm)}
        found = {name: loss.term(inputs) for name, loss in configured.items()}
        present = {name: term for name, term in found.items() if term is not None}
        divisors = _divisors(present, over_step)
        terms = {
            name: (
                configured[name].weight * term.value * (share if term.normaliser is None else 1.0) / divisors[name]
            ).sum()
            for name, term in present.items()
        }
        shown = {name: term.detach() for name, term in terms.items()}
        return Losses(reduce(torch.add, terms.values()), shown, _counts(assignment))


def _divisors(terms: dict[str, Term], over_step: OverStep) -> dict[str, Tensor | float]:
    """What each term is divided by; all normalisers are summed and averaged at once, in one collective."""
    own = {name: term.normaliser for name, term in terms.items() if term.normaliser is not None}
    dtype = next(iter(terms.values())).value.dtype
    flat = [n.to(dtype).reshape(-1) for n in own.values()]
    means = torch.split(over_step(torch.cat(flat)).clamp(min=1), [len(n) for n in flat])
    shaped = {name: mean.view_as(n) for (name, n), mean in zip(own.items(), means, strict=True)}
    return {**dict.fromkeys(terms, 1.0), **shaped}


def _counts(assignment: Assignment) -> dict[str, Tensor]:
    cls, loc = is_positive(assignment.cls), is_positive(assignment.loc)
    return {name: mask.sum().float() for name, mask in (("cls", cls), ("loc", loc), ("both", cls & loc))}
