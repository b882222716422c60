"""Fixtures of the tests that start Ray."""

import time

import psutil
import pytest

from mgdet.cluster.train import run
from tests.cluster.clusters import ray_children, ray_cluster
from tests.cluster.runs import experiment
from tests.faults import weights


@pytest.fixture(scope="session")
def shared_cluster():
    """A cluster of one node with two CPUs, for all tests that leave its head alone."""
    with ray_cluster(num_cpus=2) as cluster:
        yield cluster


@pytest.fixture
def shared(shared_cluster, monkeypatch):
    """Changes of an experiment that make it run there; the test's own connection is closed after it."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield {"cluster__address": shared_cluster.address}
    ray.shutdown()


@pytest.fixture
def add_node(shared_cluster):
    """Adds a node of three CPUs to the shared cluster: a worker of three CPUs fits on it, and not on the head."""
    nodes = []

    def add():
        nodes.append(shared_cluster.add_node(num_cpus=3))
        return nodes[-1]

    yield add
    for node in nodes:
        if node in shared_cluster.worker_nodes:
            shared_cluster.remove_node(node)


@pytest.fixture
def no_ray_left_behind(monkeypatch, tmp_path):
    """Runs see no cluster of somebody else, and none of ours is left."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = set(ray_children())
    yield
    ray.shutdown()
    deadline = time.time() + 20
    while (left := [p for p in ray_children() if before.isdisjoint([p, *ancestors(p)])]) and time.time() < deadline:
        time.sleep(0.5)
    for process in left:
        process.kill()


def ancestors(process):
    """None of a process that has ended."""
    try:
        return process.parents()
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="session")
def undisturbed(shared_cluster, tmp_path_factory):
    """The weights of the undisturbed run, by number of workers."""
    found = {}

    def of(workers):
        if workers not in found:
            directory = tmp_path_factory.mktemp("undisturbed")
            e = experiment(directory, "undisturbed", workers, cluster__address=shared_cluster.address)
            run(e)
            found[workers] = weights(e)
        return found[workers]

    return of
