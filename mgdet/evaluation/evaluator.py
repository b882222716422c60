"""The evaluation of a split: collect on every rank, gather, compute once.

Nothing here communicates: `state()` is a dictionary of flat arrays that any transport can carry, and `merge()` takes
the dictionaries of all ranks. An image seen twice or not at all would bias every number, so `compute()` refuses.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from mgdet.boxes import is_degenerate, pairwise_iou
from mgdet.errors import DataError
from mgdet.evaluation.coco import Backend, CocoResult, DetectionArrays, coco_ap
from mgdet.evaluation.divergence import Arrays, DivergenceAccumulator, DivergenceConfig, DivergenceResult
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Batch, Detections, Predictions, Targets


class EvaluationConfig(DivergenceConfig):
    """How a detector is judged."""

    backend: Backend = Field(
        default="faster",
        description="faster-coco-eval, or pycocotools, which gives the same numbers in about eight times the time",
    )
    max_dets: int = Field(
        default=100,
        ge=1,
        description="adds the recall at this many detections an image and class beside COCO's 1, 10 and 100",
    )


@dataclass(frozen=True)
class EvaluationResult:
    """What one pass over a split found."""

    coco: CocoResult
    divergence: DivergenceResult
    seconds: dict[str, float]  # `update` (summed over ranks), `coco`, `divergence`

    def metrics(self) -> dict[str, float]:
        """Everything that is defined under its tracking name; plain Python numbers."""
        return {**self.coco.metrics(), **self.divergence.metrics()}


class Evaluator:
    """Accumulates one rank's shard of a split on the host."""

    def __init__(self, ground_truth: GroundTruth, config: EvaluationConfig | None = None) -> None:
        self.ground_truth = ground_truth
        self.config = config or EvaluationConfig()
        self._objects = _ObjectTable(ground_truth)
        self._divergence = DivergenceAccumulator(self.config)
        self._parts: list[Arrays] = []

    def update(
        self, batch: Batch, predictions: Predictions, detections: Detections, scores: Mapping[str, Tensor]
    ) -> None:
        """Takes in one batch, on any device.

        Args:
            batch: `positions` say which images these are; `targets` are in the pixels of the predictions.
            predictions: before NMS; only `boxes [B, A, 4]` are read.
            detections: after NMS, in pixels of the original image file.
            scores: named scores of the predictions in [0, 1], `[B, A, C]` (or `[B, A]`, whatever the class): `raw`, the
                classification's, and where they differ `rescored`, the one that ranked `detections`.
        """
        start = time.perf_counter()
        self._divergence.update(batch.positions, predictions.boxes, scores, batch.targets)
        final = detections.map(lambda t: t.detach().cpu())
        positions = batch.positions.cpu()
        match_iou = greedy_match(final, self._objects.targets(positions), self.config.iou_floor)
        hit = match_iou > 0
        self._divergence.update_matches(
            final.labels[hit].numpy(), final.scores[hit].float().numpy(), match_iou[hit].numpy()
        )
        row = positions[:, None].expand_as(final.labels)[final.valid]
        self._parts.append(
            {
                "positions": positions.numpy(),
                "image": row.numpy(),
                "boxes": final.boxes[final.valid].float().numpy(),
                "scores": final.scores[final.valid].float().numpy(),
                "labels": final.labels[final.valid].numpy(),
                "seconds": np.array([time.perf_counter() - start]),
            }
        )

    def state(self) -> Arrays:
        """Everything seen so far as flat arrays, small enough to be gathered: detections and one rho an object."""
        own = {k: np.concatenate([p[k] for p in self._parts]) for k in (self._parts[0] if self._parts else ())}
        own |= {f"divergence/{k}": v for k, v in self._divergence.state().items()}
        return own

    def merge(self, states: Sequence[Arrays]) -> "Evaluator":
        """A new evaluator that has seen what the states of all ranks (this one's included) have."""
        out = Evaluator(self.ground_truth, self.config)
        prefix = "divergence/"
        out._parts = [{k: v for k, v in s.items() if not k.startswith(prefix)} for s in states if "positions" in s]
        out._divergence = self._divergence.merge(
            [{k.removeprefix(prefix): v for k, v in s.items() if k.startswith(prefix)} for s in states]
        )
        return out

    def compute(self) -> EvaluationResult:
        """AP and divergence of the whole split; the same however the images were split over ranks and batches.

        Raises:
            DataError: some image was not seen exactly once.
        """
        own = self.state()
        self._check_coverage(own.get("positions", np.zeros(0, dtype=np.int64)))
        coco = coco_ap(self.ground_truth, _detections(own), self.config.backend, self.config.max_dets)
        start = time.perf_counter()
        divergence = self._divergence.compute()
        return EvaluationResult(
            coco=coco,
            divergence=divergence,
            seconds={
                "update": float(own["seconds"].sum()) if "seconds" in own else 0.0,
                "coco": coco.seconds,
                "divergence": time.perf_counter() - start,
            },
        )

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


