"""Evaluations of a training aside on a Ray cluster: by an actor that takes as much of it as one worker."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from mgdet.cluster.relay import speak_through_driver
from mgdet.config import Experiment
from mgdet.errors import ClusterError, MgdetError
from mgdet.inference.aside import answer
from mgdet.plugins import load_plugins
from mgdet.runs.config import ClusterConfig
from mgdet.text import first_line
from mgdet.training.evaluations import Judge, Judged

_NAMESPACE = "mgdet"


class _Actor:
    """Evaluates one checkpoint after another.

    Args:
        plugins: which the detectors need.
        gpu: whether it computes on the GPU that Ray gave it.
        threads: which compute, without a GPU.
        level: the least level of what it logs.
        prefix: stands before each message.
    """

    def __init__(self, plugins: list[str], gpu: bool, threads: int, level: int, prefix: str) -> None:
        speak_through_driver(level, prefix)
        load_plugins(plugins)
        torch.set_num_threads(threads)
        self._device = torch.device("cuda" if gpu else "cpu")

    def answer(self, path: str) -> Judged | MgdetError:
        """See `mgdet.inference.aside.answer`."""
        return answer(path, self._device)


@contextmanager
def judge_started(experiment: Experiment, level: int, prefix: str = "") -> Iterator[str]:
    """An actor within the block, if the (resolved) experiment is evaluated aside; its name, or else the empty string.

    Ray starts it again where it is lost, as often as `cluster.max_failures` says, and it begins anew with the
    checkpoint that it had.
    """
    if experiment.evaluation.where != "aside":
        yield ""
        return
    import ray

    cluster: ClusterConfig = experiment.cluster
    each, name = cluster.of_one_worker(), f"judge-{uuid.uuid4().hex[:8]}"
    options = {
        "name": name,
        "namespace": _NAMESPACE,
        "num_cpus": each["CPU"],
        "num_gpus": each.get("GPU", 0.0),
        "max_restarts": cluster.max_failures,
        "max_task_retries": cluster.max_failures,
    }
    threads = max(1, int(each["CPU"]))
    actor = ray.remote(_Actor).options(**options)
    actor = actor.remote(list(experiment.plugins), bool(cluster.gpu), threads, level, f"{prefix}evaluation: ")
    try:
        yield name
    finally:
        with suppress(Exception):
            ray.kill(actor)


class ActorJudge(Judge):
    """Asks the actor of this name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._asked: Any = None

    def __call__(self, path: str) -> Judged:
        """See `Judge`. Raises `ClusterError` where the actor is lost for good."""
        import ray

        try:
            self._asked = ray.get_actor(self._name, namespace=_NAMESPACE).answer.remote(path)
            found: Judged | MgdetError = ray.get(self._asked)
        except (ray.exceptions.RayError, ValueError) as error:
            raise ClusterError(f"the process that evaluates checkpoints is lost: {first_line(error)}") from error
        if isinstance(found, MgdetError):
            raise found
        return found

    def close(self) -> None:
        """See `Judge`: the actor belongs to the driver, which ends it with the training."""
