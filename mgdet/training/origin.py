"""Where a checkpoint comes from, as it says itself: the data set and the configuration that it was trained with."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from mgdet.config import Experiment, identity_of
from mgdet.config_yaml import flatten
from mgdet.data.fingerprint import Fingerprint, data_differences, recorded
from mgdet.errors import ConfigError
from mgdet.plain_yaml import parse_yaml
from mgdet.records import RecordError, unseal
from mgdet.storage import child_uri, locate
from mgdet.structures import read_categories

logger = logging.getLogger(__name__)


def data_of(state: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint of the data set in a checkpoint's content; of one of an earlier version only the classes."""
    try:
        if "data" in state:
            return recorded(json.loads(state["data"]))
        return {"classes": [[c.id, c.name] for c in read_categories(state["categories"])]}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def data_of_run(experiment: Experiment) -> Fingerprint:
    """The fingerprint of the data set in the record of a run; empty where it has none, or none that can be read."""
    try:
        return recorded(unseal((locate(experiment.run_uri) / "run.json").read_bytes()).get("data"))
    except (OSError, RecordError):
        return {}


def learned_of(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values that decided the weights, by dotted key, in which `auto` is resolved; None where it does not say."""
    try:
        tree = parse_yaml(state["config"])
        return identity_of(tree) if isinstance(tree, dict) else None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return None


def place_of(state: Mapping[str, Any]) -> str:
    """Path or URI of the directory of the run that made a checkpoint; empty where it does not say."""
    try:
        tree = parse_yaml(state["config"])
        return child_uri(tree["storage"], tree["name"])
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return ""


def tell_other_evaluation(experiment: Experiment, state: Mapping[str, Any]) -> None:
    """Warn of each rule by which a checkpoint's run was evaluated up to it and is not evaluated from now on."""
    try:
        there = flatten(parse_yaml(state["config"])["evaluation"])
    except (KeyError, TypeError, AttributeError, ValueError):
        return
    here = flatten(experiment.evaluation.model_dump(mode="json"))
    for key in here.keys() & there.keys() - {"backend", "where"}:  # which do not change the numbers
        if here[key] != there[key]:
            logger.warning(
                "evaluation.%s was %s up to the newest checkpoint and is %s now: metrics before and after are not "
                "comparable, and the best checkpoint is chosen among both",
                *(key, there[key], here[key]),
            )


def refuse_other_data(experiment: Experiment, there: Mapping[str, Any] | None, here: Mapping[str, Any]) -> None:
    """Raise `ConfigError`, with the differences, where the data set `here` is not that of the run `there`."""
    lines = data_differences(there, here) if there else []
    if lines:
        raise ConfigError(
            f"the run {experiment.run_uri} was trained on other data than {experiment.data.uri} holds now:\n  "
            + "\n  ".join(lines)
            + "\nA run goes on with the data that it began with. Give this one another name "
            f"(name={experiment.name}-2), or set data.uri to the data set of the existing run, prepared as it was."
        )
