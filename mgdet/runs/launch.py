"""A training around its loop: prepare its data, open its record and its run in the tracker, train, end that run.

Where the loop itself runs is the caller's: `in_process` here, or Ray's workers in `mgdet.cluster.train`.
"""

import logging
import platform
import threading
from collections.abc import Callable
from typing import Literal

import torch

from mgdet import files
from mgdet.config import Experiment
from mgdet.data.config import DataConfig
from mgdet.data.findings import examine_data
from mgdet.data.fingerprint import Fingerprint, describe_data, fingerprint, short
from mgdet.data.schema import Manifest, read_manifest
from mgdet.data.shapes import ensure_shapes
from mgdet.errors import ClusterError, ConfigError, Interrupted
from mgdet.evaluation.evaluator import AP, DIVERGENCE
from mgdet.exporting.packages import require_packages
from mgdet.lease import Ownership
from mgdet.models.weights import NAMED_WEIGHTS
from mgdet.provenance import as_tags, made_by
from mgdet.runs.aside import judge_of
from mgdet.runs.memory import check_batch_fits
from mgdet.runs.record import (
    Summary,
    begun_with,
    journal_copies,
    log_directory,
    open_run,
    own,
    save_run,
    set_apart,
    set_old_journal_aside,
    summarise,
)
from mgdet.runs.resolve import out_of_reach, resolve
from mgdet.runs.resources import this_machine
from mgdet.signals import on_stop
from mgdet.storage import locate
from mgdet.tracking import Best, DataSet, NewRun, RunHandle, Status, Tracker
from mgdet.training.checkpoint import CheckpointStore
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.report import NAME as REPORT

logger = logging.getLogger(__name__)

HEADLINES = (AP.name, DIVERGENCE.name)
"""The metrics that a table of runs shows first."""

Execute = Callable[[Experiment, RunHandle | None, Ownership], None]
"""Trains the resolved experiment, from its last checkpoint to its end, and writes into the tracker's run.

It writes nothing where another process owns the run by now.
"""


def absolute(experiment: Experiment) -> Experiment:
    """The same experiment with absolute local paths: workers run in other directories."""

    def fix(key: str, uri: str) -> str:
        try:
            return uri if "://" in uri else str(files.absolute(uri))
        except OSError as error:
            raise ConfigError(f"{key} = {uri!r}: {error}") from None

    data = experiment.data.model_copy(update={"uri": fix("data.uri", experiment.data.uri)})
    model = experiment.model
    if model.weights not in NAMED_WEIGHTS:
        model = model.model_copy(update={"weights": fix("model.weights", model.weights)})
    return experiment.model_copy(update={"data": data, "model": model, "storage": fix("storage", experiment.storage)})


def prepare(experiment: Experiment, cpus: float, gpus: float) -> tuple[Experiment, list[str]]:
    """Make or check the data set and resolve every `auto`: the experiment, and the reasons, as `resolve` gives them.

    What the training would ask for in vain is logged as a warning.
    """
    experiment = absolute(experiment)
    if experiment.tracking.wants_model:
        require_packages()
    before = begun_with(experiment)
    images = training_images(experiment.data)
    resolved, reasons = resolve(
        experiment,
        num_images=images,
        cpus=cpus,
        gpus=gpus,
        begun=before,
        needs_weights=before is None,
    )
    for caution in out_of_reach(experiment, resolved, images):
        logger.warning("%s", caution)
    if experiment.data.train_split == experiment.data.val_split:
        logger.warning(
            "data.train_split and data.val_split are both %s: val/AP and the best checkpoint are judged by the images "
            "that are trained on",
            experiment.data.train_split,
        )
    check_batch_fits(resolved)
    return resolved, reasons


def training_images(data: DataConfig) -> int:
    """Make or check the data set; returns how many images its training split has. Raises `DataError`."""
    if data.generate is not None:
        ensure_shapes(data.uri, data.generate)
    return _manifest(data).splits[data.train_split].images


def training_data(data: DataConfig) -> tuple[str, Fingerprint]:
    """The name of the data set, and the fingerprint of the two splits that a training uses. Raises `DataError`."""
    manifest = _manifest(data)
    return manifest.name, fingerprint(manifest, [data.train_split, data.val_split])


def _manifest(data: DataConfig) -> Manifest:
    """That of the data set, which has both splits. Raises `DataError`."""
    manifest = read_manifest(data.uri)
    for split in (data.val_split, data.train_split):
        manifest.split(split, data.uri)
    return manifest


def data_sets(data: DataConfig, name: str, found: Fingerprint) -> tuple[DataSet, ...]:
    """The two splits of a training, of which `training_data` gave name and fingerprint, as trackers show them."""
    uses: tuple[tuple[Literal["training", "validation"], str], ...] = (
        ("training", data.train_split),
        ("validation", data.val_split),
    )
    return tuple(
        DataSet(
            name=f"{name}/{split}",
            use=use,
            digest=short({**found, "splits": {split: found["splits"][split]}}),
            uri=data.uri,
            counts={k: n for k, n in found["splits"][split].items() if isinstance(n, int)},
        )
        for use, split in uses
    )


def train_in_process(experiment: Experiment) -> tuple[Summary, RunHandle | None]:
    """Train, or continue the run of the same storage and name, to its end, in this process and without Ray.

    Raises `MgdetError` for anything that the user can mend; its message says how.
    """
    asked, machine = absolute(experiment), this_machine()
    resolved, reasons = prepare(asked, machine.cpus, machine.gpus)
    return launch(asked, resolved, reasons, in_process)


