"""Evaluations of a training aside, without Ray: each in a process of its own on the machine of rank 0."""

import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch

from mgdet.config import Experiment
from mgdet.errors import ClusterError, MgdetError
from mgdet.plugins import PLACES, own_place, places
from mgdet.text import printable
from mgdet.training.evaluations import Judge, Judged

logger = logging.getLogger(__name__)


class ProcessJudge(Judge):
    """Starts a process for each checkpoint, on the same device and with as many threads as this one.

    Args:
        experiment: resolved.
        device: of this process.
    """

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        self._experiment, self._device = experiment.model_dump(mode="json"), str(device)
        self._starting, self._closed = threading.Lock(), False
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, path: str) -> Judged | MgdetError:
        """See `Judge`. Raises `ClusterError` where the process ends without an answer."""
        with tempfile.TemporaryDirectory(prefix="mgdet-") as directory:
            request, file, said = (Path(directory) / name for name in ("request", "answer", "said"))
            asked = (path, self._experiment, self._device, torch.get_num_threads())
            request.write_bytes(pickle.dumps(asked))
            with self._starting, said.open("wb") as output:
                if self._closed:
                    raise ClusterError("the evaluation was not begun: the training has ended")
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "mgdet.inference.aside", request, file],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env=_environment(),
                    start_new_session=True,  # Ctrl-C is for the training, which then ends this process
                )
            code = self._process.wait()
            lines = [printable(line) for line in said.read_text(errors="replace").splitlines() if line.strip()]
            for line in lines:
                logger.debug("evaluation: %s", line)
            if not file.exists():
                last = f": {lines[-1]}" if lines else ""
                raise ClusterError(f"the process that evaluates {path} ended with status {code}{last}")
            found: Judged | MgdetError = pickle.loads(file.read_bytes())
        return found

    def close(self) -> None:
        """See `Judge`."""
        with self._starting:
            self._closed = True
            if self._process is not None and self._process.poll() is None:
                self._process.kill()


def _environment() -> dict[str, str]:
    """In which the process finds mgdet and the plugins where this one has them, and nothing in its directory."""
    there = [*own_place(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    found = {**os.environ, "PYTHONSAFEPATH": "1", PLACES: places()}
    return found | ({"PYTHONPATH": os.pathsep.join(there)} if there else {})


def judge_of(experiment: Experiment, device: torch.device) -> Judge | None:
    """The judge of a training without Ray; None where its workers evaluate."""
    return ProcessJudge(experiment, device) if experiment.evaluation.where == "aside" else None
