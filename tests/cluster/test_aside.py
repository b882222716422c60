"""Evaluations aside on a Ray cluster: by an actor beside the workers, which may be lost."""

import json
from pathlib import Path

import pytest

from mgdet.cluster.train import run
from mgdet.errors import ClusterError
from mgdet.training.checkpoint import CheckpointStore
from tests.cluster.runs import experiment, job, note_cost, titled, wait
from tests.faults import same, weights


def values(e):
    """The last evaluation of each step in the journal."""
    lines = [json.loads(line) for line in (Path(e.run_uri) / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics"]["val/AP"] for line in lines if "val/AP" in line["metrics"]}


@pytest.mark.slow
def test_the_process_that_evaluates_is_killed(tmp_path, shared):
    """The numbers are those of an evaluation by the workers, and no step is repeated."""
    by_workers = experiment(tmp_path, "workers", **shared)
    run(by_workers)
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
    assert same(weights(e), weights(by_workers))
    assert values(e) == values(by_workers)
    kept = [[(i.step, i.metrics) for i in CheckpointStore(each.run_uri).committed()] for each in (e, by_workers)]
    assert kept[0] == kept[1]
    assert note_cost("the process that evaluates aside is killed", e).steps_repeated == 0


@pytest.mark.slow
def test_it_needs_room_beside_the_workers(tmp_path, shared):
    e = experiment(tmp_path, "aside", evaluation__where="aside", **{**shared, "cluster__cpus_per_worker": 1})
    with pytest.raises(
        ClusterError, match=r"2 workers and 1 that evaluates x 1 CPUs = 3 CPUs.*evaluation.where=workers"
    ):
        run(e)
