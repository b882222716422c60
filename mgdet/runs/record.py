"""A run on disk: which experiment it is, what trackers call it, how far it has come."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgdet.config import Experiment
from mgdet.errors import ConfigError
from mgdet.storage import Location, local_path, locate
from mgdet.text import first_of
from mgdet.training.checkpoint import CheckpointStore, best_of
from mgdet.training.precision import Precision

logger = logging.getLogger(__name__)

PRECISION = "train.precision"


@dataclass(frozen=True)
class Record:
    """What the file `run.json` of a run, or `sweep.json` of a sweep, holds."""

    identity: dict[str, Any]
    """The keys that decide the result, and their values."""
    run_ids: Mapping[str, str]
    """What each tracker that it was in, by `tracking.name`, calls its run."""


def read_record(file: Location, key: str) -> Record | None:
    """The record in `file`, whose `key` holds the identity; None where there is no such file.

    Raises:
        ConfigError: it is damaged, or the storage cannot be read.
    """
    try:
        content = json.loads(file.read_bytes())
        return Record(dict(content[key]), _run_ids(content))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(file.parent, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is damaged ({error}); move its directory away or choose another name=") from error


def _run_ids(content: dict[str, Any]) -> dict[str, str]:
    """Also of a record that was written while MLflow was the only tracker."""
    before = content.get("mlflow_run_id")
    return dict(content.get("run_ids", {"mlflow": before} if before else {}))


def write_record(file: Location, key: str, record: Record) -> None:
    """Write what `read_record` reads, and make the directory of `file`. Raises `ConfigError` where it cannot."""
    content = {key: record.identity, "run_ids": dict(record.run_ids)}
    try:
        file.parent.mkdir()
        file.replace(json.dumps(content, indent=1).encode())
    except OSError as error:
        raise _unusable(file.parent, error) from error


def differences(there: dict[str, Any], wanted: dict[str, Any]) -> str:
    """One line for each key, at most twelve, whose values differ in two identities; empty where they are equal."""
    keys = sorted(k for k in there.keys() | wanted.keys() if there.get(k) != wanted.get(k))
    lines = [f"{k}: {there.get(k)!r} there, {wanted.get(k)!r} asked for"[:600] for k in keys]
    return "  " + first_of(lines, 12, "\n  ") if lines else ""


def open_run(experiment: Experiment) -> Record | None:
    """The record of the existing run of this storage and name, or None.

    Raises:
        ConfigError: it exists with another experiment; the message lists the keys that differ.
    """
    record = read_record(locate(experiment.run_uri) / "run.json", "learned")
    if record is None:
        return None
    wanted = json.loads(json.dumps(experiment.identity()))
    if wanted[PRECISION] == "auto":  # which is what it became when the run began
        wanted[PRECISION] = record.identity.get(PRECISION)
    different = differences(record.identity, wanted)
    if different and not CheckpointStore(experiment.run_uri).committed():
        logger.info("the run %s never reached a checkpoint; its configuration is replaced", experiment.run_uri)
        return None
    if different:
        raise ConfigError(
            f"the run {experiment.run_uri} exists with another configuration:\n{different}\n"
            f"The same storage and name continue a run. Give this one another name (name={experiment.name}-2), or the "
            "configuration of the existing run."
        )
    return record


def precision_of_run(experiment: Experiment) -> Precision | None:
    """The precision in which the run of this storage and name has trained up to a checkpoint; None if there is none.

    Raises `ConfigError` where its record is damaged or cannot be read.
    """
    record = read_record(locate(experiment.run_uri) / "run.json", "learned")
    if record is None or not CheckpointStore(experiment.run_uri).committed():
        return None
    return record.identity.get(PRECISION)


def _unusable(directory: Location, error: OSError) -> ConfigError:
    """The error that names the storage in which `directory`, that of a run or sweep, lies."""
    return ConfigError(
        f"storage = {str(directory.parent)!r} cannot be used: {error}. It must be a directory that you may write to, "
        "or a URI such as s3://bucket/runs"
    )


def save_run(asked: Experiment, resolved: Experiment, run_ids: Mapping[str, str]) -> None:
    """Write `run.json` and `config.yaml`.

    The identity of the run is that of the experiment as `asked`, because the `resolved` one depends on the machine.
    Only the precision is the resolved one: on other hardware, `auto` must not go on in another.
    """
    directory = locate(asked.run_uri)
    try:
        directory.mkdir()
        (directory / "config.yaml").replace(resolved.to_yaml().encode())
    except OSError as error:
        raise _unusable(directory, error) from error
    identity = {**asked.identity(), PRECISION: resolved.train.precision}
    write_record(directory / "run.json", "learned", Record(identity, run_ids))


def log_directory(experiment: Experiment) -> Path:
    """Where this machine keeps the run's `metrics.jsonl`: in the run, or for remote storage in the user's cache."""
    return local_path(experiment.run_uri) or Path.home() / ".cache" / "mgdet" / experiment.name


def set_old_journal_aside(experiment: Experiment) -> None:
    """Rename the `metrics.jsonl` of a run that is replaced, so that the new run does not send its metrics."""
    journal = log_directory(experiment) / "metrics.jsonl"
    if journal.exists():
        journal.rename(journal.with_name(f"metrics-{int(journal.stat().st_mtime)}.jsonl"))


@dataclass(frozen=True)
class Summary:
    """How far a training has come, told by one of its checkpoints."""

    metrics: dict[str, float]
    """The checkpoint's own evaluation, under the metrics' tracking names; empty where it had none."""
    checkpoint: str | None
    """Path or URI of the checkpoint's file."""
    epoch: int
    """Epochs completed at the checkpoint."""
    already_finished: bool = False
    """Whether some checkpoint is of the last epoch, so that there is nothing left to train."""


def summarise(experiment: Experiment, last: bool = False) -> Summary | None:
    """The best checkpoint of a run by `val/AP`, or with `last` the last evaluated one; None if it has no checkpoint.

    Where no checkpoint was evaluated, it is the newest.
    """
    store = CheckpointStore(experiment.run_uri, experiment.train.keep_best)
    complete = store.complete()  # one that was cut short does not count: the run continues from the one before
    scored = [c for c in complete if c.metrics]
    best = (scored[-1] if last and scored else best_of(complete)) or (complete[-1] if complete else None)
    if best is None:
        return None
    finished = any(c.epoch >= experiment.train.epochs for c in complete)
    return Summary(best.metrics, str(store.path(best)), best.epoch, finished)
