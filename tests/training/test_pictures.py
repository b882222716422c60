"""A failed picture or report costs only a warning in a training, so here each one must really be made."""

import io

import pytest
import torch
from PIL import Image

from benchmarks.run_outcome import digests
from mgdet.runs.launch import prepare
from mgdet.tracking import NullTracker, Point
from mgdet.training.checkpoint import CheckpointStore
from mgdet.training.distributed import World
from mgdet.training.drawing import moments
from mgdet.training.loop import Worker
from mgdet.training.report import log_report
from tests.small import STATEFUL, small_experiment

ALONE = World(0, 1, torch.device("cpu"))


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
    experiment, _ = prepare(small_experiment(tmp_path, train__epochs=1, tracking__pictures=True), cpus=1, gpus=0)
    recorder = Recorder()
    Worker(experiment, World(0, 1, torch.device("cpu")), recorder).run()
    pictures = {"pictures/pr_curves.png", "pictures/score_against_iou.png", "pictures/detections.png"}
    assert recorder.artifacts.keys() == pictures | {
        *("per_class.md", "per_class.csv", "report.html", "microscope/epoch-1.html")
    }
    for name in pictures:
        width, height = Image.open(io.BytesIO(recorder.artifacts[name])).size
        assert min(width, height) > 200
    seconds = {name: value for name, value in recorder.metrics.items() if name.startswith("time/")}
    parts = ("data", "network", "postprocess", "coco", "divergence", "pictures", "microscope")
    assert seconds.keys() == {f"time/{part}" for part in parts}
    assert all(value >= 0 for value in seconds.values())
    report = recorder.artifacts["report.html"].decode()
    assert (tmp_path / "runs/small/report.html").read_text() == report
    for said in ("<h1>small</h1>", "Average precision", "Errors", "retinanet", "mutual_guidance", "after step 4"):
        assert said in report
    assert "://" not in report, "it needs no network"
    assert report.count("data:image/png") == 1, "who learns what"
    microscope = recorder.artifacts["microscope/epoch-1.html"]
    assert '"name":"mutual_guidance"' in microscope
    assert '"name":"max_iou"' in microscope


def test_a_report_that_fails_costs_a_warning(tmp_path, caplog):
    experiment, _ = prepare(small_experiment(tmp_path), cpus=1, gpus=0)
    log_report(NullTracker(), experiment, None, None)
    assert "the report of the run was not written" in caplog.text


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [(1, 1, {1}), (2, 1, {1, 2}), (3, 1, {1, 2, 3}), (12, 1, {1, 7, 12}), (12, 5, {5, 10, 12}), (5, 10, {5})],
)
def test_the_microscope_looks_at_the_first_middle_and_last_evaluation(epochs, every, expected):
    assert moments(epochs, every) == expected


@pytest.mark.slow
def test_what_is_drawn_changes_nothing(tmp_path, monkeypatch, caplog):
    """All of the checkpoint is that of a training that draws nothing; a microscope that fails costs a warning."""

    def trained(name, pictures):
        e = small_experiment(tmp_path / name, tracking__pictures=pictures, train__epochs=3, **STATEFUL)
        Worker(prepare(e, cpus=1, gpus=0)[0], ALONE, NullTracker()).run()
        store = CheckpointStore(e.run_uri)
        state = store.load(store.committed()[-1])
        return digests({part: state[part] for part in ("model", "ema", "optimizer", "generators")}, "run")

    expected = trained("off", False)
    assert trained("on", True) == expected
    assert "was not drawn" not in caplog.text
    monkeypatch.setattr("mgdet.microscope.visualize.examine", lambda *args, **options: 1 / 0)
    assert trained("broken", True) == expected
    assert caplog.text.count("was not drawn: division by zero") == 3
