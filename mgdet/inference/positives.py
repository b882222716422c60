"""How many priors learn from each object, by the assigner of a training, on the network as it is evaluated."""

import numpy as np
import torch

from mgdet.assign import Assigner
from mgdet.evaluation.matching import Ints
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Batch, Predictions

TASKS = ("classification", "localization")


class PositiveCounts:
    """Counts while batches pass: give it to `mgdet.training.evaluate.evaluate` as `watch`.

    The labels are those of the assigner itself, without its warm-up, on images without augmentation and with the
    evaluated weights, and priors over crowds are not ignored.

    Args:
        gt: the `M` objects of the split, those of an image in the order in which its batch has them.
        assigner: of the training.
    """

    def __init__(self, gt: GroundTruth, assigner: Assigner) -> None:
        self._assigner = assigner
        objects = np.flatnonzero(~gt.iscrowd)
        self._rows = objects[np.argsort(gt.box_image[objects], kind="stable")]
        self._starts = np.searchsorted(gt.box_image[self._rows], np.arange(len(gt.image_ids) + 1))
        self.counts: dict[str, Ints]
        """Of each task, `[M]`; 0 for crowds."""
        self._objects = len(gt.boxes)
        self.clear()

    def clear(self) -> None:
        """Forget what was counted."""
        self.counts = {task: np.zeros(self._objects, dtype=np.int64) for task in TASKS}

    def __call__(self, batch: Batch, predictions: Predictions) -> None:
        """Count in one batch."""
        found = self._assigner(predictions, batch.targets)
        places = batch.targets.labels.shape[1]
        for task, labels in zip(TASKS, (found.cls, found.loc), strict=True):
            for index, position in zip(labels.gt_index.cpu(), batch.positions.tolist(), strict=True):
                per_object = torch.bincount(index[index >= 0], minlength=places).numpy()
                rows = self._rows[self._starts[position] : self._starts[position + 1]]
                self.counts[task][rows] = per_object[: len(rows)]
