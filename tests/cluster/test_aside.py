"""Evaluations aside on a Ray cluster: by an actor beside the workers, which may be lost."""

import json
from pathlib import Path

import pytest

from mgdet.cluster.train import run
from mgdet.errors import ClusterError
from mgdet.inference.evaluate import evaluate_trained
from mgdet.inference.load import load_detector
from mgdet.training.checkpoint import CheckpointStore
from tests.cluster.runs import experiment, job, note_cost, titled, wait


@pytest.mark.slow
def test_the_process_that_evaluates_is_killed(tmp_path, shared):
    """The numbers are those of any evaluation of these weights, and no step is repeated."""
    e = experiment(tmp_path, "aside", evaluation__where="aside", **shared)
    log = tmp_path / "log"
    process = job(e, tmp_path, log)
    wait(process, lambda: titled("_Actor.answer"))
    for judge in titled("_Actor"):
        judge.kill()
    wait(process)
    text = log.read_text()
    assert process.returncode == 0, text
    assert "2 workers and 1 that evaluates x 0.5 CPUs = 1.5 CPUs" in text
    assert "Traceback" not in text
    lines = [json.loads(line) for line in (Path(e.run_uri) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/AP" in line["metrics"]] == [12, 24], "after two and four epochs"
    store = CheckpointStore(e.run_uri)
    judged = [info for info in store.committed() if info.metrics]
    assert judged[-1].step == 24
    assert not any(info.pending for info in store.committed())
    for info in judged:
        assert evaluate_trained(load_detector(str(store.path(info)))).metrics == info.metrics
    assert note_cost("the process that evaluates aside is killed", e).steps_repeated == 0


@pytest.mark.slow
def test_it_needs_room_beside_the_workers(tmp_path, shared):
    e = experiment(tmp_path, "aside", evaluation__where="aside", **{**shared, "cluster__cpus_per_worker": 1})
    with pytest.raises(
        ClusterError, match=r"2 workers and 1 that evaluates x 1 CPUs = 3 CPUs.*evaluation.where=workers"
    ):
        run(e)
