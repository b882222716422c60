"""Fixtures of the tests that start Ray."""

import time

import pytest

from mgdet.cluster.train import run
from tests.cluster.clusters import ray_children
from tests.cluster.runs import experiment
from tests.faults import weights


@pytest.fixture
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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of the undisturbed run, by number of workers."""
    found = {}

    def of(workers):
        if workers not in found:
            e = experiment(tmp_path_factory.mktemp("undisturbed"), "undisturbed", workers)
            run(e)
            found[workers] = weights(e)
        return found[workers]

    return of
