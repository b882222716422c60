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

    client = [sys.executable, "-c", CLIENT, ray.get_runtime_context().gcs_address]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    environments = ({}, {"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"})
    for process in [subprocess.Popen(client, env=os.environ | changes, **pipes) for changes in environments]:
        out, errors = process.communicate()
        print("came in" if "1 node" in out else "refused" if "uthentica" in errors else errors)
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


HOSTILE = """
with open({trace!r}, "a") as file:
    print(__file__, file=file)
raise ImportError("this file lies in the working directory")
"""

SESSION = """
import os, stat, sys
from mgdet.cluster.session import session
from mgdet.runs.config import ClusterConfig

def path():
    return [os.getcwd(), *sys.path]

before = dict(os.environ)
with session(ClusterConfig()):
    import ray

    here, *entries = ray.get(ray.remote(num_cpus=0)(path).remote())
    print("path", any(os.path.realpath(entry) == here for entry in entries))
    above = ray._private.worker._global_node.get_session_dir_path()
    closed = False
    while above != "/":
        closed = closed or not stat.S_IMODE(os.stat(above).st_mode) & 0o077
        above = os.path.dirname(above)
    print("closed", closed)
changed = {key for key, _ in before.items() ^ os.environ.items()}
import_of_ray = {"PYTHONBREAKPOINT"}
print("environment", *sorted(key for key in changed - import_of_ray if not key.startswith("RAY_AUTH_")))
"""

COMMAND = """
import sys
from mgdet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""

HELPED = """
from typing import Literal

from helper_in_the_working_directory import K
from mgdet.assign.atss import ATSS


class Helped(ATSS):
    name: Literal["helped"] = "helped"
    top_k: int = K
"""


@pytest.fixture
def hostile(tmp_path):
    """A working directory with modules that would be imported in the place of others, and what they leave behind."""
    work, trace = tmp_path / "work", tmp_path / "trace"
    work.mkdir()
    for name in ("numpy", "torch", "ray", "socket", "selectors", "mlflow", "setproctitle"):
        (work / f"{name}.py").write_text(HOSTILE.format(trace=str(trace)))
    return work, trace


def script(tmp_path, text, *arguments, directory):
    """A script that lies elsewhere, run in the directory: its own process imports nothing from there."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin" / "script.py").write_text(text)
    return subprocess.run(
        [sys.executable, str(tmp_path / "bin" / "script.py"), *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=600,
        env={k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"},
    )


def test_workers_import_nothing_from_the_working_directory(hostile, tmp_path):
    """But a plugin that lies there, and what that imports. Processes that load data are tried as well."""
    work, trace = hostile
    (work / "plugin_of_mine.py").write_text(HELPED)
    (work / "helper_in_the_working_directory.py").write_text("K = 7")
    small = small_experiment(tmp_path, train__epochs=1, cluster={"workers": 1, "gpu": False, "cpus_per_worker": 1})
    (work / "c.yaml").write_text(small.to_yaml())
    settings = ["plugins=[plugin_of_mine]", "assigner.name=helped", "data.loader.workers=1"]
    done = script(tmp_path, COMMAND, "train", "c.yaml", *settings, directory=work)
    assert not trace.exists(), trace.read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 1" in done.stdout


def test_a_session_is_closed_to_others_and_leaves_the_environment_as_it_was(hostile, tmp_path):
    work, trace = hostile
    done = script(tmp_path, SESSION, directory=work)
    assert done.stdout.splitlines()[-3:] == ["path False", "closed True", "environment"], done.stdout + done.stderr
    assert not trace.exists(), trace.read_text()
