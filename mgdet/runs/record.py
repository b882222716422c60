"""A run on disk: which experiment it is, which MLflow run it writes to, what it has reached."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgdet.config import Experiment
from mgdet.errors import ConfigError
from mgdet.storage import local_path, locate
from mgdet.training.checkpoint import CheckpointStore, best_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """The record `run.json` of a run."""

    learned: dict[str, Any]
    mlflow_run_id: str | None = None


def open_run(experiment: Experiment) -> Run | None:
    """The existing run of this storage and name, or None.

    Raises:
        ConfigError: it exists with another experiment; the message lists the keys that differ.
    """
    file = locate(experiment.run_uri) / "run.json"
    try:
        record = json.loads(file.read_bytes())
        run = Run(dict(record["learned"]), record.get("mlflow_run_id"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(experiment, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is damaged ({error}); move the run away or choose another name=") from error
    wanted = json.loads(json.dumps(experiment.identity()))
    keys = sorted(k for k in run.learned.keys() | wanted.keys() if run.learned.get(k) != wanted.get(k))
    if keys and not CheckpointStore(experiment.run_uri).committed():
        logger.info("the run %s never reached a checkpoint; its configuration is replaced", experiment.run_uri)
        return None
    if keys:
        shown = "\n".join(f"  {k}: {run.learned.get(k)!r} there, {wanted.get(k)!r} asked for" for k in keys[:12])
        more = f"\n  and {len(keys) - 12} more" if len(keys) > 12 else ""
        raise ConfigError(
            f"the run {experiment.run_uri} exists with another configuration:\n{shown}{more}\n"
            f"The same storage and name continue a run. Give this one another name (name={experiment.name}-2), or the "
            "configuration of the existing run."
        )
    return run


def _unusable(experiment: Experiment, error: OSError) -> ConfigError:
    return ConfigError(
        f"storage = {experiment.storage!r} cannot be used: {error}. It must be a directory that you may write to, or a "
        "URI such as s3://bucket/runs"
    )


def save_run(asked: Experiment, resolved: Experiment, mlflow_run_id: str | None) -> None:
    """Write `run.json` and `config.yaml`. The run is known by what was asked for: `auto` may come out otherwise."""
    directory = locate(asked.run_uri)
    record = {"learned": asked.identity(), "mlflow_run_id": mlflow_run_id}
    try:
        directory.mkdir()
        (directory / "config.yaml").replace(resolved.to_yaml().encode())
        (directory / "run.json").replace(json.dumps(record, indent=1).encode())
    except OSError as error:
        raise _unusable(asked, error) from error


def log_directory(experiment: Experiment) -> Path:
    """Where this machine keeps the run's JSONL: in the run itself, or for remote storage in the user's cache."""
    return local_path(experiment.run_uri) or Path.home() / ".cache" / "mgdet" / experiment.name


def set_old_journal_aside(experiment: Experiment) -> None:
    """A new run must not send the metrics of an earlier one of its name that never reached a checkpoint."""
    journal = log_directory(experiment) / "metrics.jsonl"
    if journal.exists():
        journal.rename(journal.with_name(f"metrics-{int(journal.stat().st_mtime)}.jsonl"))


@dataclass(frozen=True)
class Summary:
    """What a training reached."""

    metrics: dict[str, float]
    """Of the best checkpoint by val/AP, or of the last evaluation."""
    checkpoint: str | None
    epoch: int
    already_finished: bool = False


def summarise(experiment: Experiment, last: bool = False) -> Summary | None:
    """The best checkpoint of a run and its metrics; None if it has none yet. `last`: the last evaluated one instead."""
    store = CheckpointStore(experiment.run_uri, experiment.train.keep_best)
    complete = store.complete()  # one that was cut short is not reached: the run goes on from the one before
    scored = [c for c in complete if c.metrics]
    best = (scored[-1] if last and scored else best_of(complete)) or (complete[-1] if complete else None)
    if best is None:
        return None
    finished = any(c.epoch >= experiment.train.epochs for c in complete)
    return Summary(best.metrics, str(store.path(best)), best.epoch, finished)
