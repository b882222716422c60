"""What earlier sweeps of the same space have found, for a searcher to begin with."""

import logging
from typing import Any

from mgdet.errors import ConfigError
from mgdet.records import plain
from mgdet.runs.record import differences, read_record
from mgdet.storage import locate
from mgdet.sweep.config import Sweep
from mgdet.sweep.space import Space
from mgdet.sweep.trials import Trial, TrialStore, definition, judged

logger = logging.getLogger(__name__)

SAME = ("space", "metric")
"""The parts of the definition that have to be equal; another base, data or number of epochs is told only."""


def earlier_trials(sweep: Sweep) -> list[Trial]:
    """The trials that are done of the sweeps in `warm_start`, in their order.

    Raises `ConfigError` where one is no sweep, is damaged, or searches another space or metric.
    """
    found: list[Trial] = []
    for place in sweep.warm_start:
        directory = locate(place)
        record = read_record(directory / "sweep.json", "definition")
        if record is None:
            raise ConfigError(f"warm_start: {place} is no sweep: it has no sweep.json. Give the directory of a sweep")
        mine, theirs = plain(definition(sweep)), record.identity
        if different := differences(*({part: tree.get(part) for part in SAME} for tree in (theirs, mine))):
            raise ConfigError(
                f"warm_start: the sweep {place} cannot be compared with this one:\n{different}\n"
                "Its values would stand for something else. Leave it out, or search the same space by the same metric"
            )
        store = TrialStore(place, directory.name)
        _require(sweep, store)
        done = [trial for trial in judged(store.trials, int(theirs.get("repeat", 1))) if trial.done]
        logger.info("warm start: %d trials of %s%s", len(done), place, _otherwise(theirs, mine))
        found += done
    return found


def _require(sweep: Sweep, store: TrialStore) -> None:
    space = Space(sweep.space)
    for trial in store.trials:
        try:
            space.require(trial.params)
        except ValueError as error:
            raise ConfigError(f"warm_start: {store.directory / trial.name}: {error}") from error


def _otherwise(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    other = [part for part in ("base", "set", "scheduler") if theirs.get(part) != mine.get(part)]
    return f", which has another {' and '.join(other)}: its values are taken as they are" if other else ""
