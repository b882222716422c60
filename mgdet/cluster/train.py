"""A training as a Ray Train job: the driver prepares and reports, every worker runs `mgdet.training.loop.Worker`."""

import contextlib
import functools
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mgdet.cluster import notice
from mgdet.cluster.aside import ActorJudge, judge_started
from mgdet.cluster.metrics import Exported, ExportingTracker
from mgdet.cluster.relay import SendToDriver, speak_through_driver, workers_heard
from mgdet.cluster.session import check_shared, resources_of, scale_up, session
from mgdet.cluster.waiting import shortage_told
from mgdet.config import Experiment, validate
from mgdet.errors import MEMORY_REMEDY, ClusterError, Interrupted, MgdetError
from mgdet.host import environment, torchrun_rank
from mgdet.lease import Ownership
from mgdet.plugins import load_plugins
from mgdet.runs.config import ClusterConfig
from mgdet.runs.launch import absolute, launch, prepare, train_in_process, worker_tracker
from mgdet.runs.record import Summary
from mgdet.runs.resources import arithmetic, check_fits
from mgdet.runs.stop import StopRequest
from mgdet.runs.torchrun import train_under_torchrun
from mgdet.signals import on_stop
from mgdet.storage import child_uri
from mgdet.text import first_line
from mgdet.tracking import NullTracker, RunHandle, Tracker
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.progress import has_screen, shown_by

logger = logging.getLogger(__name__)


def run(experiment: Experiment) -> tuple[Summary, RunHandle | None]:
    """Train, or continue the run of the same storage and name, to its end.

    On a Ray cluster, or without Ray where torchrun has started this process, or with `cluster.workers` = 0.

    Raises:
        MgdetError: anything that the user can mend; its message says how. What was saved before stays.
    """
    if (rank := torchrun_rank()) is not None:
        return train_under_torchrun(experiment, rank)
    if experiment.cluster.workers == 0:
        return train_in_process(experiment)
    asked = absolute(experiment)
    with session(asked.cluster) as there:
        resources = scale_up(asked.cluster, there, beside=asked.beside)
        resolved, reasons = prepare(asked, resources.cpus, resources.gpus)
        check_fits(resolved.cluster, resources, asked.beside)
        check_shared({"storage": resolved.storage, "data.uri": resolved.data.uri})
        with workers_heard():
            return launch(
                asked, resolved, [*reasons, arithmetic(resolved.cluster, resources, asked.beside)], _on_cluster
            )


def run_trial(asked: Experiment, parent_run_id: str | None, callback: Any) -> Summary:
    """Train, or continue, a trial of a sweep in the current Ray session; the cluster of `asked` must be resolved.

    The workers log warnings only. `callback` (a Ray Train `UserCallback`) gets every evaluation but the last, which the
    caller reports when this function has returned: a scheduler may end the trial then, and everything is saved.
    """
    resolved, _ = prepare(asked, float(asked.cluster.cpus_per_worker), float(bool(asked.cluster.gpu)))
    execute = functools.partial(_on_cluster, callbacks=(callback,), trial=True)
    return launch(asked, resolved, [], execute, parent_run_id, trial=True)[0]


