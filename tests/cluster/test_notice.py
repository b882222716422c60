"""Machines that go away with notice: a drained node, SIGTERM to a worker. No step is repeated."""

import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from mgdet.cluster.train import run
from tests.cluster.clusters import RAY
from tests.cluster.runs import job, note_cost, one_on_each_node, titled, wait
from tests.faults import same, step_records, weights
from tests.small import small_experiment


def training(directory, name, shared, workers, **changes):
    """A hundred steps and more, with a checkpoint at the end of each epoch."""
    long = {"train__epochs": 20, "train__evaluate_every": 20, "train__log_every": 1, "data__generate__train": 18}
    each = {"cluster__workers": workers, "cluster__cpus_per_worker": 0.5, **shared, **changes}
    return small_experiment(directory, name=name, **long, **each)


def steps(e):
    journal = Path(e.run_uri) / "metrics.jsonl"
    return step_records(journal) if journal.exists() else []


@contextmanager
def held():
    """The workers stand still, so that what is done here is done in the middle of the training."""
    workers = titled("RayTrainWorker")
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    try:
        yield workers
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGCONT)


def left(process, log, e):
    """The training has left a machine and come to its end, with no step twice."""
    wait(process)
    text = log.read_text()
    assert process.returncode == 0, text
    assert "a machine goes away: stopped on request after step" in text
    assert "with a checkpoint of it; starting again on those that stay" in text
    assert "Traceback" not in text
    assert "restart 1" not in text, "it is no failure"


@pytest.mark.slow
def test_a_drained_node_and_sigterm_to_a_worker_cost_no_step(tmp_path, shared, add_node):
    """On a node that is drained, then on its successor, where the worker gets SIGTERM, as if it were the first."""
    straight = training(tmp_path, "straight", shared, 1)
    run(straight)
    node = add_node()
    e = training(tmp_path, "leaving", one_on_each_node(shared), 1)
    log = tmp_path / "log"
    process = job(e, tmp_path, log)
    try:
        wait(process, lambda: len(steps(e)) >= 5)
        with held():
            drain = ["drain-node", f"--address={shared['cluster__address']}", f"--node-id={node.node_id}"]
            why = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=15"]
            subprocess.run([RAY, *drain, *why], check=True, capture_output=True)
            add_node()
        wait(process, lambda: log.exists() and "a machine goes away" in log.read_text())
        reached = len(steps(e))
        wait(process, lambda: len(steps(e)) >= reached + 5)
        with held() as workers:
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
        left(process, log, e)
    finally:
        process.kill()
    assert log.read_text().count("a machine goes away") == 2
    assert note_cost("a node is drained, and a worker gets SIGTERM", e).steps_repeated == 0
    assert same(weights(e), weights(straight))


@pytest.mark.exhaustive
def test_sigterm_to_one_of_two_workers_costs_no_step(tmp_path, shared):
    straight = training(tmp_path, "straight", shared, 2)
    run(straight)
    e = training(tmp_path, "leaving", shared, 2)
    log = tmp_path / "log"
    process = job(e, tmp_path, log)
    try:
        wait(process, lambda: len(steps(e)) >= 5)
        with held() as workers:
            assert len(workers) == 2
            workers[-1].send_signal(signal.SIGTERM)
        left(process, log, e)
    finally:
        process.kill()
    assert note_cost("one of two workers gets SIGTERM", e).steps_repeated == 0
    assert same(weights(e), weights(straight))
