"""A sweep as a Ray Tune job: each trial is a Ray Train job of its own, with its own workers."""

import itertools
import logging
import os
import threading
from dataclasses import dataclass
from typing import Any

import yaml

from mgdet.cluster.relay import speak_through_driver, workers_heard
from mgdet.cluster.session import check_shared, scale_up, session
from mgdet.cluster.train import run_trial
from mgdet.config import Experiment, validate
from mgdet.data.findings import examine_data
from mgdet.errors import LASTING, ClusterError, ConfigError, Interrupted
from mgdet.lease import Ownership
from mgdet.plugins import load_plugins
from mgdet.provenance import as_tags, made_by
from mgdet.runs.config import ClusterConfig
from mgdet.runs.launch import HEADLINES, absolute, data_sets, training_data, training_images
from mgdet.runs.record import (
    Record,
    log_directory,
    own,
    set_apart,
    summarise,
    write_record,
)
from mgdet.runs.resolve import resolve
from mgdet.runs.resources import Resources, describe
from mgdet.runs.stop import StopRequest
from mgdet.signals import on_stop, received
from mgdet.storage import child_uri, locate
from mgdet.sweep.config import Sweep
from mgdet.sweep.page import NAME as REPORT
from mgdet.sweep.record import open_sweep, require_data_of_sweep, require_data_of_trial
from mgdet.sweep.report import report
from mgdet.sweep.table import headline, table
from mgdet.sweep.trials import FAILURE, Trial, TrialStore, definition, judged, winner_of
from mgdet.sweep.warm_start import earlier_trials
from mgdet.tracking import NewRun, RunHandle, Status, Tracking

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The result of a sweep."""

    trials: list[Trial]
    winner: Trial | None
    """The best trial or choice, see `winner_of`."""
    winner_config: str | None
    """Path or URI of the winner's configuration, which `mgdet train` takes."""
    table: str
    handle: RunHandle | None


@dataclass(frozen=True)
class _Start:
    """A sweep whose space, resources, data and record have been checked, so that it can run."""

    sweep: Sweep
    first: Experiment  # one of its experiments: storage and tracking are the sweep's, not a trial's
    uri: str  # of the sweep's directory
    store: TrialStore
    cluster: ClusterConfig  # of each trial, resolved
    concurrent: int
    parent: RunHandle | None


def run_sweep(sweep: Sweep, *, retry_failed: bool = False) -> Outcome:
    """Run a sweep, or continue the one of the same storage and name, to its end.

    Trials that are done are not run again (but for the failed ones with `retry_failed`); others go on from their
    checkpoints.

    Raises:
        MgdetError: anything that the user can mend; its message says how.
        Interrupted: after SIGTERM or Ctrl-C, when each trial has stopped at a checkpoint.
        KeyboardInterrupt: after a second one, with everything in place to continue.
    """
    first = absolute(next(sweep.corners())[1])  # storage, cluster and tracking belong to the sweep, not to a trial
    uri = child_uri(first.storage, sweep.name)
    open_sweep(sweep, uri)
    with own(locate(uri), f"the sweep {uri}") as owner:
        return _run(sweep, first, uri, retry_failed, owner)


