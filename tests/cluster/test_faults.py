"""Parts of a cluster are lost in mid-run. Each time: the run ends with the weights of an undisturbed one, bit for bit.

With MGDET_FAULTS=file.jsonl each test adds what the fault cost: the figures of docs/operations.md.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from mgdet.cluster.train import run
from mgdet.errors import ClusterError
from mgdet.training.checkpoint import CheckpointStore
from tests.cluster.clusters import Head, ray_cluster
from tests.cluster.test_ray import no_ray_left_behind, ray_children  # noqa: F401  # a fixture
from tests.faults import cost, note
from tests.small import small_experiment

pytestmark = pytest.mark.slow

TRAIN = Path(__file__).parents[2] / "jobs" / "train.py"


def experiment(directory, name, workers=2, **changes):
    changes = {"train__epochs": 6, "train__batch_size": 2, "data__generate__train": 12, **changes}
    changes |= {"train__checkpoint_every_steps": 2, "train__log_every": 1, "cluster__workers": workers}
    return small_experiment(directory, name=name, **{"cluster__cpus_per_worker": 0.5, **changes})


def weights(e):
    store = CheckpointStore(e.run_uri)
    return store.load(store.committed()[-1])["model"]


def checkpoints(e):
    return len(list(Path(e.run_uri).glob("checkpoints/*.json")))


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The weights of the undisturbed run, by number of workers."""
    found = {}

    def of(workers):
        if workers not in found:
            e = experiment(tmp_path_factory.mktemp("calm"), "calm", workers)
            run(e)
            found[workers] = weights(e)
        return found[workers]

    return of


def same(mine, theirs):
    return all(torch.equal(mine[k], theirs[k]) for k in theirs)


def note_cost(fault, e):
    """What it cost, by the journal of metrics; sees that no step is missing."""
    found = cost(Path(e.run_uri) / "metrics.jsonl")
    note(fault, **found._asdict())
    return found


def after(condition, action):
    """Do `action` in a thread once `condition()` holds; returns the list that it fills."""
    done = []

    def work():
        while not condition():
            time.sleep(0.02)
        done.append(action())

    threading.Thread(target=work, daemon=True).start()
    return done


def signalled(title, number):
    """Send a signal to the first process of Ray whose title holds `title`."""

    def action():
        for process in ray_children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if title in " ".join(process.cmdline()):
                    process.send_signal(number)
                    return process.pid
        return None

    return action


def test_a_worker_that_is_killed(tmp_path, calm):
    e = experiment(tmp_path, "killed")
    done = after(lambda: checkpoints(e) >= 2, signalled("RayTrainWorker", signal.SIGKILL))
    run(e)
    assert done[0]
    assert same(weights(e), calm(2))
    note_cost("worker killed", e)


def test_a_controller_that_is_killed(tmp_path, calm):
    """The driver says so and ends; the same command goes on."""
    e = experiment(tmp_path, "controlled")
    done = after(lambda: checkpoints(e) >= 1, signalled("TrainController", signal.SIGKILL))
    with pytest.raises(ClusterError, match="the same command continues"):
        run(e)
    assert done[0]
    run(e)
    assert same(weights(e), calm(2))
    note_cost("Train controller killed, same command again at once", e)


def test_a_worker_that_hangs(tmp_path, calm):
    e = experiment(tmp_path, "hung", cluster__collective_timeout_s=10)
    done = after(lambda: checkpoints(e) >= 2, signalled("RayTrainWorker", signal.SIGSTOP))
    run(e)
    assert done[0]
    assert same(weights(e), calm(2))
    assert note_cost("worker hung", e).seconds >= 5


def test_a_loader_process_that_is_killed(tmp_path, calm):
    """It decodes images for a worker, which then fails and is restarted."""
    e = experiment(tmp_path, "loader", data__loader__workers=1)

    def kill():
        for process in ray_children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    for child in process.children():
                        if "forkserver" in " ".join(child.cmdline()):
                            for grandchild in child.children():
                                grandchild.kill()
                                return grandchild.pid
        return None

    done = after(lambda: checkpoints(e) >= 2, kill)
    run(e)
    assert done[0]
    assert same(weights(e), calm(2))
    note_cost("loader process killed", e)


def test_a_node_that_is_lost(tmp_path, calm, monkeypatch):
    """Its raylet is killed with the worker on it. The run goes on on a node to spare."""
    with ray_cluster(num_cpus=0) as cluster:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
        e = experiment(tmp_path, "lost", cluster__address=cluster.address, cluster__cpus_per_worker=1)

        def lose():
            busy = worker_node()
            victim = next(n for n in nodes if n.node_id == busy)
            cluster.remove_node(victim, allow_graceful=False)
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
    assert same(weights(e), calm(2))
    note_cost("node lost, one to spare", e)


def job(e, directory, log):
    """`jobs/train.py` as a process."""
    path = directory / f"{e.name}.yaml"
    path.write_text(e.to_yaml())
    with open(log, "w") as out:
        return subprocess.Popen([sys.executable, str(TRAIN), str(path)], stdout=out, stderr=subprocess.STDOUT)


def wait(process, condition=None, seconds=600):
    """For the process to end, or for a condition before it does."""
    deadline = time.time() + seconds
    while process.poll() is None and not (condition and condition()):
        assert time.time() < deadline
        time.sleep(0.05)


def test_a_driver_that_is_killed(tmp_path, calm):
    e = experiment(tmp_path, "driven")
    process = job(e, tmp_path, tmp_path / "log")
    wait(process, lambda: checkpoints(e) >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(e)
    assert same(weights(e), calm(2))
    note_cost("driver killed, same command again at once", e)


def test_a_driver_that_gets_sigterm(tmp_path, calm):
    """As from `ray job stop`, Kubernetes or a batch system: a last checkpoint, and nothing is done twice."""
    e = experiment(tmp_path, "terminated")
    process = job(e, tmp_path, tmp_path / "log")
    wait(process, lambda: checkpoints(e) >= 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 143
    assert "with a checkpoint of it; the same command goes on" in (tmp_path / "log").read_text()
    assert not (Path(e.run_uri) / "stop").exists()
    run(e)
    assert same(weights(e), calm(2))
    assert note_cost("SIGTERM to the driver, same command again", e).steps_repeated == 0


def test_a_head_that_is_lost(tmp_path, calm):
    """With all its processes, in mid-run of a submitted job. A new head gets the same job."""
    e = experiment(tmp_path, "headless", cluster__cpus_per_worker=1)
    directory = tmp_path / "submitted"
    directory.mkdir()
    (directory / "headless.yaml").write_text(e.to_yaml())
    submit = ("submit", "--working-dir", directory, "--no-wait", "--", sys.executable, TRAIN, "headless.yaml")
    ends = {"first": lambda head: checkpoints(e) >= 2, "second": lambda head: "SUCCEEDED" in head.job("list").stdout}
    for name, end in ends.items():
        head = Head(Path("/tmp") / f"mgdet-head-{os.getpid()}-{name}").wait()
        try:
            assert head.job(*submit).returncode == 0
            wait(head.process, functools.partial(end, head))
        finally:
            head.kill()
    assert same(weights(e), calm(2))
    note_cost("head lost, new head, same job again", e)
