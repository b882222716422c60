"""Train a run again, where what made it is here, and see whether the same metrics come out.

Nothing of the run itself is changed, and nothing is fetched or installed: what differs is told.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgdet.config import Experiment, validate
from mgdet.config_base import resolved
from mgdet.errors import ConfigError, DataError
from mgdet.plain_yaml import parse_yaml
from mgdet.plugins import load_plugins
from mgdet.provenance import made_by
from mgdet.runs.compare import (
    Comparison,
    Row,
    compare_configuration,
    compare_data,
    compare_metrics,
    compare_origin,
)
from mgdet.runs.launch import absolute, training_data, training_images
from mgdet.runs.record import Record, journal_copies, log_directory, read_record, summarise
from mgdet.storage import Location, is_taken, locate
from mgdet.tracking import NoTracking
from mgdet.tracking.copies import read_copies
from mgdet.training.checkpoint import CheckpointStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Original:
    """A run that has come to its end, as its directory tells it."""

    experiment: Experiment
    """Resolved, with the storage and the name of that directory."""
    record: Record
    journal: bytes


def read_original(place: str, data: str | None = None, plugins: Sequence[str] = ()) -> Original:
    """Read a finished run.

    Args:
        place: its directory or URI.
        data: where its data set is now; by default where it was.
        plugins: modules or entry points that it was trained with.

    Raises:
        ConfigError: it is no run, it has not come to its end, or this version of mgdet does not know its configuration.
    """
    load_plugins(plugins, (Path(),))
    directory = locate(place)
    record = read_record(directory / "run.json", "learned")
    if record is None:
        raise ConfigError(f"{place} holds no run: there is no run.json. Give the directory of a run, such as runs/mine")
    experiment = _configuration(directory)
    changes = {"name": directory.name, "storage": str(directory.parent), "tracking": NoTracking()}
    if data is not None:
        changes["data"] = experiment.data.model_copy(update={"uri": data, "generate": None})
    experiment = absolute(experiment.model_copy(update=changes))
    reached = summarise(experiment)
    if reached is None or not reached.already_finished:
        raise ConfigError(f"{place} has not come to its end. Continue it first, with the command that started it")
    journal = journal_of(experiment)
    if not journal:
        raise ConfigError(f"{place} has no metrics to compare with: metrics.jsonl is missing")
    return Original(experiment, record, journal)


def _configuration(directory: Location) -> Experiment:
    file = directory / "config.yaml"
    try:
        tree = parse_yaml(file.read_bytes().decode())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected the configuration of a run")
    return validate(tree, str(file))


def journal_of(experiment: Experiment) -> bytes:
    """The metrics of a run as they were recorded; empty where there are none. Raises `ConfigError`."""
    copies, here = journal_copies(experiment), log_directory(experiment) / "metrics.jsonl"
    try:
        return (read_copies(copies) if copies else b"") or (here.read_bytes() if here.exists() else b"")
    except OSError as error:
        raise ConfigError(f"the metrics of {experiment.run_uri} cannot be read: {error}") from error


def compare_with_here(original: Original) -> list[Row]:
    """Compare everything that is recorded of a run's origin with what is here.

    A generated data set that is missing is drawn first, as a training would. Raises `DataError`.
    """
    experiment, record = original.experiment, original.record
    rows = compare_origin(record.made_by, made_by(), bool(experiment.cluster.gpu))
    rows += compare_configuration(record.identity, experiment)
    try:
        training_images(experiment.data)
    except DataError as error:
        if is_taken(experiment.data.uri):
            raise
        raise DataError(f"{error} If the data set lies elsewhere now, pass --data") from error
    return [*rows, *compare_data(record.data, training_data(experiment.data)[1])]


def decisive(rows: Sequence[Row]) -> list[str]:
    """The names of what differs and decides the result."""
    return list(dict.fromkeys(row.what for row in rows if row.verdict == "DECIDES"))


def reproduction(original: Original, name: str | None, storage: str | None) -> Experiment:
    """The experiment that trains the run again, without a tracker, under another name beside it by default.

    Raises:
        ConfigError: there is something else, the run itself included, or a reproduction that other software made or
            that cannot go on so that its metrics are comparable.
    """
    known = original.experiment
    place = {"name": name or f"{known.name}-reproduced", "storage": storage or known.storage}
    again = absolute(validate({**known.shown(), **place}, "the reproduction"))
    there = locate(again.run_uri)
    if again.run_uri == known.run_uri:
        raise ConfigError(f"{again.run_uri} is the run itself: give the reproduction another --name or --storage")
    if there.is_empty():
        return again
    record = read_record(there / "run.json", "learned")
    elsewhere = "Remove it, or give this reproduction another --name"
    if record is None:
        raise ConfigError(f"{again.run_uri} exists, and is no run. {elsewhere}")
    if other := decisive(compare_origin(record.made_by, made_by(), bool(again.cluster.gpu))):
        raise ConfigError(f"{again.run_uri} was begun with another {', '.join(other)} than is here now. {elsewhere}")
    if step := _stopped_between_lines(again):
        raise ConfigError(
            f"{again.run_uri} was interrupted at step {step}, between two lines of its metrics (train.log_every = "
            f"{again.train.log_every}): the averages of the next line would be of fewer steps. {elsewhere}"
        )
    return again


def _stopped_between_lines(experiment: Experiment) -> int:
    """The step of the newest checkpoint, from which a run goes on, where it lies within what one line averages; or 0.

    A line ends at every multiple of `train.log_every` and with each epoch, after which a checkpoint may be evaluated.
    """
    newest = next(reversed(CheckpointStore(experiment.run_uri).complete()), None)
    if newest is None or newest.epoch >= experiment.train.epochs or newest.metrics or newest.pending:
        return 0
    return newest.step if newest.step % resolved(experiment.train.log_every) else 0


def reproduce(original: Original, again: Experiment, train: Callable[[Experiment], object]) -> Comparison:
    """Train the experiment `again` by `train`, or continue it, and compare its metrics with those of the original."""
    train(again)
    return compare_metrics(original.journal, journal_of(again))
