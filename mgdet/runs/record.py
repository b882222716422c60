"""A run on disk: which experiment it is, what trackers call it, how far it has come."""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mgdet.config import Experiment
from mgdet.config_yaml import nested
from mgdet.data.fingerprint import Fingerprint, data_differences, proven_equal, recorded
from mgdet.errors import ConfigError
from mgdet.files import cache_directory
from mgdet.lease import OWNER, Ownership, owned
from mgdet.provenance import made_by
from mgdet.records import RecordError, plain, seal, unseal
from mgdet.storage import Location, local_path, locate, place_in_store_of, seen_from
from mgdet.text import first_of
from mgdet.tracking.copies import begin, set_aside
from mgdet.tracking.run import COPY_OF
from mgdet.training.checkpoint import CheckpointStore, best_of
from mgdet.training.origin import data_of, learned_of, place_of, refuse_other_data

logger = logging.getLogger(__name__)

DATA = "data.uri"
FOUND = ("train.precision", "train.compile")
"""Keys whose `auto` the hardware decides: a run goes on with what they stood for when it began."""
_RUN_ID = re.compile(r"[A-Za-z0-9][\w.:-]{0,255}", re.ASCII)


@dataclass(frozen=True)
class Record:
    """What the file `run.json` of a run, or `sweep.json` of a sweep, holds."""

    identity: dict[str, Any]
    """The keys that decide the result, and their values."""
    run_ids: Mapping[str, str]
    """What each tracker that it was in, by `tracking.name`, calls its run."""
    data: dict[str, Any] = field(default_factory=dict)
    """Of a run the fingerprint of its data set, of a sweep those of all its data sets; empty in older records."""
    made_by: dict[str, Any] = field(default_factory=dict)
    """The program, libraries, command and machine of the last start, see `mgdet.provenance`; empty in older records."""
    place: str = ""
    """Path or URI of its directory at the last start; empty in older records."""


def read_record(file: Location, key: str) -> Record | None:
    """The record in `file`, whose `key` holds the identity; None where there is no such file.

    Raises:
        ConfigError: it is damaged, or the storage cannot be read.
    """
    try:
        return _checked(unseal(file.read_bytes()), key)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(file.parent, error) from error
    except RecordError as error:
        raise ConfigError(f"{file} is damaged ({error}); move its directory away or choose another name=") from error


def _checked(content: dict[str, Any], key: str) -> Record:
    """The record that `write_record` would have written so. Raises `RecordError` where it would not have."""
    unknown = content.keys() - {key, "run_ids", "mlflow_run_id", "data", "made_by", "place"}
    identity, data, made = content.get(key), content.get("data", {}), content.get("made_by", {})
    run_ids, place = content.get("run_ids", {}), content.get("place", "")
    as_written = all(isinstance(part, dict) for part in (identity, data, made, run_ids)) and isinstance(place, str)
    if unknown or not as_written:
        found = ", ".join(content)[:200] or "nothing"
        raise RecordError(f"expected {key}, run_ids, data, made_by and place, found {found}")
    if (before := content.get("mlflow_run_id")) is not None:  # written while MLflow was the only tracker
        run_ids = {"mlflow": before, **run_ids}
    for tracker, run_id in run_ids.items():
        if not (isinstance(run_id, str) and _RUN_ID.fullmatch(run_id)):
            raise RecordError(f"{str(run_id)[:80]!r} is no id of a run in the tracker {tracker}")
    # A sweep has the data sets of several places
    data = recorded(data) if key == "learned" else {uri: recorded(each) for uri, each in data.items()}
    return Record(dict(content[key]), run_ids, data, made, place)


def write_record(file: Location, key: str, record: Record) -> None:
    """Write what `read_record` reads, and make the directory of `file`. Raises `ConfigError` where it cannot."""
    content = {key: record.identity, "run_ids": dict(record.run_ids), "data": record.data, "made_by": record.made_by}
    try:
        file.parent.mkdir()
        file.replace(seal({**content, "place": record.place}))
    except OSError as error:
        raise _unusable(file.parent, error) from error


def moved_along(wanted: Any, there: Any, now: str, before: str) -> Any:
    """What is `wanted`, with the values `there` of those paths that stand for the same place in a moved project.

    Args:
        wanted: an identity, or a value in it.
        there: the same of a record.
        now: path or URI of the run or sweep.
        before: that of its last start; empty where the record does not know it.
    """
    if isinstance(wanted, dict) and isinstance(there, dict):
        return {k: moved_along(v, there[k], now, before) if k in there else v for k, v in wanted.items()}
    if isinstance(wanted, list) and isinstance(there, list) and len(wanted) == len(there):
        return [moved_along(*pair, now, before) for pair in zip(wanted, there, strict=True)]
    if isinstance(wanted, str) and isinstance(there, str) and before:
        return there if seen_from(now, wanted) == seen_from(before, there) else wanted
    return wanted


