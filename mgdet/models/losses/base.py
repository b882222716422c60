"""What a term of the loss is, and what it sees."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import Field
from torch import Tensor

from mgdet.config_base import Config
from mgdet.models.coder import Coder
from mgdet.structures import Assignment, Predictions, Targets


@dataclass(frozen=True)
class LossInputs:
    """One worker's micro-batch with its labels, as every term sees it."""

    predictions: Predictions  # at least float32, with the graph
    targets: Targets
    assignment: Assignment
    coder: Coder
    quality: str  # what the detector's quality branch predicts (`QualityKind`); "none": there is no such branch


class Term(NamedTuple):
    """The value of a loss term on one worker's micro-batch."""

    value: Tensor  # scalar with a gradient: the sum over all priors, before the term's weight; or `[n]` such parts
    normaliser: Tensor | None = None
    """Of the same shape. Each value is divided by the sum of its normalisers over the micro-batches of an optimizer
    step and their mean over workers, at least 1. None: the value is a mean already, and counts by the micro-batch's
    share of images.
    """


class LossTerm(Config):
    """A term of the loss: its hyperparameters, and how it is computed.

    Every worker must run the same collectives and a graph over the same parameters, whatever its batch holds: mask what
    takes no part instead of leaving it out.
    """

    weight: float = Field(default=1.0, ge=0, le=1e6, description="factor of this term in the total")

    @abstractmethod
    def term(self, inputs: LossInputs) -> Term | None:
        """The term of this batch; None where the detector has no such output."""
