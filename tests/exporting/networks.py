"""Detectors that find much in anything, without a training."""

import copy
from pathlib import Path

import numpy as np
import torch

from mgdet.exporting.verify import Rows, compare
from mgdet.inference.load import Trained
from mgdet.structures import Category
from tests.small import small_experiment

MODELS = {
    "retinanet": {
        "model": {
            "name": "retinanet",
            "backbone": "mobilenet_v3_small",
            "norm": "gn",
            "channels": 32,
            "anchors": {"sizes": [8, 16, 32, 64, 128], "scales": 1, "offset": 0.5},
            "quality": "iou",
            "rescoring": {"combine": "power"},
        },
        "assigner": {"name": "max_iou"},
    },
    "fcos": {
        "model": {"name": "fcos", "backbone": "mobilenet_v3_small", "norm": "gn", "channels": 32},
        "assigner": {"name": "center_sampling"},
        "data__transform__resize": {"name": "longest_edge", "height": 96, "width": 64},
    },
}
CLASSES = ("disk", "square", "Stern", "数")


def untrained(directory: Path, name: str, **changes) -> Trained:
    """A network with random weights as if a training had left it; its data set does not exist."""
    low = {"model__postprocess": {"score_threshold": 0.05, "pre_nms_top_k": 60, "max_detections": 40}}
    experiment = small_experiment(directory, **{**copy.deepcopy(MODELS[name]), **low, "name": name, **changes})
    torch.manual_seed(0)
    detector = experiment.model.build(len(CLASSES)).eval().requires_grad_(False)
    torch.nn.init.normal_(detector.class_layers[0].weight, std=0.5)  # scores from 0 to 1, each of its own
    torch.nn.init.zeros_(detector.class_layers[0].bias)
    categories = tuple(Category(10 + i, name) for i, name in enumerate(CLASSES))
    where = str(directory / "runs" / name / "checkpoints" / "step-00000006.pt")
    return Trained(detector, experiment, categories, torch.device("cpu"), where, 2, 6, False, 1, 2, {})


def require_same(found, expected, settings, score):
    """The detections from `score` on are the same within the tolerances; those with nearly equal scores may swap."""
    settings = settings.model_copy(update={"score_threshold": score})
    both = [
        Rows(*(torch.as_tensor(np.asarray(column).copy()) for column in (one.boxes, one.scores, one.labels)))
        for one in (expected, found)
    ]
    compared = compare(*(Rows(r.boxes.float().view(-1, 4), r.scores.float(), r.labels.long()) for r in both), settings)
    assert compared.different == ()
    assert compared.undecided <= 0.5 * len(both[0].scores)