def original_of(record: Record, file: Location, key: str, owner: Ownership) -> str | None:
    """The place of the run or sweep of which this one is a copy; None where it is none, or was moved.

    Two copies that go on are two runs, and must not write to one run of a tracker. A record whose last start was at
    another place belongs to a copy, unless that place has it no longer. A place in another store is not looked into,
    because what a record says is data from outside: then it is taken for a copy, which costs a tracker some room only.

    Args:
        record: of this one, by `read_record(file, key)`.
        owner: of its directory; so the same directory is known under another name.
    """
    here = file.parent
    if not record.place or record.place == str(here):
        return None
    path = place_in_store_of(here, record.place)
    if path is None:
        return record.place
    there = Location(here.filesystem, path, record.place)
    try:
        if owner.stands_in(there / OWNER):
            return None
        other = _checked(unseal((there / file.name).read_bytes()), key)
    except (FileNotFoundError, NotADirectoryError, RecordError):
        return None
    except (OSError, ValueError):  # another person's, say: it is there; or no path at all
        return record.place
    return record.place if set(record.run_ids.items()) & set(other.run_ids.items()) else None


def set_apart(
    record: Record | None, file: Location, key: str, owner: Ownership
) -> tuple[Record | None, dict[str, str]]:
    """The record with which a run or sweep goes on, and a tag: that of a copy has no runs in trackers, which is told.

    Takes what `original_of` takes.
    """
    original = original_of(record, file, key, owner) if record else None
    if record is None or original is None:
        return record, {}
    logger.warning(
        "%s is a copy of %s: it gets a run of its own in the tracker, with the whole history", file.parent, original
    )
    return replace(record, run_ids={}, place=""), {COPY_OF: original}


def differences(there: dict[str, Any], wanted: dict[str, Any]) -> str:
    """One line for each key, at most twelve, whose values differ in two identities; empty where they are equal."""
    keys = sorted(k for k in there.keys() | wanted.keys() if there.get(k) != wanted.get(k))
    lines = [f"{k}: {there.get(k)!r} there, {wanted.get(k)!r} asked for"[:600] for k in keys]
    return "  " + first_of(lines, 12, "\n  ") if lines else ""


def open_run(experiment: Experiment, data: Fingerprint | None = None) -> Record | None:
    """The record of the existing run of this storage and name, or None; `data` is the data set's, where it is known.

    A run whose record is lost is known by its newest checkpoint.

    Raises:
        ConfigError: it exists with another experiment, or other data, and the message lists what differs; or there is
            a sweep.
    """
    store = CheckpointStore(experiment.run_uri)
    record = read_record(locate(experiment.run_uri) / "run.json", "learned")
    wanted = plain(experiment.identity())
    if record is None and read_record(locate(experiment.run_uri) / "sweep.json", "definition"):
        raise ConfigError(
            f"{experiment.run_uri} is a sweep, not a training; give the training another name={experiment.name}-2"
        )
    if record is None:
        record = _from_checkpoint(store, wanted)
    if record is None:
        return None
    there = {**_defaults_of_newer_keys(experiment, record.identity), **record.identity}
    wanted |= {key: there.get(key) for key in FOUND if wanted[key] == "auto"}
    wanted = moved_along(wanted, there, str(store.directory.parent), record.place)
    if data and proven_equal(record.data, data):  # they may have been moved
        wanted[DATA] = record.identity.get(DATA)
    different = differences(there, wanted)
    other_data = bool(data and data_differences(record.data, data))
    if (different or other_data) and not store.committed():
        logger.info("the run %s never reached a checkpoint; its configuration is replaced", experiment.run_uri)
        return None
    if different:
        renamed = (
            f"It was copied or renamed: it is the run {record.identity['name']!r}, and a run keeps its name. "
            if record.identity.get("name") not in (None, wanted["name"])
            else ""
        )
        raise ConfigError(
            f"the run {experiment.run_uri} exists with another configuration:\n{different}\n"
            f"{renamed}The same storage and name continue a run. Give this one another name "
            f"(name={experiment.name}-2), or the configuration of the existing run."
            f"{_train_on(experiment, record.identity, wanted)}"
        )
    if data is not None:
        refuse_other_data(experiment, record.data, data)
    return record


def _defaults_of_newer_keys(experiment: Experiment, identity: dict[str, Any]) -> dict[str, Any]:
    """The default of every key that a recorded identity lacks, since it was written by an earlier version.

    A new key's default is what mgdet did before there was that key. Empty where the identity is none of this version.
    """
    try:
        known = Experiment.model_validate({**nested(identity), "plugins": experiment.plugins})
    except (ValueError, TypeError, AttributeError):
        return {}
    return {key: value for key, value in plain(known.identity()).items() if key not in identity}


def begun_with(experiment: Experiment) -> dict[str, Any] | None:
    """What the keys `FOUND` stand for in the run of this storage and name; None where it has no checkpoint.

    Raises:
        ConfigError: the storage cannot be used, or the run's record is damaged.
        CheckpointError: its checkpoints cannot be read.
    """
    record = read_record(locate(experiment.run_uri) / "run.json", "learned")
    if not CheckpointStore(experiment.run_uri).committed():
        return None
    return {} if record is None else {key: record.identity[key] for key in FOUND if key in record.identity}


