"""Sweeps on a real Ray cluster of this machine: nothing deadlocks, nothing is lost, nothing is run twice."""

import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from mgdet.cluster.tune import run_sweep
from mgdet.config import validate
from mgdet.data.shapes import generate_shapes
from mgdet.errors import ConfigError
from mgdet.sweep.config import load_sweep
from tests.cluster.runs import titled
from tests.data.damages import spoil
from tests.forked import Job
from tests.small import small_experiment

pytestmark = pytest.mark.usefixtures("no_ray_left_behind")


def write(directory: Path, **changes) -> Path:
    """A sweep over learning rates on the small experiment, with MLflow in a SQLite file of its own."""
    tracking = {"enabled": True, "uri": f"sqlite:///{directory}/mlflow.db"}
    base = small_experiment(directory, tracking=tracking, train__epochs=4, train__batch_size=2)
    (directory / "base.yaml").write_text(base.to_yaml())
    tree = {
        "name": "s",
        "base": "base.yaml",
        "set": {"cluster.workers": 1, "cluster.cpus_per_worker": 1},
        "space": {"train.optimizer.lr": {"loguniform": [1e-4, 1e-2]}},
        "trials": 3,
        "scheduler": {"name": "none"},
        "report_every_s": 5,
        **changes,
    }
    path = directory / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def runs(directory: Path):
    """Parent and children as MLflow has them."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{directory}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("mgdet").experiment_id])
    parents = [r for r in found if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in found if "mlflow.parentRunId" in r.data.tags]
    assert {r.data.tags["mlflow.parentRunId"] for r in children} <= {p.info.run_id for p in parents}
    return client, parents, sorted(children, key=lambda r: r.info.run_name)


@pytest.fixture
def two_cpus(shared_cluster):
    """The address of a cluster with two CPUs, whatever this machine has."""
    return shared_cluster.address


def free_cpus(address: str) -> float:
    """CPUs that nobody holds, once two are free, or after some seconds."""
    import ray

    ray.init(address=address, logging_level="ERROR")
    try:
        deadline = time.time() + 30
        while (free := ray.available_resources().get("CPU", 0.0)) < 2 and time.time() < deadline:
            time.sleep(0.5)
        return free
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_more_trials_than_fit_end_whatever_becomes_of_each(tmp_path, two_cpus, caplog):
    """Trials of two workers on two CPUs: some end, some are stopped by the scheduler, one meets a gradient of NaN. None
    holds what the next one needs, all of it is free afterwards, and MLflow knows what became of each."""
    path = write(
        tmp_path,
        set={
            "cluster.workers": 2,
            "cluster.cpus_per_worker": 1,
            "cluster.address": two_cpus,
            "train.epochs": 2,
            "model.backbone": "resnet18",  # which learns something in an epoch of three steps
        },
        space={"train.optimizer.lr": {"grid": [1e30, 1e-3, 1e-12]}},
        trials="auto",
        metric="val/spearman/pre_nms_top50",  # AP is 0 for all of them after so few steps
        scheduler={"name": "asha", "grace_epochs": 1, "reduction_factor": 50},
    )
    outcome = run_sweep(load_sweep(path))
    failed, *others = outcome.trials
    assert [t.state for t in outcome.trials[:2]] == ["failed", "finished"]
    stopped = [t for t in others if t.state == "stopped"]
    assert stopped
    assert len(stopped) + sum(t.state == "finished" for t in others) == 2
    assert "not finite" in failed.reason
    assert "is tried again" not in caplog.text, "the same step would fail again"
    assert all(t.reason.startswith("asha: val/spearman/pre_nms_top50 =") for t in stopped)
    assert outcome.winner.state == "finished"
    assert free_cpus(two_cpus) == 2

    client, parents, children = runs(tmp_path)
    assert [(p.info.run_name, p.info.status) for p in parents] == [("s", "FINISHED")]
    status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    assert [(r.info.run_name, r.info.status) for r in children] == [(t.name, status[t.state]) for t in outcome.trials]
    assert [r.data.params["train.optimizer.lr"] for r in children] == ["1e+30", "0.001", "1e-12"]
    assert [r.data.tags.get("mgdet.reason", "") for r in children] == [t.reason for t in outcome.trials]
    winners = [r.info.run_name for r in children if r.data.tags["mgdet.winner"] == "true"]
    assert winners == [outcome.winner.name]
    artifacts = {a.path for a in client.list_artifacts(parents[0].info.run_id)}
    assert {"trials.csv", "winner.yaml", "parallel_coordinates.png", "config.yaml"} <= artifacts


@pytest.mark.exhaustive
def test_many_trials_of_one_worker_share_two_cpus(tmp_path, two_cpus):
    path = write(tmp_path, trials=5, set={"cluster.workers": 1, "cluster.address": two_cpus, "train.epochs": 1})
    outcome = run_sweep(load_sweep(path))
    assert [t.state for t in outcome.trials] == ["finished"] * 5
    assert len({t.settings["train.optimizer.lr"] for t in outcome.trials}) == 5
    assert free_cpus(two_cpus) == 2


@pytest.mark.exhaustive
def test_evaluations_aside_change_no_trial(tmp_path, two_cpus):
    found = {}
    for where in ("workers", "aside"):
        path = write(
            tmp_path,
            name=where,
            set={
                "cluster.address": two_cpus,
                "cluster.workers": 1,
                "cluster.cpus_per_worker": 1,
                "evaluation.where": where,
            },
            space={"train.optimizer.lr": {"grid": [1e-3, 1e-2]}},
            trials="auto",
            concurrent=1,
        )
        outcome = run_sweep(load_sweep(path))
        found[where] = [(t.state, [(e.epoch, e.metrics) for e in t.evaluations]) for t in outcome.trials]
    assert found["aside"] == found["workers"]
    assert [[epoch for epoch, _ in evaluations] for _, evaluations in found["aside"]] == [[1, 2, 3, 4]] * 2


def wait_for(condition, process: Job, log: Path, seconds: float = 600):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, f"not in {seconds} s:\n{log.read_text()[-3000:]}"
        assert process.poll() is None, f"ended:\n{log.read_text()[-3000:]}"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("number", "trials", "concurrent"),
    [
        pytest.param(signal.SIGTERM, 2, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 3, 2, marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGINT, 3, 2, marks=pytest.mark.exhaustive),
    ],
)
def test_a_sweep_that_is_stopped_and_killed_goes_on_where_it_was(tmp_path, two_cpus, number, trials, concurrent):
    """A signal to its process group, with one or two trials on their way: each stops at a checkpoint. The same command,
    and SIGKILL to the driver once a trial has ended and the last is on its way. The same command again: what has ended
    is not run again, the others resume, and MLflow has one run for each trial and no step twice."""
    cluster = {"cluster.workers": 1, "cluster.address": two_cpus}
    path = write(tmp_path, trials=trials, concurrent=concurrent, set={**cluster, "train.epochs": 8})
    last = f"s-{trials - 1:03d}"
    root, logs = tmp_path / "runs" / "s", [tmp_path / "first.log", tmp_path / "second.log"]

    process = Job("tune", [path], logs[0], directory=tmp_path)
    first = [f"s-{i:03d}/checkpoints/*.json" for i in range(concurrent)]
    wait_for(lambda: all(list(root.glob(records)) for records in first), process, logs[0])
    os.killpg(process.pid, number)
    status, text = process.wait(300), logs[0].read_text()
    assert status == 128 + number, text
    assert "trials not done, those that ran at a checkpoint" in text
    assert "Traceback" not in text
    assert "stack trace" not in text.lower()
    assert not (root / "stop").exists()
    _, parents, children = runs(tmp_path)
    assert [p.info.status for p in parents] == ["KILLED"]
    assert {r.info.status for r in children} <= {"KILLED", "FINISHED"}

    process = Job("tune", [path], logs[1], directory=tmp_path)
    try:
        wait_for(lambda: len(list(root.glob(f"{last}/checkpoints/*.json"))) >= 2, process, logs[1])
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    ended = [p.parent for p in root.glob("s-*/checkpoints/step-00000024.json")]  # the last of 8 epochs of 3 steps
    before = {p: p.read_bytes() for directory in ended for p in directory.glob("*.pt")}
    assert before

    outcome = run_sweep(load_sweep(path))
    assert [(t.state, t.epoch) for t in outcome.trials] == [("finished", 8)] * trials
    assert {p: p.read_bytes() for p in before} == before
    assert (root / last / "config.yaml").exists()

    client, parents, children = runs(tmp_path)
    assert [(p.info.run_name, p.info.status) for p in parents] == [("s", "FINISHED")]
    assert [(r.info.run_name, r.info.status) for r in children] == [(f"s-{i:03d}", "FINISHED") for i in range(trials)]
    for r in children:
        for key in ("train/loss", "val/AP"):
            steps = [m.step for m in client.get_metric_history(r.info.run_id, key)]
            assert len(steps) == len(set(steps)) > 0

    again = run_sweep(load_sweep(path))  # nothing left to do
    assert [t.model_dump() for t in again.trials] == [t.model_dump() for t in outcome.trials]
    assert len(runs(tmp_path)[2]) == trials
    with pytest.raises(ConfigError, match=r"exists with another definition[^$]*set: "):
        run_sweep(load_sweep(path, ["train.epochs=5"]))


@pytest.mark.exhaustive
def test_a_trial_with_bad_data_is_not_tried_again(tmp_path, two_cpus, caplog):
    """An image that cannot be read, found in mid-training: one start, one message, and the sweep goes on."""
    path = write(tmp_path, trials=1, max_failures=3, set={"cluster.workers": 1, "cluster.address": two_cpus})
    data = validate(load_sweep(path).base, "the base").data
    generate_shapes(data.uri, data.generate)
    spoil(Path(data.uri), "train", range(3))
    (trial,) = run_sweep(load_sweep(path)).trials
    assert trial.state == "failed"
    assert "data.max_bad_images" in trial.reason
    assert "is tried again" not in caplog.text
    _, _, (run,) = runs(tmp_path)
    assert run.info.status == "FAILED"


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_has_to_stop_at_once(tmp_path, two_cpus, number):
    """A second signal, while its workers hang, so that no checkpoint can be waited for. MLflow has no run left open."""
    long = {"cluster.workers": 1, "cluster.address": two_cpus, "train.epochs": 1000}  # none ends before both have begun
    path = write(tmp_path, trials=2, concurrent=2, set=long)
    root, log = tmp_path / "runs" / "s", tmp_path / "log"
    process = Job("tune", [path], log, directory=tmp_path)
    wait_for(lambda: all(list(root.glob(f"s-00{i}/checkpoints/*.json")) for i in (0, 1)), process, log)
    for worker in titled("RayTrainWorker"):
        worker.send_signal(signal.SIGSTOP)
    os.killpg(process.pid, number)
    wait_for(lambda: (root / "stop").exists(), process, log)
    time.sleep(1)
    os.killpg(process.pid, number)
    status, text = process.wait(120), log.read_text()
    assert status == 128 + number, text
    assert "Traceback" not in text
    _, parents, children = runs(tmp_path)
    assert [r.info.status for r in (*parents, *children)] == ["KILLED"] * 3
    assert free_cpus(two_cpus) == 2
