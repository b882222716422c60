"""Evaluations of a training aside on a Ray cluster: by an actor that takes as much of it as one worker."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from mgdet.cluster.relay import NAMESPACE, speak_through_driver
from mgdet.config import Experiment, validate
from mgdet.errors import ClusterError, MgdetError
from mgdet.inference.aside import answer
from mgdet.plugins import load_plugins
from mgdet.runs.config import ClusterConfig
from mgdet.text import first_line
from mgdet.training.evaluations import Judge, Judged

_ROOM_S = 60.0
"""The longest wait for the room that was there a moment ago."""


class _Actor:
    """Evaluates one checkpoint after another.

    Args:
        experiment: of the training, resolved.
        level: the least level of what it logs.
        prefix: stands before each message.
    """

    def __init__(self, experiment: dict[str, Any], level: int, prefix: str) -> None:
        speak_through_driver(level, prefix)
        load_plugins(experiment["plugins"])
        self._experiment = validate(experiment, "the driver's experiment")
        cluster: ClusterConfig = self._experiment.cluster
        torch.set_num_threads(max(1, int(float(cluster.cpus_per_worker))))
        self._device = torch.device("cuda" if cluster.gpu else "cpu")

    def answer(self, path: str) -> Judged | MgdetError:
        """See `mgdet.inference.aside.answer`."""
        return answer(path, self._experiment, self._device)


@contextmanager
def judge_started(experiment: Experiment, level: int, prefix: str = "") -> Iterator[str]:
    """An actor within the block, if the (resolved) experiment is evaluated aside; its name, or else the empty string.

    Ray starts it again where it is lost, as often as `cluster.max_failures` says, and it begins anew with the
    checkpoint that it had. Its room is its own until then.

    Raises:
        ClusterError: the cluster has no room for it any more.
    """
    if experiment.evaluation.where != "aside":
        yield ""
        return
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    cluster: ClusterConfig = experiment.cluster
    each, name = cluster.of_one_worker(), f"judge-{uuid.uuid4().hex[:8]}"
    room = placement_group([each])
    actor = None
    try:
        if not room.wait(_ROOM_S):
            raise ClusterError(
                f"the cluster has no room for the process that evaluates: {each}. Somebody else may have taken it; try "
                "again, or set evaluation.where=workers"
            )
        options = {
            "name": name,
            "namespace": NAMESPACE,
            "num_cpus": each["CPU"],
            "num_gpus": each.get("GPU", 0.0),
            "max_restarts": cluster.max_failures,
            "max_task_retries": cluster.max_failures,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(room),
        }
        tree = experiment.model_dump(mode="json")
        actor = ray.remote(_Actor).options(**options).remote(tree, level, f"{prefix}evaluation: ")
        yield name
    finally:
        with suppress(Exception):
            if actor is not None:
                ray.kill(actor)
        with suppress(Exception):
            remove_placement_group(room)


class ActorJudge(Judge):
    """Asks the actor of this name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def ask(self, path: str) -> Judged | MgdetError:
        """See `Judge`. Raises `ClusterError` where the actor is lost for good, and what an evaluation raises."""
        import ray

        from mgdet.cluster.restarts import root

        try:
            found: Judged | MgdetError = ray.get(ray.get_actor(self._name, namespace=NAMESPACE).answer.remote(path))
            return found
        except ray.exceptions.RayTaskError as error:
            raise root(error) from error
        except (ray.exceptions.RayError, ValueError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            said = lines[-1].strip() if lines else first_line(error)
            raise ClusterError(f"the process that evaluates checkpoints is lost: {said}") from error

    def close(self) -> None:
        """See `Judge`: the actor belongs to the driver, which ends it with the training."""