def _on_cluster(
    experiment: Experiment,
    handle: RunHandle | None,
    owner: Ownership | None = None,
    callbacks: Sequence[Any] = (),
    trial: bool = False,
) -> None:
    import ray

    from mgdet.cluster.restarts import cause_of

    cluster: ClusterConfig = experiment.cluster
    task: dict[str, Any] = {
        "experiment": experiment.model_dump(mode="json"),
        "handle": handle,
        "owner": owner,
        "trial": trial,
        "screen": has_screen(),
        "level": max(logging.getLogger("mgdet").getEffectiveLevel(), logging.WARNING if trial else logging.NOTSET),
    }
    again = "Nothing that was saved is lost: the same command continues from the last checkpoint."
    # Ray asks each worker at every poll: that finds one that hangs where no short collective waits for it.
    limits = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{cluster.collective_timeout_s:g}"}
    if isinstance(cluster.workers, tuple):
        limits["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{cluster.start_timeout_s:g}"
    stop = StopRequest(experiment.run_uri)
    outcome: Any = None
    try:
        told = (
            contextlib.nullcontext()
            if trial
            else shortage_told(cluster, lambda: resources_of("the cluster"), beside=experiment.beside)
        )
        judge = judge_started(experiment, task["level"], f"{experiment.name}: " if trial else "")
        with environment(limits), stop.offered(), on_stop(stop.create), told, judge as task["judge"]:
            while outcome is None or outcome.get("leaving"):
                outcome = _trainer(experiment, task, callbacks).fit().return_value or {}
                if outcome.get("leaving"):
                    how = outcome["interrupted"].partition(";")[0]
                    logger.warning("a machine goes away: %s; starting again on those that stay", how)
    except ray.exceptions.OutOfMemoryError as error:
        raise ClusterError(
            f"Ray's memory monitor ended the process that controls the training ({first_line(error)}). {MEMORY_REMEDY} "
            f"{again}"
        ) from error
    except ray.exceptions.RayActorError as error:
        raise ClusterError(f"the process that controls the training died ({error}). {again}") from error
    except ray.train.TrainingFailedError as error:
        cause = cause_of(error)
        if isinstance(cause, MgdetError):  # see `Restarts.after_exception`
            raise cause from error
        text = f"{type(cause).__name__}: {cause}"
        if isinstance(cause, ray.exceptions.OutOfMemoryError):  # Ray's memory monitor has ended a worker
            again = f"{MEMORY_REMEDY} {again}"
        raise ClusterError(f"training stopped after {cluster.max_failures} restarts: {text}\n{again}") from error
    if "interrupted" in outcome:
        raise Interrupted(outcome["interrupted"])


def _trainer(experiment: Experiment, task: dict[str, Any], callbacks: Sequence[Any]) -> Any:
    """A Ray trainer of the rest of the training."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from mgdet.cluster.restarts import Restarts

    cluster = experiment.cluster
    return TorchTrainer(
        _worker_main,
        train_loop_config=task,
        torch_config=notice.listens(TorchConfig(timeout_s=int(cluster.collective_timeout_s))),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,  # a pair: elastic
            elastic_resize_monitor_interval_s=cluster.resize_interval_s,
            use_gpu=bool(cluster.gpu),
            resources_per_worker=cluster.of_one_worker(),
        ),
        run_config=RunConfig(
            # Ray keeps only its own bookkeeping here: checkpoints are ours, and resuming does not depend on Ray
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=child_uri(experiment.run_uri, "ray"),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[*callbacks, Restarts(cluster.max_failures, experiment.name, bool(task["trial"]))],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _worker_main(task: dict[str, Any]) -> dict[str, Any]:
    """Train in one worker process of Ray; returns the metrics, or why all workers have stopped on request.

    Raises:
        MgdetError: on any of the workers; the training ends with it, see `Restarts.after_exception`.
    """
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    prefix = (f"{task['experiment']['name']}: " if task["trial"] else "") + (f"rank {rank}: " if rank else "")
    to_driver = speak_through_driver(max(task["level"], logging.WARNING if rank else logging.NOTSET), prefix)
    try:
        return {"metrics": _train(task, to_driver)}
    except Interrupted as error:
        return {"interrupted": str(error), "leaving": task.get("leaving", False)}
    finally:
        to_driver.settle()


def _train(task: dict[str, Any], to_driver: SendToDriver) -> dict[str, float]:
    """Train to the end; returns the metrics of the last evaluation.

    Raises what `Worker.run` raises, and `ConfigError` where this machine lacks a plugin.
    """
    import ray.train
    import ray.train.torch

    load_plugins(task["experiment"]["plugins"])
    experiment, trial = validate(task["experiment"], "the driver's experiment"), task["trial"]
    world = World.current(ray.train.torch.get_device())
    owner = task["owner"] if world.is_main else None
    tracker: Tracker = NullTracker()
    if world.is_main:
        tracker = ExportingTracker(worker_tracker(experiment, task["handle"], owner), Exported(experiment.name))

    def report(metrics: dict[str, float]) -> None:
        if trial:  # its scheduler may end it at this report, and then counts on its checkpoint
            worker.settle()
        if not trial or metrics["epoch"] < experiment.train.epochs:  # see run_trial
            ray.train.report(metrics)

    stop = StopRequest(experiment.storage if trial else experiment.run_uri)  # all trials of a sweep stop together

    def stop_asked() -> bool:
        # Over the gradients' process group, whose timeout finds a worker that hangs; host collectives wait an hour.
        mine = [float(world.is_main and stop.exists()), float(notice.given())]
        asked, leaving = world.mean(torch.tensor(mine, device=world.device)).tolist()
        task["leaving"] = bool(leaving) and not asked
        return bool(asked or leaving)

    # Ray names some of its loggers after their files; they print every report of every worker
    for chatty in ("faster_coco_eval", *(n for n in logging.root.manager.loggerDict if "ray/train" in n)):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logger.info("%d workers, rank 0 on %s, process %d", world.size, world.device, os.getpid())
    try:
        if stop_asked():
            raise Interrupted("stopped on request before the first step; the same command goes on")
        screen = shown_by(to_driver.show) if task["screen"] and world.is_main else contextlib.nullcontext()
        with screen, _machine_watched(experiment, task["handle"]):
            judge = ActorJudge(task["judge"]) if task["judge"] and world.is_main else None
            worker = Worker(experiment, world, tracker, report, stop_asked, owner, judge)
            return worker.run()
    finally:
        tracker.close()


@contextlib.contextmanager
def _machine_watched(experiment: Experiment, handle: RunHandle | None) -> Iterator[None]:
    """Show how busy this node is, and see whether it goes away, in one worker of each node."""
    import ray.train
    import ray.util

    if ray.train.get_context().get_local_rank():
        yield
        return
    with notice.node_watched(), experiment.tracking.watch_machine(handle, ray.util.get_node_ip_address()):
        yield
