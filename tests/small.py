"""The smallest experiment that still goes through everything, for tests that train."""

from pathlib import Path
from typing import Any

from mgdet.config import Experiment, validate

STATEFUL = {
    "train__optimizer": {"name": "adamw", "lr": 1e-3},
    "train__ema": {"enabled": True, "decay": 0.9},
}
"""Changes: four tensors in a checkpoint for each weight instead of one."""


def small_experiment(directory: Path, **changes: Any) -> Experiment:
    """Two epochs of six 64-pixel images on one worker in this process; `changes` are dotted keys with `__` for dots.

    Its checkpoints are the weights and little else, and none is made by time; `STATEFUL` has all that a training can
    carry along. It ends without pictures and report, which take longer than all of its steps.
    """
    tree: dict[str, Any] = {
        "name": "small",
        "storage": str(directory / "runs"),
        "data": {
            "uri": str(directory / "shapes"),
            "generate": {"train": 6, "val": 3, "size": 64},
            "transform": {"resize": {"name": "fixed", "height": 64, "width": 64}},
        },
        "model": {
            "name": "retinanet",
            "backbone": "mobilenet_v3_small",  # a tenth of a ResNet-18
            "norm": "gn",
            "channels": 32,
            "anchors": {"sizes": [8, 16, 32, 64, 128], "scales": 1},
        },
        "assigner": {"name": "mutual_guidance"},
        "train": {
            "epochs": 2,
            "batch_size": 2,
            "optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0},
            "schedule": {"name": "cosine"},
            "ema": {"enabled": False},
        },
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
    }
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    tree["tracking"].setdefault("pictures", False)
    tree["train"].setdefault("checkpoint_every_s", None)  # how fast the machine is shall not show
    return validate(tree, "test")
