"""A Ray session: which cluster it finds, who may come in, and what does not fit."""

import os
import subprocess
import sys

import pytest

from mgdet.cluster.session import session
from mgdet.cluster.train import run
from mgdet.errors import ClusterError
from mgdet.runs.config import ClusterConfig
from tests.cluster.clusters import ray_cluster
from tests.small import small_experiment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_ray_left_behind")]


def test_a_cluster_beside_another_one_knows_itself(shared_cluster):
    """Ray's own helpers must find the cluster that they belong to, or a stopped trial's resources are lost."""
    import ray

    def state() -> list[str]:
        from ray.util.state import list_nodes

        return [node.node_id for node in list_nodes()]

    def knows_itself() -> bool:
        mine = ray.get_runtime_context().get_node_id()
        return mine in ray.get(ray.remote(num_cpus=0)(state).remote(), timeout=60)

    with session(ClusterConfig()):
        assert knows_itself()
    with ray_cluster(num_cpus=1), session(ClusterConfig(address=shared_cluster.address)):
        assert knows_itself()
    assert "RAY_ADDRESS" not in os.environ


ALONE = """
import os, subprocess, sys
from mgdet.runs.config import ClusterConfig
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


def test_workers_that_do_not_fit_are_refused_with_the_arithmetic(tmp_path, shared):
    e = small_experiment(tmp_path, cluster__workers=2, cluster__cpus_per_worker=500, **shared)
    with pytest.raises(ClusterError, match=r"2 workers x 500 CPUs = 1000 CPUs"):
        run(e)
    assert not (tmp_path / "runs").exists()
