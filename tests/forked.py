"""Processes that need not import torch and MLflow first: they are forks of one that did, once for the whole suite.

In all else they are what `python jobs/NAME.py` starts: own directory, environment, output and exit status.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

JOBS = Path(__file__).parents[1] / "jobs"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mgdet.cluster.train", "mgdet.tracking", "mlflow", "tests.forked"])


class Done(NamedTuple):
    """What is left of a process that has ended."""

    returncode: int
    output: str
    """What it wrote to standard output and to standard error, as one text."""


class Job:
    """`python jobs/NAME.py ARGUMENTS`, under way, with the methods of `subprocess.Popen` that the tests need."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[object],
        log: Path,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        command = [str(JOBS / f"{name}.py"), *map(str, arguments)]
        place = (str(directory or Path.cwd()), dict(os.environ if environment is None else environment))
        self._process = CONTEXT.Process(target=_main, args=(command, str(log), *place))
        self._process.start()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit status, None while it runs, minus the signal that ended it."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended; fails after `timeout` seconds."""
        self._process.join(timeout)
        status = self._process.exitcode
        assert status is not None, f"process {self.pid} has not ended in {timeout} s"
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_job(name: str, arguments: Sequence[object], log: Path, timeout: float = 300, **place: object) -> Done:
    """Start a job, wait for its end, and read what it wrote to `log`."""
    job = Job(name, arguments, log, **place)  # type: ignore[arg-type]  # directory and environment
    try:
        status = job.wait(timeout)
    finally:
        job.kill()
    return Done(status, log.read_text())


def _main(command: list[str], log: str, directory: str, environment: dict[str, str]) -> None:
    os.setsid()
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # found again from the new environment
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
