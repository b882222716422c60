"""The sum of all loss terms of a batch, each normalised by its own positives over all workers."""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mgdet.config_base import Config
from mgdet.models.coder import Coder
from mgdet.models.losses.base import LossInputs, LossTerm, Term
from mgdet.models.losses.box import BoxLoss, L1Loss
from mgdet.models.losses.classification import ClassLoss, FocalLoss
from mgdet.models.losses.correlation import CorrelationLoss
from mgdet.models.losses.quality import QualityKind, QualityLoss
from mgdet.models.losses.targets import full_precision, is_positive
from mgdet.structures import Assignment, Predictions, Targets

MeanOverWorkers = Callable[[Tensor], Tensor]
"""Mean of a tensor over all workers (the identity for one worker)."""


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

    def __call__(
        self,
        predictions: Predictions,
        targets: Targets,
        assignment: Assignment,
        coder: Coder,
        mean_over_workers: MeanOverWorkers,
        quality: QualityKind = "none",
    ) -> Losses:
        """Scalars of this worker, for a gradient that is *averaged* over workers; `quality` says what the branch is.

        A term is divided by the mean of its normaliser over workers, at least 1: the sum of the positives' weights in
        classification and localization, the number of positives of the quality branch. So (with that much in the mean)
        the averaged gradient is that of one worker with the whole batch, except for the correlation, which each worker
        takes over its own positives. Every prior takes part, masked: a batch without objects runs the same graph and
        the same collective. Nothing waits for the device.
        """
        inputs = LossInputs(predictions.map(full_precision), targets, assignment, coder, quality)
        configured = {name: value for name, value in self if isinstance(value, LossTerm)}
        found = {name: loss.term(inputs) for name, loss in configured.items()}
        present = {name: term for name, term in found.items() if term is not None}
        divisors = _divisors(present, mean_over_workers)
        terms = {name: configured[name].weight * term.value / divisors[name] for name, term in present.items()}
        shown = {name: term.detach() for name, term in terms.items()}
        return Losses(reduce(torch.add, terms.values()), shown, _counts(assignment))


def _divisors(terms: dict[str, Term], mean_over_workers: MeanOverWorkers) -> dict[str, Tensor | float]:
    """What each term is divided by; all normalisers are averaged over workers in one collective."""
    own = {name: term.normaliser for name, term in terms.items() if term.normaliser is not None}
    dtype = next(iter(terms.values())).value.dtype
    means = mean_over_workers(torch.stack([n.to(dtype) for n in own.values()])).clamp(min=1).unbind()
    return {**dict.fromkeys(terms, 1.0), **dict(zip(own, means, strict=True))}


def _counts(assignment: Assignment) -> dict[str, Tensor]:
    cls, loc = is_positive(assignment.cls), is_positive(assignment.loc)
    return {name: mask.sum().float() for name, mask in (("cls", cls), ("loc", loc), ("both", cls & loc))}
