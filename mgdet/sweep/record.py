"""Whether a sweep that is there is the one that is asked for: its definition and its data."""

import logging
from typing import Any

from mgdet.config import Experiment
from mgdet.data.fingerprint import data_differences, proven_equal
from mgdet.errors import ConfigError
from mgdet.runs.launch import training_data, training_images
from mgdet.runs.record import Record, differences, moved_along, read_record
from mgdet.storage import locate
from mgdet.sweep.config import Sweep
from mgdet.sweep.trials import definition

logger = logging.getLogger(__name__)


def open_sweep(sweep: Sweep, uri: str) -> Record | None:
    """The record of the existing sweep, or None. Raises `ConfigError` where something else is there."""
    directory = locate(uri)
    record = read_record(directory / "sweep.json", "definition")
    if record is None:
        if (directory / "run.json").exists():
            raise ConfigError(f"{uri} is a training, not a sweep; give the sweep another name=")
        return None
    wanted = moved_along(definition(sweep), record.identity, str(directory), record.place)
    if different := differences(_completed(record.identity, wanted), wanted):
        raise ConfigError(
            f"the sweep {uri} exists with another definition:\n{different}\n"
            f"The same storage and name continue a sweep. Give this one another name (name={sweep.name}-2), or the "
            "definition of the existing one; trials, concurrent and max_failures may change."
        )
    logger.info("the sweep %s is continued", uri)
    return record


def _completed(there: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The definition `there`, with the keys of its searcher that the version which wrote it did not have."""
    known, asked = there.get("searcher"), wanted["searcher"]
    if not isinstance(known, dict) or known.get("name") != asked["name"]:
        return there
    return {**there, "searcher": {**asked, **known}}


def require_data_of_sweep(uri: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise `ConfigError` where a data set of the sweep is not the one that it began with; both by location.

    One that was moved is known by its content. Sweeps of earlier versions do not know their data.
    """
    lines = [
        f"{place}: {line}" for place in here if place in there for line in data_differences(there[place], here[place])
    ]
    moved = [place for place in here if there and place not in there]
    lines += [
        f"{place}: none of those that it began with, {', '.join(there)}"
        for place in moved
        if not any(proven_equal(known, here[place]) for known in there.values())
    ]
    if lines:
        raise ConfigError(
            f"the sweep {uri} was begun with other data:\n  "
            + "\n  ".join(lines)
            + "\nIts trials could not be compared. "
            "Give the sweep another name=, or set data.uri to the data set that it began with."
        )


def require_data_of_trial(trial: Experiment) -> None:
    """Raise `ConfigError` where the data set of a trial was prepared again since its sweep began."""
    record = read_record(locate(trial.storage) / "sweep.json", "definition")
    if record is not None:
        training_images(trial.data)  # draws what is to be drawn
        require_data_of_sweep(trial.storage, record.data, {trial.data.uri: training_data(trial.data)[1]})
