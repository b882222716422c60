"""Parts of a cluster are lost in mid-run. Each time: the run ends with the weights of an undisturbed one, bit for bit.

Each test notes what the fault cost: benchmarks/faults.py makes the table of docs/operations.md of it. The integration
tier has a fault after which Ray starts the workers again, the loss of a node, and one after which the user does.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from mgdet.cluster.train import run
from mgdet.errors import ClusterError
from tests.cluster.clusters import Head
from tests.cluster.runs import TRAIN, checkpoints, experiment, job, note_cost, one_on_each_node, titled, wait
from tests.faults import same, step_records, weights
from tests.forked import run_job

pytestmark = pytest.mark.usefixtures("no_ray_left_behind")


def after(condition, action):
    """Do `action` in a thread once `condition()` holds; returns the list that it fills."""
    done = []

    def work():
        while not condition():
            time.sleep(0.02)
        done.append(action())

    threading.Thread(target=work, daemon=True).start()
    return done


def signalled(title, number, everyone=False):
    """Send a signal to the first process of Ray with this title, or to all of them, but to none that is there now."""
    before = titled(title)

    def action():
        hit = []
        for process in titled(title):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process not in before and (everyone or not hit):
                    process.send_signal(number)
                    hit.append(process.pid)
        return hit

    return action


def in_mlflow(directory):
    """Changes of an experiment: it is tracked in a SQLite file of this directory."""
    return {"tracking": {"enabled": True, "uri": f"sqlite:///{directory}/mlflow.db"}}


def in_mlflow_as(directory):
    """Names of the runs in MLflow and the status of each."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{directory}/mlflow.db")
    found = client.get_experiment_by_name("mgdet")
    return {r.info.run_name: r.info.status for r in client.search_runs([found.experiment_id])} if found else {}


