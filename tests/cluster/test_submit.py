"""Jobs submitted to a running cluster, as `ray job submit` does it: only the working directory goes along."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
LIMIT = 2 << 20  # bytes that an upload may have


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
    """`ray start --head` in a process group of its own."""

    def __init__(self, directory: Path) -> None:
        gcs, self.dashboard, agent, metrics, runtime_env = free_ports(5)
        self.env = {
            **{k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")},
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        command = [RAY, "start", "--head", f"--port={gcs}", f"--dashboard-port={self.dashboard}", "--num-cpus=2"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        command += [f"--runtime-env-agent-port={runtime_env}", f"--temp-dir={directory}", "--block"]
        self.log = directory / "head.log"
        directory.mkdir(parents=True, exist_ok=True)
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def job(self, *arguments, timeout=300):
        """`ray job ARGUMENTS`."""
        command = [RAY, "job", arguments[0], "--address", self.address, *map(str, arguments[1:])]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout)

    def wait(self):
        deadline = time.time() + 120
        while self.job("list").returncode:
            assert time.time() < deadline, self.log.read_text()
            time.sleep(1)
        return self

    def kill(self):
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=30)


@pytest.fixture
def upload(tmp_path):
    """A working directory like a clone, whose `mgdet` says where it was imported from."""
    directory = tmp_path / "clone"
    directory.mkdir()
    for name in (*("mgdet", "jobs", "configs"), *("pyproject.toml", ".rayignore", "README.md")):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, directory / name)
    (directory / "runs").mkdir()
    (directory / "runs" / "large.pt").write_bytes(os.urandom(4 << 20))  # what a clone has after a training
    with open(directory / "mgdet" / "__init__.py", "a") as file:
        file.write("\nprint('mgdet of', __file__, flush=True)\n")
    return directory


def settings(tmp_path, epochs):
    shapes = "data.generate={train: 24, val: 6, size: 64, seed: 0}"
    return [
        *("python", "jobs/train.py", "configs/quickstart.yaml", shapes, f"train.epochs={epochs}"),
        *(f"data.uri={tmp_path}/shapes", f"storage={tmp_path}/runs", "train.evaluate_every=1"),
        *("data.transform.resize={name: fixed, height: 64, width: 64}", "train.checkpoint_every_steps=2"),
        *("cluster.workers=2", "cluster.cpus_per_worker=1", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"),
    ]


def test_a_submitted_job(tmp_path, upload):
    """It trains with the uploaded package on driver and workers, says what is wrong, can be stopped and goes on."""
    head = Head(Path("/tmp") / f"mgdet-head-{os.getpid()}").wait()
    try:
        done = head.job("submit", "--working-dir", upload, "--", *settings(tmp_path, 1))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "val/AP " in done.stdout
        places = {line.split("mgdet of ")[1] for line in done.stdout.splitlines() if "mgdet of " in line}
        assert places
        assert all("working_dir_files" in p for p in places), places
        assert any("RayTrainWorker" in line for line in done.stdout.splitlines() if "mgdet of " in line)
        packages = list(head.log.parent.rglob("working_dir_files/_ray_pkg_*"))
        unpacked = [p for p in packages if p.is_dir()]
        assert unpacked
        for package in unpacked:
            assert sum(f.stat().st_size for f in package.rglob("*") if f.is_file()) < LIMIT

        wrong = head.job("submit", "--working-dir", upload, "--", "python", "jobs/train.py", "train.epoch=1")
        assert wrong.returncode != 0
        assert "unknown key train.epoch. Did you mean train.epochs?" in wrong.stdout + wrong.stderr

        long = ["name=long", *settings(tmp_path, 40)]
        long = [*long[1:], long[0]]
        submitted = head.job("submit", "--no-wait", "--submission-id", "long", "--working-dir", upload, "--", *long)
        assert submitted.returncode == 0, submitted.stderr
        checkpoints = tmp_path / "runs" / "long" / "checkpoints"
        wait_for(lambda: len(list(checkpoints.glob("*.json"))) >= 2)
        assert head.job("stop", "long").returncode == 0
        reached = max(p.stem for p in checkpoints.glob("*.json"))

        again = head.job("submit", "--no-wait", "--submission-id", "again", "--working-dir", upload, "--", *long)
        assert again.returncode == 0
        wait_for(lambda: "resuming at epoch" in head.job("logs", "again").stdout)
        wait_for(lambda: max(p.stem for p in checkpoints.glob("*.json")) > reached)
    finally:
        head.kill()


def wait_for(condition, seconds=600):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.2)