def _from_checkpoint(store: CheckpointStore, wanted: dict[str, Any]) -> Record | None:
    """The record that a run without one has by its newest checkpoint; None where there is no checkpoint either.

    Raises `ConfigError` where the checkpoint does not say what it learned from.
    """
    found = store.latest() if store.committed() else None
    if found is None:
        return None
    path, learned = store.path(found[0]), learned_of(found[1])
    if learned is None:
        raise ConfigError(
            f"{store.directory.parent} has checkpoints but no run.json, and {path} holds no configuration to compare "
            "with. Move the directory away or choose another name="
        )
    logger.warning("%s has no run.json; what the run is, %s says", store.directory.parent, path)
    # The checkpoint's configuration is the resolved one: what is `auto` here may be any number there
    known = {k: wanted[k] if wanted.get(k) == "auto" else v for k, v in plain(learned).items()}
    return Record(known, {}, data_of(found[1]), place=place_of(found[1]))


def _train_on(experiment: Experiment, there: dict[str, Any], wanted: dict[str, Any]) -> str:
    """How to train longer or otherwise from what a run has learned, where it is the same network."""
    changed = {k for k in there.keys() | wanted.keys() if there.get(k) != wanted.get(k)}
    if any(k.split(".")[0] == "model" for k in changed) or not CheckpointStore(experiment.run_uri).complete():
        return ""
    return (
        "\nTo train on from what it has learned, give the new one its best checkpoint, by the directory of the run: "
        f"name={experiment.name}-2 model.weights={experiment.run_uri}"
    )


def _unusable(directory: Location, error: OSError) -> ConfigError:
    """The error that names the storage in which `directory`, that of a run or sweep, lies."""
    return ConfigError(
        f"storage = {str(directory.parent)!r} cannot be used: {error}. It must be a directory that you may write to, "
        "or a URI such as s3://bucket/runs"
    )


def save_run(
    asked: Experiment, resolved: Experiment, run_ids: Mapping[str, str], data: Fingerprint | None = None
) -> None:
    """Write `run.json`, with the fingerprint of the `data`, and `config.yaml`.

    The identity of the run is that of the experiment as `asked`, because the `resolved` one depends on the machine.
    Only the precision is the resolved one: on other hardware, `auto` must not go on in another.
    """
    directory = locate(asked.run_uri)
    try:
        directory.mkdir()
        (directory / "config.yaml").replace(resolved.to_yaml().encode())
    except OSError as error:
        raise _unusable(directory, error) from error
    identity = {**asked.identity(), **{key: resolved.identity()[key] for key in FOUND}}
    write_record(directory / "run.json", "learned", Record(identity, run_ids, data or {}, made_by(), str(directory)))


@contextmanager
def own(directory: Location, what: str, wait_s: float = 0) -> Iterator[Ownership]:
    """Own the directory of a run or sweep within the block; `what` is it called in messages.

    Raises:
        OwnedError: another process writes it, also after waiting for `wait_s` seconds.
        ConfigError: the storage cannot be used.
    """
    with ExitStack() as stack:
        try:
            ownership = stack.enter_context(owned(directory / OWNER, what, wait_s))
        except OSError as error:
            raise _unusable(directory, error) from error
        yield ownership


def log_directory(experiment: Experiment) -> Path:
    """Where this machine keeps the run's `metrics.jsonl`: in the run, or for remote storage in the user's cache.

    There its name is followed by a digest of its location: runs of one name in two buckets are two runs.
    """
    local = local_path(experiment.run_uri)
    if local is not None:
        return local
    digest = hashlib.sha256(experiment.run_uri.encode()).hexdigest()[:12]
    return cache_directory() / f"{experiment.name}-{digest}"


def journal_copies(experiment: Experiment) -> Location | None:
    """Where remote storage keeps copies of the run's `metrics.jsonl`; None for local storage, in which it lies itself.

    Opens the storage.
    """
    return None if local_path(experiment.run_uri) is not None else locate(experiment.run_uri) / "journal"


def set_old_journal_aside(experiment: Experiment) -> None:
    """Rename the `metrics.jsonl` of a run that is replaced, so that the new run does not send its metrics.

    Its copies in remote storage are deleted, and each machine learns from the storage that the run is a new one.
    Raises `ConfigError` where the storage cannot be used.
    """
    journal = log_directory(experiment) / "metrics.jsonl"
    if journal.exists():
        set_aside(journal)
    if copies := journal_copies(experiment):
        try:
            begin(copies)
        except OSError as error:
            raise _unusable(copies.parent, error) from error


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
    """Whether some checkpoint is of the last epoch and none waits for its evaluation: there is nothing left to do."""
    step: int = 0
    """Optimizer steps done at the checkpoint."""


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
    finished = any(c.epoch >= experiment.train.epochs for c in complete) and not any(c.pending for c in complete)
    return Summary(best.metrics, str(store.path(best)), best.epoch, finished, best.step)
