"""A training as a Ray Train job: the driver prepares and reports, every worker runs `mgdet.training.loop.Worker`."""

import functools
import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mgdet.cluster.config import ClusterConfig
from mgdet.cluster.session import arithmetic, check_fits, check_shared, environment, scale_up, session, this_machine
from mgdet.cluster.stop import StopFile, on_sigterm
from mgdet.config import DataConfig, Experiment, validate
from mgdet.data.schema import read_manifest
from mgdet.data.shapes import ensure_shapes
from mgdet.errors import ClusterError, ConfigError, Interrupted, MgdetError, NonFiniteError
from mgdet.models.weights import NAMED_WEIGHTS
from mgdet.tracking import MlflowTracker, NullTracker, RunHandle, Status, Tracker, end_run, start_run
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.resolve import resolve
from mgdet.training.run import Summary, log_directory, open_run, save_run, set_old_journal_aside, summarise

log = logging.getLogger(__name__)

Execute = Callable[[Experiment, RunHandle | None], None]


def absolute(experiment: Experiment) -> Experiment:
    """The same experiment with absolute local paths: workers run in other directories."""

    def fix(uri: str) -> str:
        return uri if "://" in uri else str(Path(uri).expanduser().resolve())

    data = experiment.data.model_copy(update={"uri": fix(experiment.data.uri)})
    model = experiment.model
    if model.weights not in NAMED_WEIGHTS:
        model = model.model_copy(update={"weights": fix(model.weights)})
    return experiment.model_copy(update={"data": data, "model": model, "storage": fix(experiment.storage)})


def prepare(experiment: Experiment, cpus: float, gpus: float) -> tuple[Experiment, list[str]]:
    """Make or check the data set, and resolve every `auto`; the reasons are returned beside."""
    experiment = absolute(experiment)
    return resolve(experiment, num_images=training_images(experiment.data), cpus=cpus, gpus=gpus)


def training_images(data: DataConfig) -> int:
    """Make or check the data set; the size of its training split. Raises `ConfigError` or `DataError`."""
    if data.generate is not None:
        ensure_shapes(data.uri, data.generate)
    manifest = read_manifest(data.uri)
    for split in (data.train_split, data.val_split):
        if split not in manifest.splits:
            raise ConfigError(f"{data.uri} has no split {split!r}; it has {', '.join(sorted(manifest.splits))}")
    return manifest.splits[data.train_split].images


def run(experiment: Experiment) -> tuple[Summary, RunHandle | None]:
    """Train, or continue the run of the same storage and name, to its end.

    Raises:
        MgdetError: anything that the user can mend; its message says how. What was saved before stays.
    """
    asked = absolute(experiment)
    if asked.cluster.workers == 0:
        machine = this_machine()
        resolved, reasons = prepare(asked, machine.cpus, machine.gpus)
        return _run(asked, resolved, reasons, _in_process)
    with session(asked.cluster) as there:
        resources = scale_up(asked.cluster, there)
        resolved, reasons = prepare(asked, resources.cpus, resources.gpus)
        check_fits(resolved.cluster, resources)
        check_shared({"storage": resolved.storage, "data.uri": resolved.data.uri})
        return _run(asked, resolved, [*reasons, arithmetic(resolved.cluster, resources)], _on_cluster)


def run_trial(asked: Experiment, parent_run_id: str | None, callback: Any) -> Summary:
    """Train, or continue, a trial of a sweep within a Ray session that is there; `asked` holds its cluster resolved.

    Quietly: the sweep speaks for its trials. `callback` (a Ray Train `UserCallback`) gets every evaluation but the
    last, which is the caller's to report: by then everything of the run is saved, and it may be ended.
    """
    resolved, _ = prepare(asked, float(asked.cluster.cpus_per_worker), float(bool(asked.cluster.gpu)))
    execute = functools.partial(_on_cluster, callbacks=(callback,), trial=True)
    return _run(asked, resolved, [], execute, parent_run_id)[0]


def _run(
    asked: Experiment,
    experiment: Experiment,
    reasons: list[str],
    execute: Execute,
    parent_run_id: str | None = None,
) -> tuple[Summary, RunHandle | None]:
    existing = open_run(asked)
    log.info("%s", experiment.to_yaml())
    for reason in reasons:
        log.info("%s", reason)
    reached = summarise(experiment) if existing else None
    finished = reached is not None and reached.already_finished
    if existing:
        log.info("the run %s is %s", experiment.run_uri, "finished, nothing to train" if finished else "continued")
    else:
        set_old_journal_aside(asked)
    handle = start_run(
        experiment.tracking,
        name=experiment.name,
        params={k: v for k, v in experiment.shown().items() if k != "name"},  # every run has its own: no parameter
        config_yaml=experiment.to_yaml(),
        run_id=existing.mlflow_run_id if existing else None,
        parent_run_id=parent_run_id,
        tags={"mgdet.run": experiment.run_uri},
    )
    save_run(asked, experiment, handle.run_id if handle else existing.mlflow_run_id if existing else None)
    if finished:
        execute = _send_what_is_left
    status: Status = "FAILED"
    try:
        execute(experiment, handle)
        status = "FINISHED"
    except (KeyboardInterrupt, Interrupted):
        status = "KILLED"
        raise
    finally:
        if handle:
            end_run(handle, status, experiment.tracking)
    summary = summarise(experiment)
    if summary is None:
        raise ClusterError(f"training ended, but no checkpoint could be written to {experiment.run_uri}; see the log")
    return summary, handle