def launch(
    asked: Experiment,
    experiment: Experiment,
    reasons: list[str],
    execute: Execute,
    parent_run_id: str | None = None,
    trial: bool = False,
) -> tuple[Summary, RunHandle | None]:
    """Open the run that was `asked` for, train its resolved `experiment` by `execute`, and end it.

    A run that is finished is not trained again. `reasons` are logged: one line for each `auto` that was resolved.
    While another process writes the run it is refused; a `trial` of a sweep, which Tune may start again while its
    process before is still ending, waits a minute for that. What is wrong with its data, the sweep says for all trials.
    """
    with own(locate(asked.run_uri), f"the run {asked.run_uri}", 60 if trial else 0) as owner:
        return _launch(asked, experiment, reasons, execute, parent_run_id, trial, owner)


def _launch(
    asked: Experiment,
    experiment: Experiment,
    reasons: list[str],
    execute: Execute,
    parent_run_id: str | None,
    trial: bool,
    owner: Ownership,
) -> tuple[Summary, RunHandle | None]:
    data_name, data = training_data(asked.data)
    existing = open_run(asked, data)
    logger.info("%s", experiment.to_yaml())
    for reason in reasons:
        logger.info("%s", reason)
    reached = summarise(experiment) if existing else None
    finished = reached is not None and reached.already_finished
    if not finished and not trial:
        for line in examine_data(experiment.data).lines:
            logger.warning("%s", line)
    if existing:
        logger.info("the run %s is %s", experiment.run_uri, "finished, nothing to train" if finished else "continued")
    else:
        set_old_journal_aside(asked)
    splits = data_sets(asked.data, data_name, data)
    directory = locate(asked.run_uri)
    existing, copied = set_apart(existing, directory / "run.json", "learned", owner)
    run_ids = existing.run_ids if existing else {}
    tracking = experiment.tracking
    handle = tracking.start(
        NewRun(
            name=experiment.name,
            params={k: v for k, v in experiment.shown().items() if k != "name"},  # every run has its own: no parameter
            config_yaml=experiment.to_yaml(),
            run_id=run_ids.get(tracking.name),
            place=str(directory),
            begun_at=existing.place if existing else "",
            parent_run_id=parent_run_id,
            tags={
                "mgdet.run": experiment.run_uri,
                "mgdet.data": describe_data(data),
                **copied,
                **as_tags(made_by()),
            },
            headlines=HEADLINES,
            data=splits,
        )
    )
    save_run(asked, experiment, {**run_ids, tracking.name: handle.run_id} if handle else run_ids, data)
    if finished:
        execute = _send_what_is_left
    status: Status = "FAILED"
    try:
        execute(experiment, handle, owner)
        summary = _reached_the_end(experiment)
        status = "FINISHED"
        best = _best(summary, splits[-1])
        if handle:
            tracking.show_best(handle, best)
            if tracking.pictures:
                tracking.note(handle, REPORT, _in_words(summary))
    except (KeyboardInterrupt, Interrupted):
        status = "KILLED"
        raise
    finally:
        if handle and (not trial or status == "FINISHED") and not owner.lost():
            with on_stop(says="ending the run in the tracker"):
                tracking.end(handle, status)  # how any other trial ended, the sweep knows: one that it stops fails here
    if handle and tracking.wants_model and not trial:
        from mgdet.runs.model import keep_model

        keep_model(experiment, handle, best)
    return summary, handle


def _in_words(summary: Summary) -> str:
    found = ", ".join(f"{name} {summary.metrics[name]:.4f}" for name in HEADLINES if name in summary.metrics)
    return f"Best checkpoint after epoch {summary.epoch}: {found or 'not evaluated'}."


def _best(summary: Summary, data: DataSet) -> Best:
    metrics = {name: summary.metrics[name] for name in HEADLINES if name in summary.metrics}
    return Best(str(summary.checkpoint), summary.step, summary.epoch, metrics, data)


def _reached_the_end(experiment: Experiment) -> Summary:
    """The summary of a run whose training has ended, as the storage tells it. Raises `ClusterError` if it is not there.

    A store may take a file and not have it.
    """
    summary = summarise(experiment)
    if summary is None or not summary.already_finished:
        raise ClusterError(
            f"training ended, but {experiment.run_uri} holds no whole checkpoint of its last epoch. "
            f"{CheckpointStore(experiment.run_uri).how_far()} Check the storage and run the same command: it trains "
            "from there to the end again."
        )
    return summary


def in_process(experiment: Experiment, handle: RunHandle | None, owner: Ownership) -> None:
    """Train in this process. At SIGTERM or Ctrl-C it writes a checkpoint and raises `Interrupted`."""
    tracker = worker_tracker(experiment, handle, owner)
    asked = threading.Event()
    with on_stop(asked.set):
        try:
            world = World.current(torch.device("cuda" if experiment.cluster.gpu else "cpu"))
            with experiment.tracking.watch_machine(handle, platform.node()):
                judge = judge_of(experiment, world.device)
                Worker(experiment, world, tracker, stop_asked=asked.is_set, owner=owner, judge=judge).run()
        finally:
            tracker.close()


def _send_what_is_left(experiment: Experiment, handle: RunHandle | None, owner: Ownership) -> None:
    """Send the tracker the metrics of a finished run that are still in its journal."""
    worker_tracker(experiment, handle, owner).close()


def worker_tracker(experiment: Experiment, handle: RunHandle | None, owner: Ownership | None = None) -> Tracker:
    """The tracker of rank 0, the only worker that writes metrics and artifacts, while `owner` owns the run."""
    return experiment.tracking(handle, log_directory(experiment), journal_copies(experiment), owner)
