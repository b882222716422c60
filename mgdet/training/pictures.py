"""Pictures and tables of an evaluation, logged as artifacts of the run."""

import io
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from mgdet.evaluation.coco import CocoAP
from mgdet.evaluation.task_divergence import Divergence
from mgdet.structures import Category, Detections, pad_targets
from mgdet.tracking import Tracker
from mgdet.training.evaluate import Evaluated, Samples

if TYPE_CHECKING:  # Matplotlib takes a third of a second, and one process of a training draws
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


def log_pictures(tracker: Tracker, evaluated: Evaluated, categories: Sequence[Category]) -> None:
    """Log the per-class table, precision-recall curves, score against IoU and sample detections.

    A picture that cannot be drawn costs a warning only.
    """
    from mgdet.evaluation.plots import per_class_table, pr_curves, score_iou_figure

    result = evaluated.result
    coco = result.of(CocoAP)
    figures: dict[str, Callable[[], Figure]] = {
        "pictures/pr_curves.png": lambda: pr_curves(coco),
        "pictures/score_against_iou.png": lambda: score_iou_figure(result.of(Divergence)),
        "pictures/detections.png": lambda: samples_figure(evaluated.samples, categories),
    }
    tracker.artifact(per_class_table(coco), "per_class.md")
    tracker.artifact(per_class_table(coco, "csv"), "per_class.csv")
    for name, draw in figures.items():
        try:
            buffer = io.BytesIO()
            draw().savefig(buffer, format="png", dpi=110)
            tracker.artifact(buffer.getvalue(), name)
        except Exception as error:
            logger.warning("%s was not drawn: %s", name, error)


def samples_figure(samples: Samples, categories: Sequence[Category]) -> "Figure":
    """A figure of the sample images with their objects and detections."""
    from mgdet.evaluation.plots import detections_figure

    height = max(i.shape[1] for i in samples.images)
    width = max(i.shape[2] for i in samples.images)
    images = torch.zeros(len(samples.images), 3, height, width, dtype=torch.uint8)
    for i, image in enumerate(samples.images):
        images[i, :, : image.shape[1], : image.shape[2]] = image
    return detections_figure(
        images,
        pad_targets(samples.boxes, samples.labels),
        _pad(samples.detections),
        categories,
        torch.tensor([i.shape[1:] for i in samples.images]),
        torch.stack(samples.original_sizes),
    )


def _pad(detections: Sequence[Detections]) -> Detections:
    rows = max(d.scores.shape[1] for d in detections)

    def pad(t: torch.Tensor) -> torch.Tensor:
        return torch.cat([t, t.new_zeros(1, rows - t.shape[1], *t.shape[2:])], dim=1)

    padded = [d.map(pad).fields() for d in detections]
    return Detections(**{name: torch.cat([d[name] for d in padded]) for name in padded[0]})
