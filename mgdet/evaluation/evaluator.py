"""The evaluation of a split: collect on every rank, gather, compute once.

Nothing here communicates: `state()` is a dictionary of flat arrays that any transport can carry, and `merge()` takes
the dictionaries of all ranks. An image seen twice or not at all would bias every number, so `compute()` refuses.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from mgdet.errors import DataError
from mgdet.evaluation.average_precision import Backend, Protocol
from mgdet.evaluation.coco import CocoAP
from mgdet.evaluation.divergence import DivergenceConfig
from mgdet.evaluation.metric import Arrays, Metric, MetricInfo, MetricResult, Seen
from mgdet.evaluation.task_divergence import Divergence
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Batch, Detections, Predictions

R = TypeVar("R", bound=MetricResult)

METRICS: list[type[Metric[Any]]] = [CocoAP, Divergence]
"""What every evaluation computes; their numbers appear in tables, sweeps and trackers in this order."""
AP, DIVERGENCE = CocoAP.infos[0], Divergence.infos[0]
"""What is asked of a detector first. Checkpoints are ranked by AP, and sweeps unless they name a metric."""
LATENCY = MetricInfo("val/latency_ms", "min", "milliseconds of one image alone, from its pixels to its detections")
PARAMETERS = MetricInfo("val/parameters", "min", "parameters of the network")
"""What `evaluation.cost` adds."""


def infos() -> list[MetricInfo]:
    """The entries of all numbers that an evaluation gives."""
    return [*(info for metric in METRICS for info in metric.infos), LATENCY, PARAMETERS]


def info_of(name: str) -> MetricInfo | None:
    """The entry of a tracked name, or None where no metric gives it."""
    return next((info for info in infos() if info.matches(name)), None)


def headlines(found: Iterable[str], brief: bool = False) -> list[str]:
    """Those of the names that a person asks for first, in the order in which they are shown; `brief`: in one line."""
    names = set(found)
    return [i.name for i in infos() if (i.brief if brief else i.headline) and i.name in names]


class EvaluationConfig(DivergenceConfig):
    """How a detector is judged."""

    where: Literal["workers", "aside"] = Field(
        default="workers",
        description="workers: those of the training evaluate it, and train on afterwards; aside: one more process of "
        "the size of a worker evaluates the checkpoints while training goes on. The numbers are the same",
    )
    protocol: Protocol = Field(
        default="coco",
        description="rule of AP: COCO's, or VOC's of 2007 (11 points) or 2012 (area) at COCO's ten IoUs",
    )
    backend: Backend = Field(
        default="faster",
        description="of the protocol coco: faster-coco-eval; hotcoco (the extra mgdet[hotcoco]) in about a tenth of "
        "its time; or pycocotools in about eight times its time. All give the same numbers",
    )
    max_dets: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="detections of an image and class that AP of the protocol coco counts, at least 100 (LVIS: 300; "
        "model.postprocess.max_detections has to allow them); adds the recall at this limit to those at 1, 10 and 100",
    )
    cost: bool = Field(
        default=False,
        description="also measure val/latency_ms, the median time of one image alone on the device that evaluates, and "
        "val/parameters, so that a sweep can bound them",
    )
    tile_nms_iou: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="of a split that was prepared as tiles: same-class boxes of a whole picture that overlap more are "
        "suppressed before AP is computed",
    )


@dataclass(frozen=True)
class EvaluationResult:
    """What one pass over a split found: the result of each metric by its name."""

    results: Mapping[str, MetricResult]

    def of(self, metric: type[Metric[R]]) -> R:
        """The result of a metric."""
        return self.results[metric.name]  # type: ignore[return-value]  # it was computed by this metric

    def metrics(self) -> dict[str, float]:
        """Everything that is defined under its tracking name; plain Python numbers."""
        return {name: value for result in self.results.values() for name, value in result.metrics().items()}


class Evaluator:
    """Accumulates one rank's shard of a split on the host, for all `METRICS`."""

    def __init__(self, ground_truth: GroundTruth, config: EvaluationConfig | None = None) -> None:
        self.ground_truth = ground_truth
        self.config = config or EvaluationConfig()
        self._metrics = [metric(ground_truth, self.config) for metric in METRICS]
        self._positions: list[NDArray[np.int64]] = []
        self.seconds = {metric.name: 0.0 for metric in METRICS}
        """How long each metric took so far."""

    def update(
        self, batch: Batch, predictions: Predictions, detections: Detections, scores: Mapping[str, Tensor]
    ) -> None:
        """Takes in one batch, on any device.

        Args:
            batch: `positions` say which images these are; `targets` are in the pixels of the predictions.
            predictions: before suppression.
            detections: after suppression, in pixels of the original image file.
            scores: named scores of the predictions in [0, 1], `[B, A, C]` (or `[B, A]`, whatever the class): `raw`, the
                classification's, and where they differ `rescored`, the one that ranked `detections`.
        """
        seen = Seen(batch, predictions, scores, detections.map(lambda t: t.detach().cpu()))
        self._positions.append(batch.positions.cpu().numpy())
        for metric in self._metrics:
            start = time.perf_counter()
            metric.update(seen)
            self.seconds[metric.name] += time.perf_counter() - start

    def state(self) -> Arrays:
        """Everything seen so far as flat arrays, small enough to be gathered."""
        own = {f"{m.name}/{key}": array for m in self._metrics for key, array in m.state().items()}
        return {"positions": self._seen_positions(), **own}

    def merge(self, states: Sequence[Arrays]) -> "Evaluator":
        """A new evaluator that has seen what the states of all ranks (this one's included) have."""
        out = Evaluator(self.ground_truth, self.config)
        out._positions = [s["positions"] for s in states]
        out._metrics = [m.merge([_below(m.name, s) for s in states]) for m in self._metrics]
        return out

    def compute(self) -> EvaluationResult:
        """The results of the whole split; the same however the images were split over ranks and batches.

        Raises:
            DataError: some image was not seen exactly once.
        """
        self._check_coverage(self._seen_positions())
        results: dict[str, MetricResult] = {}
        for metric in self._metrics:
            start = time.perf_counter()
            results[metric.name] = metric.compute()
            self.seconds[metric.name] += time.perf_counter() - start
        return EvaluationResult(results)

    def _seen_positions(self) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(0, dtype=np.int64), *self._positions])

    def _check_coverage(self, positions: NDArray[np.int64]) -> None:
        ids = self.ground_truth.image_ids
        outside = positions[(positions < 0) | (positions >= len(ids))]
        if len(outside):
            raise DataError(
                f"image position {outside[0]} was evaluated, but the ground truth has {len(ids)} images: it belongs to "
                "another split"
            )
        seen = np.bincount(positions, minlength=len(ids))
        missing, repeated = np.flatnonzero(seen == 0), np.flatnonzero(seen > 1)
        if len(missing) or len(repeated):
            raise DataError(
                f"{len(positions)} images were evaluated, but the split has {len(ids)} and each must be seen exactly "
                f"once: {len(missing)} missing{_first(ids[missing])}, {len(repeated)} duplicate{_first(ids[repeated])}"
                "; evaluate shards without padding, and merge the state of every rank once"
            )


def _first(ids: NDArray[np.int64]) -> str:
    return f" (first image ids {', '.join(map(str, ids[:3].tolist()))})" if len(ids) else ""


def _below(name: str, state: Arrays) -> Arrays:
    """The arrays of one metric in the state of an evaluator."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}