def _run(sweep: Sweep, first: Experiment, uri: str, retry_failed: bool, owner: Ownership) -> Outcome:
    """Run or continue the sweep, of which this process is the owner."""
    known = open_sweep(sweep, uri)
    earlier_trials(sweep)  # refused before anything is started
    file = locate(uri) / "sweep.json"
    known, copied = set_apart(known, file, "definition", owner)
    tracking, run_ids = first.tracking, known.run_ids if known else {}
    with session(first.cluster) as found, workers_heard():
        resources = scale_up(
            first.cluster, found, copies=1 if sweep.concurrent == "auto" else sweep.concurrent, beside=first.beside
        )
        cluster = one_trial(first.cluster, resources)
        concurrent = how_many(sweep, cluster, resources, first.beside)
        logger.info("%s", trial_arithmetic(sweep, cluster, concurrent, resources, first.beside))
        data = _check_corners(sweep, cluster)
        require_data_of_sweep(uri, known.data if known else {}, data)
        check_shared({"storage": first.storage, "data.uri": first.data.uri})
        store = TrialStore(uri, sweep.name, owner)
        store.require(sweep)
        parent = tracking.start(
            NewRun(
                name=sweep.name,
                params={"sweep": {k: v for k, v in definition(sweep).items() if k != "base"} | {"trials": sweep.total}},
                config_yaml=yaml.safe_dump(definition(sweep), sort_keys=False),
                run_id=run_ids.get(tracking.name),
                place=str(file.parent),
                begun_at=known.place if known else "",
                tags={"mgdet.sweep": uri, **copied, **as_tags(made_by())},
                headlines=HEADLINES,
                searched=tuple(sweep.space),
                data=data_sets(first.data, training_data(first.data)[0], data[first.data.uri]),
            )
        )
        run_ids = {**run_ids, tracking.name: parent.run_id} if parent else run_ids
        write_record(file, "definition", Record(definition(sweep), run_ids, data, made_by(), str(file.parent)))
        start = _Start(sweep, first, uri, store, cluster, concurrent, parent)
        status: Status = "FAILED"
        try:
            _fit(start, retry_failed)
            outcome = _finish(start)
            status = "FINISHED"
        except (KeyboardInterrupt, Interrupted):
            status = "KILLED"
            raise
        finally:
            if parent and not owner.lost():
                with on_stop(says="ending the run in the tracker"):
                    tracking.end(parent, status)
    return outcome


def one_trial(config: ClusterConfig, resources: Resources) -> ClusterConfig:
    """The resolved cluster configuration of one trial: by default one worker, with a GPU if there are any.

    Its `auto` CPUs are the share that goes with a GPU, or one. Raises `ConfigError` where trials cannot run so.
    """
    if config.workers == 0:
        raise ConfigError("cluster.workers = 0: the trials of a sweep are Ray Train jobs; set 1 or more, or auto (1)")
    if isinstance(config.workers, tuple):
        raise ConfigError(
            f"cluster.workers = {list(config.workers)}: the trials of a sweep have a fixed number of workers "
            "each; elastic workers are for a single training"
        )
    gpu = resources.gpus >= 1 if config.gpu == "auto" else config.gpu
    workers = 1 if config.workers == "auto" else config.workers
    cpus = config.cpus_per_worker
    if cpus == "auto":
        cpus = float(max(1, min(16, int(resources.cpus / resources.gpus)))) if gpu and resources.gpus else 1.0
    return config.model_copy(update={"gpu": gpu, "workers": workers, "cpus_per_worker": cpus})


def how_many(sweep: Sweep, cluster: ClusterConfig, resources: Resources, beside: int = 0) -> int:
    """How many trials run at a time, each with `beside` processes of the size of a worker beside its workers.

    Raises `ClusterError`, with the arithmetic, where that many do not fit.
    """
    fit = resources.slots(cluster) // (cluster.fewest + beside)
    if fit < 1 or (sweep.concurrent != "auto" and sweep.concurrent > fit):
        wanted = 1 if sweep.concurrent == "auto" else sweep.concurrent
        raise ClusterError(
            f"{wanted} trial{'s' if wanted > 1 else ''} at a time do not fit: "
            f"{trial_arithmetic(sweep, cluster, fit, resources, beside)}. Lower "
            + ("concurrent, " if wanted > 1 else "")
            + "cluster.workers or cluster.cpus_per_worker"
            + (", or set cluster.gpu=false" if cluster.gpu else "")
            + (", or set evaluation.where=workers" if beside else "")
            + ", or add nodes (scaling cluster: cluster.scale_up_timeout_s)."
        )
    return min(fit, sweep.total) if sweep.concurrent == "auto" else sweep.concurrent