def _detections(own: Arrays) -> DetectionArrays:
    if "image" not in own:
        return DetectionArrays.empty()
    order = np.argsort(own["image"], kind="stable")  # best score first within an image is kept
    return DetectionArrays(own["image"][order], own["boxes"][order], own["scores"][order], own["labels"][order])


class _ObjectTable:
    """The objects of a split sorted by image, so that those of any batch can be cut out without a loop."""

    def __init__(self, gt: GroundTruth) -> None:
        order = np.argsort(gt.box_image, kind="stable")
        order = order[~gt.iscrowd[order]]  # a crowd is a region, not an object that a box could be right about
        counts = np.bincount(gt.box_image[order], minlength=len(gt.image_ids))
        self.counts = torch.from_numpy(counts)
        self.starts = self.counts.cumsum(0) - self.counts
        self.boxes = torch.from_numpy(gt.boxes[order].astype(np.float64)).reshape(-1, 4)
        self.labels = torch.from_numpy(gt.labels[order].astype(np.int64))

    def targets(self, positions: Tensor) -> Targets:
        """The objects of the images at `positions [B]`, in pixels of the original file."""
        counts = self.counts[positions]
        place = torch.arange(int(counts.max()) if len(counts) else 0)
        valid = place < counts[:, None]
        index = torch.where(valid, self.starts[positions][:, None] + place, 0)
        if not len(self.boxes):
            return Targets(torch.zeros(*valid.shape, 4, dtype=torch.float64), torch.zeros_like(index), valid)
        return Targets(self.boxes[index], self.labels[index], valid)


def greedy_match(detections: Detections, targets: Targets, iou_floor: float) -> Tensor:
    """IoU of each detection with the object it matches, `[B, D]` in float64; 0 where it matches none.

    COCO's rule: from the best score down, a detection takes the object of its class with the highest IoU that is still
    free, if that IoU reaches `iou_floor`. Detections must be sorted by score, as `Detections` are. The images of the
    batch advance together, one rank of the score at a time.
    """
    boxes = detections.boxes.double()
    out = boxes.new_zeros(boxes.shape[:2])
    if not targets.labels.shape[1]:
        return out
    iou = pairwise_iou(boxes, targets.boxes.double())  # [B, D, G]
    usable = targets.valid & ~is_degenerate(targets.boxes)
    same = (detections.labels[..., None] == targets.labels[:, None]) & usable[:, None] & detections.valid[..., None]
    iou = torch.where(same, iou, 0.0)
    taken = torch.zeros_like(targets.valid)
    for d in range(iou.shape[1]):
        best, index = iou[:, d].masked_fill(taken, 0.0).max(dim=1)
        hit = best >= iou_floor
        out[:, d] = torch.where(hit, best, 0.0)
        taken |= torch.nn.functional.one_hot(index, taken.shape[1]).bool() & hit[:, None]
    return out