def _in_process(experiment: Experiment, handle: RunHandle | None) -> None:
    tracker = _tracker(experiment, handle)
    asked = threading.Event()
    try:
        with on_sigterm(asked.set):
            world = World.current(torch.device("cuda" if experiment.cluster.gpu else "cpu"))
            Worker(experiment, world, tracker, stop_asked=asked.is_set).run()
    finally:
        tracker.close(None)


def _send_what_is_left(experiment: Experiment, handle: RunHandle | None) -> None:
    """Metrics that MLflow did not have when the run ended are in its journal; they go there now."""
    _tracker(experiment, handle).close(None)


def _tracker(experiment: Experiment, handle: RunHandle | None) -> Tracker:
    return MlflowTracker(handle, log_directory(experiment), experiment.tracking)


def _on_cluster(
    experiment: Experiment, handle: RunHandle | None, callbacks: Sequence[Any] = (), trial: bool = False
) -> None:
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster: ClusterConfig = experiment.cluster
    trainer = TorchTrainer(
        _worker_main,
        train_loop_config={"experiment": experiment.model_dump(mode="json"), "handle": handle, "trial": trial},
        torch_config=TorchConfig(timeout_s=int(cluster.collective_timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,  # a pair: elastic
            elastic_resize_monitor_interval_s=cluster.resize_interval_s,
            use_gpu=bool(cluster.gpu),
            resources_per_worker=cluster.of_one_worker(),
        ),
        run_config=RunConfig(
            # Ray keeps only its own bookkeeping here: checkpoints are ours, and resuming does not depend on Ray
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=f"{experiment.run_uri}/ray",
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=list(callbacks),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    again = "Nothing that was saved is lost: the same command continues from the last checkpoint."
    # Ray asks each worker at every poll: that finds one that hangs where no short collective waits for it.
    limits = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{cluster.collective_timeout_s:g}"}
    if isinstance(cluster.workers, tuple):
        limits["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{cluster.start_timeout_s:g}"
    stop = StopFile(experiment.run_uri)
    stop.remove()
    try:
        with environment(limits), on_sigterm(stop.make):
            outcome = trainer.fit().return_value
    except ray.exceptions.RayActorError as error:
        raise ClusterError(f"the process that controls the training died ({error}). {again}") from error
    except ray.train.TrainingFailedError as error:
        cause = _cause(error)
        text = str(cause) if isinstance(cause, MgdetError) else f"{type(cause).__name__}: {cause}"
        raise ClusterError(f"training stopped after {cluster.max_failures} restarts: {text}\n{again}") from error
    finally:
        stop.remove()
    if isinstance(outcome, dict) and "error" in outcome:
        raise MgdetError(outcome["error"])
    if isinstance(outcome, dict) and "interrupted" in outcome:
        raise Interrupted(outcome["interrupted"])


def _cause(error: Any) -> BaseException:
    """The first error that a worker raised itself, under Ray's wrappers."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    causes = []
    for failure in failures:
        while getattr(failure, "cause", None) is not None or failure.__cause__ is not None:
            failure = getattr(failure, "cause", None) or failure.__cause__
        causes.append(failure)
    return next((c for c in causes if isinstance(c, MgdetError)), causes[0])


def _worker_main(task: dict[str, Any]) -> dict[str, Any]:
    """What runs in every worker process."""
    import ray.train
    import ray.train.torch

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("mgdet")
    logger.handlers, logger.propagate = [handler], False
    speaks = ray.train.get_context().get_world_rank() == 0 and not task["trial"]
    logger.setLevel(logging.INFO if speaks else logging.WARNING)

    experiment = validate(task["experiment"], "the driver's experiment")
    world = World.current(ray.train.torch.get_device())
    tracker: Tracker = _tracker(experiment, task["handle"]) if world.is_main else NullTracker()

    def report(metrics: dict[str, float]) -> None:
        if not task["trial"] or metrics["epoch"] < experiment.train.epochs:  # see run_trial
            ray.train.report(metrics)

    stop = StopFile(experiment.run_uri)

    def stop_asked() -> bool:
        # Over the group of the gradients: its timeout finds a worker that hangs. Host collectives wait for an hour.
        return bool(world.mean(torch.tensor(float(world.is_main and stop.there()), device=world.device)))

    # Ray names some of its loggers after their files; they print every report of every worker
    for chatty in ("faster_coco_eval", *(n for n in logging.root.manager.loggerDict if "ray/train" in n)):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    log.info("%d workers, rank 0 on %s, process %d", world.size, world.device, os.getpid())
    try:
        return {"metrics": Worker(experiment, world, tracker, on_evaluation=report, stop_asked=stop_asked).run()}
    except Interrupted as error:
        return {"interrupted": str(error)}
    except (NonFiniteError, ConfigError) as error:  # every rank has it, and a restart would only run into it again
        return {"error": str(error)}
    finally:
        tracker.close(None)
