"""A failed picture or report costs only a warning in a training, so here each one must really be made."""

import io

import pytest
import torch
from PIL import Image

from mgdet.runs.launch import prepare
from mgdet.tracking import NullTracker, Point
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.report import log_report
from tests.small import small_experiment


class Recorder(NullTracker):
    """Keeps the artifacts and metrics."""

    def __init__(self):
        self.artifacts, self.metrics = {}, {}

    def log(self, metrics, step):
        self.metrics |= metrics

    def points(self):
        return (Point("val/AP", step / 10, 0, step) for step in range(5))

    def artifact(self, data, name):
        self.artifacts[name] = data


@pytest.mark.slow
def test_the_last_evaluation_leaves_every_picture_and_table(tmp_path):
    experiment, _ = prepare(small_experiment(tmp_path, train__epochs=1, tracking__report=True), cpus=1, gpus=0)
    recorder = Recorder()
    Worker(experiment, World(0, 1, torch.device("cpu")), recorder).run()
    pictures = {"pictures/pr_curves.png", "pictures/score_against_iou.png", "pictures/detections.png"}
    assert recorder.artifacts.keys() == pictures | {"per_class.md", "per_class.csv", "report.html"}
    for name in pictures:
        width, height = Image.open(io.BytesIO(recorder.artifacts[name])).size
        assert min(width, height) > 200
    seconds = {name: value for name, value in recorder.metrics.items() if name.startswith("time/")}
    parts = ("data", "network", "postprocess", "coco", "divergence", "pictures")
    assert seconds.keys() == {f"time/{part}" for part in parts}
    assert all(value >= 0 for value in seconds.values())
    report = recorder.artifacts["report.html"].decode()
    assert (tmp_path / "runs/small/report.html").read_text() == report
    for said in ("<h1>small</h1>", "Average precision", "Errors", "retinanet", "mutual_guidance", "after step 4"):
        assert said in report
    assert "://" not in report, "it needs no network"


def test_a_report_that_fails_costs_a_warning(tmp_path, caplog):
    experiment, _ = prepare(small_experiment(tmp_path), cpus=1, gpus=0)
    log_report(NullTracker(), experiment, None, None)
    assert "the report of the run was not written" in caplog.text