def assert_tracked_once(e):
    """MLflow has one run, in which each step of the journal stands once."""
    from mlflow import MlflowClient

    client = MlflowClient(e.tracking.uri)
    (tracked,) = client.search_runs([client.get_experiment_by_name("mgdet").experiment_id])
    assert (tracked.info.run_name, tracked.info.status) == (e.name, "FINISHED")
    losses = {r["step"]: r["metrics"]["train/loss"] for r in step_records(Path(e.run_uri) / "metrics.jsonl")}
    history = client.get_metric_history(tracked.info.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == sorted(losses.items())


@pytest.mark.exhaustive
def test_a_worker_that_is_killed(tmp_path, undisturbed, shared):
    e = experiment(tmp_path, "killed", **in_mlflow(tmp_path), **shared)
    done = after(lambda: checkpoints(e) >= 2, signalled("RayTrainWorker", signal.SIGKILL))
    summary, _ = run(e)
    assert done[0]
    assert same(weights(e), undisturbed(2))
    assert "val/AP" in summary.metrics
    note_cost("worker killed", e)
    assert_tracked_once(e)


@pytest.mark.exhaustive
def test_what_the_memory_monitor_ends(tmp_path):
    """A real Ray whose monitor finds any use of memory too much: it ends every process that it may."""
    head = Head({"RAY_memory_usage_threshold": "0", "RAY_memory_monitor_refresh_ms": "100"})
    try:
        head.wait()
        e = experiment(tmp_path, "monitored", workers=1, cluster__max_failures=0)
        (tmp_path / "c.yaml").write_text(e.to_yaml())
        there = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{head.gcs}"}
        done = run_job("train", [tmp_path / "c.yaml"], tmp_path / "log", 600, directory=tmp_path, environment=there)
    finally:
        head.kill()
    assert done.returncode == 2, done.output
    assert "Lower train.batch_size" in done.output
    assert "the same command continues from the last checkpoint" in done.output
    assert "Traceback" not in done.output.splitlines()[-1]
    assert not checkpoints(e)


@pytest.mark.exhaustive
def test_a_controller_that_is_killed(tmp_path, undisturbed, shared):
    """The driver says so and ends; the same command goes on."""
    e = experiment(tmp_path, "controlled", **shared)
    done = after(lambda: checkpoints(e) >= 1, signalled("TrainController", signal.SIGKILL))
    with pytest.raises(ClusterError, match="the same command continues"):
        run(e)
    assert done[0]
    run(e)
    assert same(weights(e), undisturbed(2))
    note_cost("Train controller killed, same command again at once", e)


@pytest.mark.exhaustive
@pytest.mark.parametrize("which", ["one", "all"])
def test_a_worker_that_hangs(tmp_path, undisturbed, shared, which):
    """One is found by those that wait for its gradients, all by Ray, which asks them."""
    e = experiment(tmp_path, f"hung-{which}", cluster__collective_timeout_s=15, **shared)
    done = after(lambda: checkpoints(e) >= 2, signalled("RayTrainWorker", signal.SIGSTOP, everyone=which == "all"))
    run(e)
    assert done[0]
    assert same(weights(e), undisturbed(2))
    assert note_cost(f"worker hung, {which} of two, cluster.collective_timeout_s=15", e).seconds >= 5


@pytest.mark.exhaustive
def test_a_loader_process_that_is_killed(tmp_path, undisturbed, shared):
    """It decodes images for a worker, which then fails and is restarted."""
    e = experiment(tmp_path, "loader", data__loader__workers=1, **shared)

    def kill():
        for process in titled("RayTrainWorker"):
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in process.children():
                    if "forkserver" in " ".join(child.cmdline()):
                        for grandchild in child.children():
                            grandchild.kill()
                            return grandchild.pid
        return None

    done = after(lambda: checkpoints(e) >= 2, kill)
    run(e)
    assert done[0]
    assert same(weights(e), undisturbed(2))
    note_cost("loader process killed", e)


@pytest.mark.slow
def test_a_node_that_is_lost(tmp_path, undisturbed, shared, shared_cluster, add_node):
    """Its raylet is killed with the worker on it, and the run goes on on a node to spare.

    The workers, always on two nodes, learn what two workers on one node learn. MLflow has one run, no step of it twice.
    """
    nodes = [add_node() for _ in range(3)]
    e = experiment(tmp_path, "lost", **in_mlflow(tmp_path), **one_on_each_node(shared))

    def lose():
        busy = worker_node()
        victim = next(n for n in nodes if n.node_id == busy)
        shared_cluster.remove_node(victim, allow_graceful=False)
        return victim.node_id

    def worker_node():
        import ray

        return next(
            a["Address"]["NodeID"]
            for a in ray._private.state.actors().values()
            if "RayTrainWorker" in a["ActorClassName"] and a["State"] == "ALIVE"
        )

    done = after(lambda: checkpoints(e) >= 2, lose)
    run(e)
    assert done
    assert same(weights(e), undisturbed(2))
    note_cost("node lost, one to spare", e)
    assert_tracked_once(e)


@pytest.mark.exhaustive
def test_a_driver_that_is_killed(tmp_path, undisturbed):
    e = experiment(tmp_path, "driven")
    process = job(e, tmp_path, tmp_path / "log")
    wait(process, lambda: checkpoints(e) >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(e)
    assert same(weights(e), undisturbed(2))
    note_cost("driver killed, same command again at once", e)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("number", "own"),
    [
        (signal.SIGTERM, True),
        (signal.SIGTERM, False),
        (signal.SIGINT, True),
        (signal.SIGINT, False),
    ],
)
def test_a_driver_that_gets_sigterm(tmp_path, undisturbed, shared, number, own):
    """As from Ctrl-C, Kubernetes or a batch system: a last checkpoint, and nothing is done twice.

    It goes to the whole process group, in which the processes of a Ray of its `own` are not.
    """
    e = experiment(tmp_path, "terminated", **in_mlflow(tmp_path), **({} if own else shared))
    process = job(e, tmp_path, tmp_path / "log")
    wait(process, lambda: checkpoints(e) >= 1)
    os.killpg(process.pid, number)
    status, log = process.wait(timeout=300), (tmp_path / "log").read_text()
    assert status == 128 + number, log
    assert "the same command goes on" in log
    assert "Traceback" not in log
    assert "Fatal" not in log
    assert in_mlflow_as(tmp_path) == {"terminated": "KILLED"}
    assert not (Path(e.run_uri) / "stop").exists()
    run(e)
    assert same(weights(e), undisturbed(2))
    assert note_cost(f"{signal.Signals(number).name} to the driver, same command again", e).steps_repeated == 0
    assert_tracked_once(e)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(tmp_path, number):
    """The workers hang, so that no checkpoint can be waited for."""
    e = experiment(tmp_path, "twice", **in_mlflow(tmp_path))
    process = job(e, tmp_path, tmp_path / "log")
    wait(process, lambda: checkpoints(e) >= 1)
    for worker in titled("RayTrainWorker"):
        worker.send_signal(signal.SIGSTOP)
    os.killpg(process.pid, number)
    time.sleep(2)
    assert process.poll() is None
    os.killpg(process.pid, number)
    status, log = process.wait(timeout=120), (tmp_path / "log").read_text()
    assert status == 128 + number, log
    assert "Traceback" not in log
    assert in_mlflow_as(tmp_path) == {"twice": "KILLED"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("said", ["name: early", "workers, rank 0", "epoch 2:"])
def test_a_signal_in_any_phase(tmp_path, number, said):
    """While the workers start, in the first steps, and about an evaluation and its checkpoint."""
    e = experiment(tmp_path, "early", **in_mlflow(tmp_path))
    log = tmp_path / "log"
    process = job(e, tmp_path, log)
    wait(process, lambda: log.exists() and said in log.read_text())
    os.killpg(process.pid, number)
    status, text = process.wait(timeout=300), log.read_text()
    assert status == 128 + number, text
    assert "Traceback" not in text
    assert set(in_mlflow_as(tmp_path).values()) <= {"KILLED"}
    run(e)
    assert in_mlflow_as(tmp_path) == {"early": "FINISHED"}


@pytest.mark.exhaustive
def test_a_head_that_is_lost(tmp_path, undisturbed):
    """With all its processes, in mid-run of a submitted job. A new head gets the same job."""
    e = experiment(tmp_path, "headless", cluster__cpus_per_worker=1)
    directory = tmp_path / "submitted"
    directory.mkdir()
    (directory / "headless.yaml").write_text(e.to_yaml())
    submit = ("submit", "--working-dir", directory, "--no-wait", "--", sys.executable, TRAIN, "headless.yaml")
    succeeded = lambda head: "SUCCEEDED" in [job.status for job in head.client.list_jobs()]  # noqa: E731
    for end in (lambda head: checkpoints(e) >= 2, succeeded):
        head = Head().wait()
        try:
            assert head.job(*submit).returncode == 0
            wait(head.process, functools.partial(end, head))
        finally:
            head.kill()
    assert same(weights(e), undisturbed(2))
    note_cost("head lost, new head, same job again", e)
