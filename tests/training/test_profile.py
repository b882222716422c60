"""`train.profile` says where the time of a step goes, and changes nothing else."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from mgdet.config import Experiment
from mgdet.runs.launch import prepare
from mgdet.tracking import NullTracker
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.profile import IN_A_STEP, StageTimes, stage
from mgdet.training.progress import Throughput, progress_line, training_progress
from tests.small import small_experiment

METRICS = {"train/loss": 1.0, "train/lr": 0.1, "train/images_per_s": 2.0}


class Kept(NullTracker):
    """A tracker that keeps the artifacts."""

    def __init__(self) -> None:
        self.artifacts: dict[str, bytes] = {}

    def artifact(self, data, name):
        self.artifacts[name] = data


def trained(experiment: Experiment) -> tuple[Worker, Kept]:
    tracker = Kept()
    worker = Worker(prepare(experiment, cpus=1, gpus=0)[0], World(0, 1, torch.device("cpu")), tracker)
    worker.run()
    return worker, tracker


@pytest.mark.slow
def test_a_table_and_a_trace(tmp_path):
    plain, _ = trained(small_experiment(tmp_path / "plain", train__epochs=1))
    worker, tracker = trained(small_experiment(tmp_path, train__epochs=1, train__profile=2))
    for mine, theirs in zip(worker.detector.parameters(), plain.detector.parameters(), strict=True):
        assert torch.equal(mine, theirs), "measuring changes no weight"
    directory = Path(worker.experiment.run_uri) / "profile"
    assert not (Path(plain.experiment.run_uri) / "profile").exists()
    table = (directory / "stages.txt").read_text()
    assert table.startswith("1 optimizer step,"), "three steps in all, of which two warm up"
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()[2:]}
    assert rows.keys() == {*IN_A_STEP, "other", "step", "save", "evaluate"}
    parts = sum(float(rows[name][0]) for name in (*IN_A_STEP, "other"))
    assert parts == pytest.approx(float(rows["step"][0]), abs=0.5)
    assert all(float(rows[name][0]) > 0 for name in ("forward", "assign", "loss", "backward", "optimizer", "save"))
    trace = (directory / "trace.json.gz").read_bytes()
    named = {event.get("name") for event in json.loads(gzip.decompress(trace))["traceEvents"]}
    assert set(IN_A_STEP) - {"wait"} <= named
    assert tracker.artifacts["profile/stages.txt"] == table.encode()
    assert tracker.artifacts["profile/trace.json.gz"] == trace


def test_a_stage_costs_nothing_where_nobody_measures(monkeypatch):
    def never(times):
        raise AssertionError("the clock is read")

    monkeypatch.setattr(StageTimes, "now", never)
    with stage("forward"):
        pass


def test_waiting_is_told_where_it_matters():
    line = (0, 2, 1, 4, METRICS, 1.0)
    for waiting, told in ((0.04, False), (0.4, True)):
        assert ("40% waiting for images" in progress_line(*line, waiting)) is told
        assert ("40% waiting for images" in training_progress(*line, waiting).detail) is told


def test_the_share_of_waiting(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mgdet.training.progress.time.perf_counter", lambda: now[0])

    def slow():
        now[0] += 3.0
        yield "batch"

    clock, batches = Throughput(), slow()
    assert clock.next(batches) == "batch"
    now[0] += 1.0
    assert clock.waiting() == 0.75
    assert clock.next(batches) is None
