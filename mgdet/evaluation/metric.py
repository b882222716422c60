"""What a metric of the evaluation is: collected on every rank, merged, computed once."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mgdet.ground_truth import GroundTruth
from mgdet.structures import Batch, Detections, Predictions

Arrays = dict[str, NDArray[Any]]
"""Named flat arrays: what ranks exchange."""


class MetricInfo(NamedTuple):
    """A number that a metric gives, as sweeps, tables and trackers know it."""

    name: str  # under which it is tracked; `<...>` stands for any text: val/AP/<class>
    direction: Literal["max", "min"]  # which way is better
    meaning: str
    headline: bool = False  # shown in the table at the end of a training or evaluation
    brief: bool = False  # and in the line that a training prints after each evaluation

    def matches(self, name: str) -> bool:
        """Whether this is the entry of a tracked name."""
        pattern = "".join(".+" if part.startswith("<") else re.escape(part) for part in re.split(r"(<.*?>)", self.name))
        return re.fullmatch(pattern, name) is not None


@dataclass(frozen=True)
class Seen:
    """One evaluated batch."""

    batch: Batch  # `positions` say which images these are; `targets` are in the pixels of the predictions
    predictions: Predictions  # before suppression
    scores: Mapping[str, Tensor]  # of the predictions, by name; see `Evaluator.update`
    detections: Detections  # after suppression, on the host, in pixels of the original image file


class MetricResult(Protocol):
    """What a metric computes: its numbers, and whatever pictures and tables are made of."""

    def metrics(self) -> dict[str, float]:
        """What is defined, under its tracking name; plain Python numbers."""


R = TypeVar("R", bound=MetricResult)


class Metric(ABC, Generic[R]):
    """Accumulates what it needs of one rank's shard of a split.

    `config` is the experiment's `EvaluationConfig`. The result must not depend on how images are split over batches and
    ranks.
    """

    name: ClassVar[str]
    infos: ClassVar[tuple[MetricInfo, ...]]

    def __init__(self, ground_truth: GroundTruth, config: Any) -> None:
        self.ground_truth, self.config = ground_truth, config

    @abstractmethod
    def update(self, seen: Seen) -> None:
        """Take in one batch."""

    @abstractmethod
    def state(self) -> Arrays:
        """Everything seen so far as flat arrays, small enough to be gathered."""

    @abstractmethod
    def merge(self, states: Sequence[Arrays]) -> Self:
        """A new metric that has seen what the states of all ranks have."""

    @abstractmethod
    def compute(self) -> R:
        """The result of the whole split."""


def joined(parts: Sequence[Arrays]) -> Arrays:
    """Arrays of the same names one after the other; parts that lack a name have nothing of it."""
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: np.concatenate([part[key] for part in parts if key in part]) for key in keys}