def trial_arithmetic(
    sweep: Sweep, cluster: ClusterConfig, concurrent: int, resources: Resources, beside: int = 0
) -> str:
    """One line: what a trial needs, what the cluster has, and how many trials run at a time."""
    gpu = " and 1 GPU" if cluster.gpu else ""
    judge = f" and {beside} that evaluates" if beside else ""
    return (
        f"{sweep.total} trials; each has {cluster.workers} workers{judge} x ({cluster.cpus_per_worker:g} CPUs{gpu}), "
        f"and its own process, which reserves none; {describe(resources)}, room for {resources.slots(cluster)} "
        f"workers: {concurrent} trials at a time"
    )


def _check_corners(sweep: Sweep, cluster: ClusterConfig) -> dict[str, Any]:
    """Make or check the data of every trial, warn about it, and see that batches can be split among its workers.

    Returns the fingerprint of each data set, by its location.
    """
    sizes: dict[str, int] = {}
    data: dict[str, Any] = {}
    cautions: dict[str, list[str]] = {}
    for settings, experiment in sweep.corners():
        e = absolute(experiment.model_copy(update={"cluster": cluster}))
        key = e.data.model_dump_json(exclude={"transform", "loader"})
        if key not in sizes:
            sizes[key] = training_images(e.data)
            found = training_data(e.data)[1]
            data.setdefault(e.data.uri, found)["splits"].update(found["splits"])
        if (seen := e.data.model_dump_json(exclude={"loader"})) not in cautions:  # input sizes too
            cautions[seen] = list(examine_data(e.data).lines)
        try:
            resolve(e, num_images=sizes[key], cpus=float(cluster.cpus_per_worker), gpus=float(bool(cluster.gpu)))
        except ConfigError as error:
            raise ConfigError(f"{error}\n  searched: {settings}") from error
    for line in dict.fromkeys(itertools.chain.from_iterable(cautions.values())):
        logger.warning("%s", line)
    return data


def _fit(start: _Start, retry_failed: bool) -> None:
    """Run all trials that are not done, with Tune. Raises `Interrupted` where it is asked to stop before they are."""
    # Not at the top: Ray reads its environment when it is imported, and `session` has set it by now.
    from mgdet.cluster.recorder import Recorder
    from mgdet.cluster.search import ResumingSearcher, build_scheduler

    sweep, store = start.sweep, start.store
    for trial in store.trials:
        if trial.state == "running" or (retry_failed and trial.state == "failed"):
            trial.state, trial.reason = "waiting", ""
    unfinished = [t for t in store.trials if not t.done]
    todo = len(unfinished) + max(0, sweep.total - len(store.trials))
    stop, asked = StopRequest(start.uri), threading.Event()
    recorder = Recorder(sweep, store, start.concurrent, start.parent, start.first.tracking, asked.is_set)
    recorder.settle()
    if not todo:
        return
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # our own record and the tracker hold more
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would end the trials without a checkpoint
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints a box also when told to be silent
    from ray import tune

    parent_run_id = start.parent.run_id if start.parent else None
    tracking = start.first.tracking

    def run_one(config: dict[str, Any]) -> None:
        _trial(config, tracking, parent_run_id)

    tuner = tune.Tuner(
        # Not a CPU: Ray's default of one for each trial's own process takes what its workers wait for, for ever.
        tune.with_resources(run_one, {"memory": 1 << 20}),
        tune_config=tune.TuneConfig(
            num_samples=todo,
            max_concurrent_trials=start.concurrent,
            search_alg=ResumingSearcher(
                sweep, store, unfinished, start.cluster.model_dump(), asked.is_set, earlier_trials(sweep)
            ),
            scheduler=build_scheduler(sweep, store, longest=max(e.train.epochs for _, e in sweep.corners())),
            trial_name_creator=lambda t: f"{sweep.name}-{t.config['number']:03d}",
            trial_dirname_creator=lambda t: f"{sweep.name}-{t.config['number']:03d}-{t.trial_id}",
        ),
        run_config=tune.RunConfig(
            # Ray keeps only its own bookkeeping here; a sweep is continued from its own record
            name=f"attempt-{os.getpid()}-{len(store.trials)}",
            storage_path=child_uri(start.uri, "ray"),
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            callbacks=[recorder],
            verbose=0,
        ),
    )

    def leave() -> None:
        asked.set()
        stop.create()

    try:
        with stop.offered(), on_stop(leave):
            tuner.fit()
    except KeyboardInterrupt:
        if received() is not None:  # a second signal; otherwise another process owns the sweep now
            recorder.abandon()
        raise
    with on_stop(says="ending the runs in the tracker"):
        recorder.settle()
    left = [t.name for t in store.trials if not t.done]
    if left or len(store.trials) < sweep.total:
        undone = sweep.total - len(store.trials) + len(left)
        raise Interrupted(
            f"stopped on request with {undone} of {sweep.total} trials not done, those that ran at a checkpoint; the "
            "same command goes on"
        )


