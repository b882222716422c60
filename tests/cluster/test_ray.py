"""Trainings on a real Ray cluster of this machine: two workers, faults, tracking."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from mgdet.cluster.config import ClusterConfig
from mgdet.cluster.session import session
from mgdet.cluster.train import run
from mgdet.errors import ClusterError
from mgdet.training.checkpoint import CheckpointStore
from tests.cluster.clusters import ray_cluster
from tests.small import small_experiment

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_ray_left_behind(monkeypatch, tmp_path):
    """Runs see no cluster of somebody else, and none of ours is left."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    ray.shutdown()
    deadline = time.time() + 20
    while (left := ray_children()) and time.time() < deadline:
        time.sleep(0.5)
    for process in left:
        process.kill()


def ray_children():
    """Processes of Ray under this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def experiment(tmp_path, name, **changes):
    changes = {"train__epochs": 6, "train__batch_size": 2, "data__generate__train": 12, **changes}
    e = small_experiment(tmp_path, name=name, cluster__workers=2, cluster__cpus_per_worker=0.5, **changes)
    return e.model_copy(update={"train": e.train.model_copy(update={"checkpoint_every_steps": 2})})


def weights(e):
    store = CheckpointStore(e.run_uri)
    return store.load(store.committed()[-1])["model"]


def kill_once(title, when, after=None):
    """Kill the first process whose title holds `title` as soon as `when()` is true; returns the thread and a record."""
    killed = []

    def work():
        while not when():
            time.sleep(0.05)
        if after:
            time.sleep(after)
        for process in ray_children():
            try:
                if title in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
                    return
            except psutil.NoSuchProcess:
                pass

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, killed


def checkpoints(e, at_least):
    return lambda: len(list(Path(e.run_uri).glob("checkpoints/*.json"))) >= at_least


def test_two_workers_survive_a_killed_one_bit_for_bit(tmp_path):
    """A worker is killed in mid-run: the run goes on from its last checkpoint and ends with the very same weights, and
    MLflow has one run in which no step stands twice."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = {"tracking__enabled": True, "tracking__uri": uri}
    calm = experiment(tmp_path, "calm", **tracking)
    summary, _ = run(calm)
    assert summary.epoch >= 1
    assert "val/AP" in summary.metrics

    harsh = experiment(tmp_path, "harsh", **tracking)
    thread, killed = kill_once("RayTrainWorker", checkpoints(harsh, 2))
    run(harsh)
    thread.join(timeout=5)
    assert killed, "the test killed nobody"
    mine, theirs = weights(harsh), weights(calm)
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("mgdet").experiment_id])
    assert sorted(r.info.run_name for r in runs) == ["calm", "harsh"]
    assert {r.info.status for r in runs} == {"FINISHED"}
    for r in runs:
        for key in ("train/loss", "val/AP"):
            steps = [m.step for m in client.get_metric_history(r.info.run_id, key)]
            assert len(steps) == len(set(steps)) > 0
    loss = {r.info.run_name: client.get_metric_history(r.info.run_id, "train/loss")[-1] for r in runs}
    assert (loss["calm"].step, loss["calm"].value) == (loss["harsh"].step, loss["harsh"].value)


def test_a_cluster_beside_another_one_knows_itself(tmp_path, monkeypatch):
    """Ray's own helpers must find the cluster that they belong to, or a stopped trial's resources are lost."""
    import ray

    def state() -> str:
        from ray.util.state import list_nodes

        return list_nodes()[0].node_id

    def knows_itself() -> bool:
        mine = ray.get_runtime_context().get_node_id()
        return ray.get(ray.remote(num_cpus=0)(state).remote(), timeout=60) == mine

    with ray_cluster(num_cpus=1) as other:
        with session(ClusterConfig()):
            assert knows_itself()
        with ray_cluster(num_cpus=1), session(ClusterConfig(address=other.address)):
            assert knows_itself()
    assert "RAY_ADDRESS" not in os.environ


ALONE = """
import os, subprocess, sys
from mgdet.cluster.config import ClusterConfig
from mgdet.cluster.session import session

CLIENT = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print(len(ray.nodes()), 'node')"
with session(ClusterConfig()):
    import ray

    for changes in ({}, {"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        client = [sys.executable, "-c", CLIENT, ray.get_runtime_context().gcs_address]
        done = subprocess.run(client, env=os.environ | changes, capture_output=True, text=True)
        print("came in" if "1 node" in done.stdout else "refused" if "uthentica" in done.stderr else done.stderr)
"""


def test_nobody_else_comes_into_the_cluster_of_a_job():
    """Its ports are open to the network, but it has a token of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run([sys.executable, "-c", ALONE], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-3:] == ["came in", "refused", "refused"], done.stdout + done.stderr


def test_workers_that_do_not_fit_are_refused_with_the_arithmetic(tmp_path):
    e = small_experiment(tmp_path, cluster__workers=2, cluster__cpus_per_worker=500)
    with pytest.raises(ClusterError, match=r"2 workers x 500 CPUs = 1000 CPUs"):
        run(e)
    assert not (tmp_path / "runs").exists()
