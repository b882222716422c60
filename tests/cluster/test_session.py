"""Whether the workers fit is arithmetic; no Ray is started here."""

import os
import signal
from types import SimpleNamespace

import pytest

from mgdet.cluster import session
from mgdet.cluster.session import scale_up
from mgdet.errors import ClusterError, Interrupted
from mgdet.runs.config import ClusterConfig
from mgdet.runs.resources import Node, Resources, arithmetic, check_fits, this_machine
from tests.small import small_experiment


def cluster(workers, cpus, gpu=False):
    return ClusterConfig(workers=workers, cpus_per_worker=cpus, gpu=gpu)


def resources(cpus, gpus=0.0, nodes=1):
    """Nodes of equal size."""
    return Resources((Node(cpus, gpus),) * nodes, "cluster at 10.0.0.1:6379")


@pytest.mark.parametrize(
    ("config", "there"),
    [
        (cluster(2, 1), resources(2)),
        (cluster(1, 2.5), resources(2.5)),
        (cluster(4, 2, gpu=True), resources(8, 4)),
        (cluster(4, 2, gpu=True), resources(4, 2, nodes=2)),
        (cluster(2, 3), resources(5, nodes=2)),
        (cluster(4, 3, gpu=True), resources(8, 4, nodes=2)),
        (cluster(1, 1, gpu=False), resources(1, 0)),
        (cluster(1, 1), Resources((Node(4, 0), Node(1, 0)), "nodes of 4 and 1 CPUs")),
    ],
)
def test_fits_exactly(config, there):
    check_fits(config, there)


@pytest.mark.parametrize(
    ("config", "there"),
    [
        (cluster(3, 1), resources(2)),
        (cluster(1, 2.5), resources(2)),
        (cluster(4, 1, gpu=True), resources(64, 2)),
        (cluster(1, 1, gpu=True), resources(64, 0)),
        (cluster(1, 5), resources(4, nodes=2)),
        (cluster(5, 2, gpu=True), resources(4, 2, nodes=2)),
        (cluster(3, 2), resources(3, nodes=2)),
        (cluster(2, 4, gpu=True), resources(4, 2)),
        (cluster(5, 3, gpu=True), resources(8, 4, nodes=2)),
        (cluster(6, 1), Resources((Node(4, 0), Node(1, 0)), "nodes of 4 and 1 CPUs")),
        (cluster(4, 1, gpu=True), Resources((Node(8, 2), Node(8, 1)), "nodes of 2 and 1 GPUs")),
    ],
    ids=[
        "CPUs in all",
        "CPUs of one worker",
        "GPUs in all",
        "no GPU at all",
        "a worker larger than a node",
        "one too many for both nodes",
        "6 of 6 CPUs, but a node of 3 holds one worker of 2",
        "GPUs enough, CPUs not",
        "15 of 16 CPUs and 5 of 8 GPUs, but two on each node",
        "6 of 5 CPUs on unequal nodes",
        "4 of 3 GPUs on unequal nodes",
    ],
)
def test_does_not_fit(config, there):
    with pytest.raises(ClusterError) as error:
        check_fits(config, there)
    assert arithmetic(config, there) in str(error.value)
    assert "Lower cluster.workers or cluster.cpus_per_worker" in str(error.value)
    assert ("cluster.gpu=false" in str(error.value)) == config.gpu


def test_the_error_shows_the_calculation():
    with pytest.raises(ClusterError) as error:
        check_fits(cluster(3, 2.5, gpu=True), resources(4, 1, nodes=2))
    assert (
        "3 workers x 2.5 CPUs = 7.5 CPUs and 3 x 1 = 3 GPUs; cluster at 10.0.0.1:6379 has 8 CPUs and 2 GPUs on 2 nodes "
        "(largest node: 4 CPUs, 1 GPUs)"
    ) in str(error.value)


def test_one_node_without_gpus_in_words():
    assert arithmetic(cluster(2, 1), Resources((Node(2, 0),), "this machine")) == (
        "2 workers x 1 CPUs = 2 CPUs; this machine has 2 CPUs and 0 GPUs on 1 node"
    )


def test_this_machine_counts_the_cpus_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert this_machine() == Resources((Node(3, 2),), "this machine")


def test_nothing_is_waited_for_unless_asked():
    there = resources(2)
    assert scale_up(ClusterConfig(), there) is there  # all `auto`
    enough = ClusterConfig(workers=2, cpus_per_worker=1, gpu=False, scale_up_timeout_s=60)
    assert scale_up(enough, there) is there


@pytest.fixture
def asked(monkeypatch):
    """What the autoscaler was asked for. Time goes on only where `scale_up` sleeps."""
    requests, slept = [], []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: requests.append(bundles))
    monkeypatch.setattr(session, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept)))
    return requests


WAITING = ClusterConfig(workers=2, cpus_per_worker=3, gpu=True, scale_up_timeout_s=60)


def test_nodes_are_asked_for_until_there_is_room(asked, monkeypatch):
    """For two trials of two workers; once they fit, nothing is asked for any more."""
    looks = [resources(3, 1, nodes=n) for n in (0, 1, 3, 4)]
    monkeypatch.setattr(session, "resources_of", lambda where: looks.pop(0))
    assert scale_up(WAITING, resources(4, 0), copies=2) == resources(3, 1, nodes=4)
    assert looks == []
    assert asked == [[{"CPU": 3.0, "GPU": 1.0}] * 4, []]


def test_waiting_for_nodes_ends(asked, monkeypatch):
    """Whether the workers fit is not said here."""
    looks = []
    monkeypatch.setattr(session, "resources_of", lambda where: looks.append(where) or resources(3, 1))
    assert scale_up(WAITING, resources(4, 0)) == resources(3, 1)
    assert len(looks) == 60
    assert [len(bundles) for bundles in asked] == [2, 0]


def test_sigterm_ends_the_wait_for_nodes(asked, monkeypatch):
    monkeypatch.setattr(session, "resources_of", lambda where: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="while waiting for nodes"):
        scale_up(WAITING, resources(4, 0))
    assert asked[-1] == []


def test_waiting_needs_to_know_for_what():
    with pytest.raises(ValueError, match=r"scale_up_timeout_s = 60 needs to know .*: set gpu, cpus_per_worker"):
        ClusterConfig(workers=2, scale_up_timeout_s=60)


@pytest.mark.parametrize("who", ["a worker", "the controller"])
def test_what_the_memory_monitor_ends_comes_with_its_remedy(tmp_path, monkeypatch, who):
    """Ray's errors as its memory monitor leaves them; Ray itself is not started."""
    from ray.exceptions import OutOfMemoryError
    from ray.train import WorkerGroupError
    from ray.train.torch import TorchTrainer

    from mgdet.cluster import train
    from mgdet.runs.launch import prepare

    def fit(self):
        full = OutOfMemoryError("Task was killed due to the node running low on memory.")
        raise full if who == "the controller" else WorkerGroupError("failed", {0: full})

    monkeypatch.setattr(TorchTrainer, "__init__", lambda self, *args, **options: None)
    monkeypatch.setattr(TorchTrainer, "fit", fit)
    e = prepare(small_experiment(tmp_path, cluster__workers=1, cluster__cpus_per_worker=1), cpus=1, gpus=0)[0]
    with pytest.raises(ClusterError, match=r"low on memory[^$]*Lower train\.batch_size[^$]*the same command"):
        train._on_cluster(e, None)
