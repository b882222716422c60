"""Evaluations of a training aside, without Ray: each by a process of its own on the machine of rank 0."""

import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from mgdet.config import Experiment
from mgdet.errors import ClusterError, MgdetError
from mgdet.training.evaluations import Judge, Judged


class ProcessJudge(Judge):
    """Starts a process for each checkpoint, on the same device and with as many threads as this one.

    Args:
        device: of this process.
        plugins: which the detectors need.
    """

    def __init__(self, device: torch.device, plugins: Sequence[str] = ()) -> None:
        self._device, self._plugins = device, plugins
        self._starting, self._closed = threading.Lock(), False
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, path: str) -> Judged:
        """See `Judge`. Raises `ClusterError` where the process ends without an answer."""
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "answer"
            threads = str(torch.get_num_threads())
            program = [sys.executable, "-m", "mgdet.inference.aside", path, str(file), str(self._device), threads]
            with self._starting:
                if self._closed:
                    raise ClusterError("the evaluation was not begun: the training has ended")
                # A session of its own: Ctrl-C is for the training, which then ends this process.
                self._process = subprocess.Popen([*program, *self._plugins], start_new_session=True)
            code = self._process.wait()
            if not file.exists():
                raise ClusterError(f"the process that evaluates {path} ended with status {code}, and says why above")
            found: Judged | MgdetError = pickle.loads(file.read_bytes())
        if isinstance(found, MgdetError):
            raise found
        return found

    def close(self) -> None:
        """See `Judge`."""
        with self._starting:
            self._closed = True
            if self._process is not None and self._process.poll() is None:
                self._process.kill()


def judge_of(experiment: Experiment, device: torch.device) -> Judge | None:
    """The judge of a training without Ray; None where its workers evaluate."""
    return ProcessJudge(device, experiment.plugins) if experiment.evaluation.where == "aside" else None
