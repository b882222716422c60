"""Ray clusters for tests, beside whatever else runs on this machine."""

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

RAY = Path(sys.executable).with_name("ray")


@contextmanager
def ray_cluster(num_cpus: float, **head: Any) -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` of one node, to which more can be added."""
    from ray.cluster_utils import Cluster

    (port,) = free_ports(1)  # the default port may be another cluster's
    arguments = {"num_cpus": num_cpus, "include_dashboard": True, "dashboard_port": port, **head}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def free_ports(count):
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Head:
    """`ray start --head` in a process group of its own; `environment` adds to that of its processes.

    Its directory, which is removed at its end, has a short path: those of Ray's sockets have 107 bytes at most.
    """

    def __init__(self, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        directory = Path(tempfile.mkdtemp(prefix="mgdet-head-", dir="/tmp"))
        self.gcs, self.dashboard, agent, metrics, runtime_env = free_ports(5)
        self.env = {
            **{k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")},
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",  # a job's `python` is that of this environment
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "RAY_JOB_STOP_WAIT_TIME_S": "240",  # Ray's 3 s end in SIGKILL before a busy machine has written anything
            **environment,
        }
        command = [RAY, "start", "--head", f"--port={self.gcs}", f"--dashboard-port={self.dashboard}", "--num-cpus=2"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        command += [f"--runtime-env-agent-port={runtime_env}", f"--temp-dir={directory}", "--block"]
        self.log = directory / "head.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def job(self, *arguments, timeout=300):
        """`ray job ARGUMENTS`."""
        command = [RAY, "job", arguments[0], "--address", self.address, *map(str, arguments[1:])]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout)

    @functools.cached_property
    def client(self):
        """Asks in this process what `ray job` would take seconds to ask."""
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self.address)

    def wait(self):
        """Until it takes jobs."""
        deadline = time.time() + 120
        while not self._takes_jobs():
            assert time.time() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.5)
        return self

    def _takes_jobs(self):
        try:
            self.client.list_jobs()
        except (ConnectionError, RuntimeError):
            return False
        return True

    def stop(self, job):
        """As `ray job stop` does; returns when the job has ended."""
        self.client.stop_job(job)
        deadline = time.time() + 300
        while not self.client.get_job_status(job).is_terminal():
            assert time.time() < deadline, self.client.get_job_logs(job)
            time.sleep(0.2)

    def kill(self):
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=30)
        shutil.rmtree(self.log.parent, ignore_errors=True)


def ray_children():
    """Processes of Ray under this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            if "ray" in command and "tests.forked" not in command:  # that one has Ray's directory in its path
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found
