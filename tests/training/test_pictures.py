"""A failed picture costs only a warning in a training, so here each one must really be drawn."""

import io

import pytest
import torch
from PIL import Image

from mgdet.runs.launch import prepare
from mgdet.tracking import NullTracker
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from tests.small import small_experiment


class Recorder(NullTracker):
    """Keeps the artifacts."""

    def __init__(self):
        self.artifacts = {}

    def artifact(self, data, name):
        self.artifacts[name] = data


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_the_last_evaluation_leaves_every_picture_and_table(tmp_path):
    experiment, _ = prepare(small_experiment(tmp_path, train__epochs=1), cpus=1, gpus=0)
    recorder = Recorder()
    Worker(experiment, World(0, 1, torch.device("cpu")), recorder).run()
    pictures = {"pictures/pr_curves.png", "pictures/score_against_iou.png", "pictures/detections.png"}
    assert recorder.artifacts.keys() == pictures | {"per_class.md", "per_class.csv"}
    for name in pictures:
        width, height = Image.open(io.BytesIO(recorder.artifacts[name])).size
        assert min(width, height) > 200