def _trial(config: dict[str, Any], tracking: Tracking, parent_run_id: str | None) -> None:
    """Train one trial in its own process, and report its evaluations to Tune."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    speak_through_driver(logging.WARNING, f"{config['experiment']['name']}: ")
    try:
        load_plugins(config["experiment"]["plugins"])
        experiment = validate(config["experiment"], "the sweep's experiment").model_copy(update={"tracking": tracking})
        if StopRequest(experiment.storage).exists():  # the sweep stops while the trial was waiting for room
            return
        known = summarise(experiment, last=True)
        if known is not None and known.metrics and not known.already_finished:
            tune.report({"epoch": known.epoch, **known.metrics})  # a driver that was killed may not have heard of it
        require_data_of_trial(experiment)
        run_trial(experiment, parent_run_id, TuneReportCallback())
    except Interrupted:
        return  # no failure: the sweep knows that it asked for it
    except LASTING as error:
        tune.report({FAILURE: str(error)})  # not raised: Tune would start the trial again
        return
    reached = summarise(experiment, last=True)
    if reached is None or not reached.metrics:
        raise ClusterError(f"{experiment.name} ended without an evaluation that could be saved")
    tune.report({"epoch": reached.epoch, **reached.metrics})


def _finish(start: _Start) -> Outcome:
    """Write the report into the sweep's directory and the sweep's run in the tracker, and tag the winner."""
    sweep, trials = start.sweep, start.store.trials
    winner = winner_of(sweep, judged(trials, sweep.repeat))
    files = report(sweep, trials)
    directory = locate(start.uri) / "report"
    directory.mkdir()
    for name, data in files.items():
        (directory / name).replace(data)
    if start.parent is not None:
        _publish(start, start.parent, files, winner)
    return Outcome(
        trials=trials,
        winner=winner,
        winner_config=str(directory / "winner.yaml") if winner else None,
        table=table(sweep, trials, start.concurrent, everything=True),
        handle=start.parent,
    )


def _publish(start: _Start, parent: RunHandle, files: dict[str, bytes], winner: Trial | None) -> None:
    tracking, trials = start.first.tracking, start.store.trials
    tracker = tracking(parent, log_directory(start.first.model_copy(update={"name": start.sweep.name})))
    for name, data in files.items():
        tracker.artifact(data, name)
    if winner is not None:
        tracker.log(winner.metrics, step=sum(t.done for t in trials))
    tracker.close()
    runs = {c.name: c.run_id for c in tracking.children(parent)}
    for trial in trials:
        if trial.name in runs:
            tags = {
                "mgdet.state": trial.state,
                "mgdet.winner": str(winner is not None and trial.name == winner.name).lower(),
            }
            tracking.tag(parent.sibling(runs[trial.name]), tags)
    said = f"Winner: {headline(start.sweep, winner)}." if winner else "No trial has a value that counts."
    tracking.note(parent, REPORT, said)
    if winner is not None:
        tracking.tag(parent, {"mgdet.winner": winner.name, "mgdet.winner_run_id": runs.get(winner.name, "")})
