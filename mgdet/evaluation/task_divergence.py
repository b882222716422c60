"""The divergence of the two tasks as a metric: correlations before suppression, and of the final detections."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from mgdet.boxes import is_degenerate, pairwise_iou
from mgdet.evaluation.candidates import pick
from mgdet.evaluation.divergence import DivergenceAccumulator, DivergenceResult
from mgdet.evaluation.metric import Arrays, Metric, MetricInfo, Seen
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Detections, Targets


class Divergence(Metric[DivergenceResult]):
    """`mgdet.evaluation.divergence` of the predictions, and of the detections that match an object."""

    name: ClassVar[str] = "divergence"
    infos: ClassVar[tuple[MetricInfo, ...]] = (
        MetricInfo(
            "val/divergence",
            "min",
            "1 - Spearman(score, IoU) of the detections that match an object, mean over classes",
            headline=True,
            brief=True,
        ),
        MetricInfo("val/divergence_raw", "min", "the same of the class score before rescoring", headline=True),
        MetricInfo("val/divergence_oracle", "min", "the same of class score times true IoU", headline=True),
        MetricInfo("val/divergence_n", "max", "detections that val/divergence stands on", headline=True),
        MetricInfo("val/divergence_recall", "max", "share of the objects that a detection matches", headline=True),
        MetricInfo(
            "val/divergence_pre_nms",
            "min",
            "1 - Spearman(score, IoU) of the boxes before suppression, mean over objects",
            headline=True,
        ),
        MetricInfo("val/divergence_pre_nms_<score>", "min", "the same of another score: raw, oracle"),
        MetricInfo("val/spearman/<population>", "max", "Spearman(score, IoU) over a population of boxes"),
    )

    def __init__(self, ground_truth: GroundTruth, config: Any) -> None:
        super().__init__(ground_truth, config)
        self._objects = _ObjectTable(ground_truth)
        self._accumulator = DivergenceAccumulator(config)

    def update(self, seen: Seen) -> None:
        """See `Metric`."""
        batch, final = seen.batch, seen.detections
        self._accumulator.update(batch.positions, seen.predictions.boxes, seen.scores, batch.targets)
        objects = self._objects.targets(batch.positions.cpu())
        match_iou = greedy_match(final, objects, self.config.iou_floor)
        image, place = torch.nonzero(match_iou, as_tuple=True)
        labels, priors = final.labels[image, place], final.priors[image, place]
        scores = {name: score.cpu().numpy() for name, score in pick(seen.scores, image, priors, labels).items()}
        self._accumulator.update_matches(
            labels.numpy(), scores, match_iou[image, place].numpy(), int(objects.valid.sum())
        )

    def state(self) -> Arrays:
        """See `Metric`: one rho for each object and image, and the matched detections."""
        return self._accumulator.state()

    def merge(self, states: Sequence[Arrays]) -> Self:
        """See `Metric`."""
        out = type(self)(self.ground_truth, self.config)
        out._accumulator = self._accumulator.merge(states)
        return out

    def compute(self) -> DivergenceResult:
        """See `Metric`."""
        return self._accumulator.compute()


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
