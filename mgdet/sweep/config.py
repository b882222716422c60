"""A sweep: a base experiment, the keys that are searched in it, and how.

    sweep = load_sweep("configs/sweeps/quick.yaml", ["trials=20", "train.epochs=4"])

Everything that a trial could be is validated against the experiment's own types when the file is read.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from mgdet.config import Experiment, validate
from mgdet.config_base import Config
from mgdet.config_files import SWEEPS, find, find_base
from mgdet.config_yaml import Overrides, flatten, plain, read_tree, read_yaml, settings_of, validate_as, with_settings
from mgdet.errors import ConfigError
from mgdet.evaluation.evaluator import AP, LATENCY, PARAMETERS, info_of, infos
from mgdet.plugins import load_plugins, named_plugins, united
from mgdet.storage import Place, child_uri
from mgdet.sweep.constraints import constraint
from mgdet.sweep.space import AnyDomain, Params, Space

Mode = Literal["max", "min"]
MOST_TRIALS = 100_000


class ASHA(Config):
    """Asynchronous successive halving (Li et al., MLSys 2020): at epochs `grace_epochs * reduction_factor^k` a trial
    goes on only if it is among the best 1 / `reduction_factor` of those that have been there."""

    name: Literal["asha"] = "asha"
    grace_epochs: int = Field(default=2, gt=0, le=1_000_000, description="no trial is stopped before")
    reduction_factor: float = Field(default=3, gt=1, le=1_000_000, description="one in so many goes on")


class Median(Config):
    """A trial stops when its best evaluation is worse than the median of the others' means so far (Golovin et al., KDD
    2017)."""

    name: Literal["median"] = "median"
    grace_epochs: int = Field(default=2, gt=0, le=1_000_000, description="no trial is stopped before")
    min_trials: int = Field(default=3, gt=0, le=MOST_TRIALS, description="trials to compare with")


class NoScheduler(Config):
    """Every trial runs to its end."""

    name: Literal["none"] = "none"


class TPE(Config):
    """Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011); it takes several metrics as well.

    Optuna's own defaults of `multivariate` have changed between its versions and depend on the number of metrics; these
    do not, and stand in the sweep's record.
    """

    name: Literal["tpe"] = "tpe"
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the searcher's random numbers")
    startup_trials: int = Field(
        default=10, gt=0, le=MOST_TRIALS, description="random ones, before the estimator begins"
    )
    multivariate: bool = Field(
        default=True,
        description="keys are drawn together, so that what suits each other is found; false: each key by itself",
    )
    group: bool = Field(
        default=True,
        description="keys that exist only in some trials (`when`) are drawn together with those that exist in the same "
        "trials; false: by themselves. Needs multivariate",
    )

    @model_validator(mode="after")
    def _group_needs_multivariate(self) -> Self:
        if self.group and not self.multivariate:
            raise ValueError("group = true needs multivariate = true: set group to false as well")
        return self


class RandomSearch(Config):
    """Every trial independent of the others."""

    name: Literal["random"] = "random"
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the searcher's random numbers")


class Sweep(Config):
    """What a sweep file holds. The same storage and name mean the same sweep, which is then continued."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=150, description="of the sweep: letters, digits, . _ -"
    )
    base: dict[str, Any] = Field(description="the experiment that is varied; in the file: its path relative to it")
    set: dict[str, Any] = Field(default={}, description="dotted keys that are the same in every trial")
    space: dict[str, AnyDomain] = Field(min_length=1, description="dotted keys that are searched")
    metric: dict[str, Mode] = Field(default={AP.name: AP.direction}, description="one or several; the first one leads")
    constraints: tuple[str, ...] = Field(
        default=(),
        max_length=20,
        description="bounds on metrics of the last evaluation, such as 'val/divergence <= 0.3': a trial that breaks "
        "one does not win, and TPE looks elsewhere",
    )
    trials: Annotated[int, Field(gt=0, le=MOST_TRIALS)] | Literal["auto"] = Field(
        default="auto", description="auto: every point of the grids once"
    )
    repeat: int = Field(
        default=1,
        gt=0,
        le=1000,
        description="trainings of each choice of values, with the seeds `seed`, `seed` + 1, ...; what they reach is "
        "judged by the mean. A sweep has `trials` times `repeat` trainings",
    )
    repeat_until: float | None = Field(
        default=None,
        gt=0.5,
        lt=1,
        description="a probability, such as 0.95: further repetitions of a choice are left out when with this "
        "probability their mean would stay behind the best one; null: all are trained",
    )
    scheduler: Annotated[ASHA | Median | NoScheduler, Field(discriminator="name")] = ASHA()
    searcher: Annotated[TPE | RandomSearch, Field(discriminator="name")] = TPE()
    concurrent: Annotated[int, Field(gt=0, le=10_000)] | Literal["auto"] = Field(
        default="auto", description="auto: as many as fit the cluster"
    )
    max_failures: int = Field(
        default=1, ge=0, le=1000, description="retries of a trial, beside cluster.max_failures of workers"
    )
    warm_start: tuple[Place, ...] = Field(
        default=(),
        description="directories of earlier sweeps (paths or URIs) with the same space and metric, whose trials the "
        "searcher knows from the beginning; they do not count as trials of this one",
    )
    report_every_s: float = Field(default=30, gt=0, le=86_400, description="seconds between tables in the log")

    @field_validator("metric", mode="before")
    @classmethod
    def _short_metric(cls, value: Any) -> Any:
        named = [value] if isinstance(value, str) else value
        if isinstance(named, list) and all(isinstance(name, str) for name in named):
            return {name: _direction(name) for name in named}
        return value

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: dict[str, Mode]) -> dict[str, Mode]:
        if not value:
            raise ValueError(f"expected at least one metric, such as {AP.name}")
        for name in value:
            if info_of(name) is None:
                raise ValueError(
                    f"{name!r} is not a metric of the evaluation; there are {', '.join(i.name for i in infos())}"
                )
        return value

    @field_validator("constraints")
    @classmethod
    def _known_constraints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            name = constraint(text).metric
            if info_of(name) is None:
                raise ValueError(
                    f"{name!r} is not a metric of the evaluation; there are {', '.join(i.name for i in infos())}"
                )
        return value

    @field_validator("space")
    @classmethod
    def _followable(cls, value: dict[str, AnyDomain]) -> dict[str, AnyDomain]:
        Space(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if both := sorted(self.set.keys() & self.space.keys()):
            raise ValueError(f"{', '.join(both)}: searched, and set to a value as well; take it out of one of them")
        judged = {*self.metric, *(constraint(text).metric for text in self.constraints)}
        costs = judged & {LATENCY.name, PARAMETERS.name}
        if costs and not self._measures_cost():
            raise ValueError(
                f"{' and '.join(sorted(costs))}: nothing measures this; add `evaluation.cost: true` to what is set"
            )
        if self.repeat_until is not None and self.repeat == 1:
            raise ValueError("repeat_until needs repeat: 2 or more")
        if self.repeat > 1 and "seed" in self.space:
            raise ValueError(
                f"repeat = {self.repeat}: it sets the seed, which is searched as well; take one of them out"
            )
        points = len(self.points)
        if self.trials == "auto" and points == 1:
            raise ValueError("trials is missing: without a grid of several points, say how many there shall be")
        if self.trials != "auto" and self.trials % points:
            raise ValueError(
                f"trials = {self.trials}: the grids have {points} points, each of which is run equally often; choose a "
                f"multiple of {points}, or leave trials out"
            )
        return self

    def _measures_cost(self) -> bool:
        evaluation = self.base.get("evaluation")
        measured = evaluation.get("cost", False) if isinstance(evaluation, dict) else False
        return bool(self.set.get("evaluation.cost", measured))

    @property
    def points(self) -> list[Params]:
        """Every combination of the values of all grids, as plain values; a single empty one without a grid."""
        return Space(self.space).grid()

    @property
    def total(self) -> int:
        """The number of trainings, repetitions included, also where `trials` is `auto`."""
        return (len(self.points) if self.trials == "auto" else self.trials) * self.repeat

    @property
    def lead(self) -> tuple[str, Mode]:
        """The first metric, by which trials are stopped and the winner is chosen, and whether it is `max` or `min`."""
        return next(iter(self.metric.items()))

    def experiment(self, settings: Mapping[str, Any]) -> Experiment:
        """The experiment with these values of the searched keys. Raises `ConfigError`."""
        tree = with_settings(Experiment, self.base, {**self.set, **settings}, f"sweep {self.name}")
        return validate(tree, f"sweep {self.name}")

    def trial(self, name: str, settings: Mapping[str, Any]) -> Experiment:
        """The experiment of a trial: like `experiment`, with the trial's name and stored in the sweep's directory."""
        e = self.experiment(settings)
        return e.model_copy(update={"name": name, "storage": child_uri(e.storage, self.name)})

    def corners(self) -> Iterator[tuple[dict[str, Any], Experiment]]:
        """Experiments that together hold every option and both ends of every interval. Raises `ConfigError`."""
        for settings in Space(self.space).corners():
            try:
                yield settings, self.experiment(settings)
            except ConfigError as error:
                raise ConfigError(f"{error}\n{self._culprits(settings, str(error))}") from None

    def _culprits(self, settings: Mapping[str, Any], message: str) -> str:
        """One line for each searched key that the error names (for all keys if it names none), with its domain."""
        named = {k: v for k, v in settings.items() if k in message}
        lines = []
        for key, value in named.items() or settings.items():
            domain = self.space[key].model_dump(exclude_defaults=True)
            lines.append(f"  searched: {key}: {domain} allows {value!r}")
        return "\n".join(lines)


def load_sweep(config: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> Sweep:
    """Read a sweep's file, and check that every trial of it would be a valid experiment.

    Args:
        config: a YAML file, the name of a sweep that comes with mgdet, or a mapping of what a file would hold; its
            `base` is an experiment's file relative to it, or the name of one that comes with mgdet.
        overrides: `key=value`, or a mapping: keys of the sweep (`trials=20`, `scheduler.grace_epochs=1`,
            `space.assigner.sigma={uniform: [1, 2]}`), and any other key is one of the experiment (`train.epochs=4`).

    Raises:
        ConfigError: naming the key, the value and the range that led to it.
    """
    if isinstance(config, Mapping):
        source, directory, tree = "the sweep", Path(), plain(config, "the sweep")
    else:
        path = find(config, SWEEPS)
        source, directory, tree = str(config), path.parent, read_yaml(path)
    for part in ("set", "space"):
        if isinstance(tree.get(part), dict):
            tree[part] = _dotted(tree[part], searched=part == "space")
    for key, value, said in settings_of(overrides):
        _apply(tree, key, value, said)
    added = _load_plugins(tree, source, directory)
    base = tree.get("base")
    if not isinstance(base, str):
        raise ConfigError(f"{source}: base = {base!r}: expected the name of an experiment's YAML file beside this one")
    tree["base"] = read_tree(Experiment, find_base(base, directory, source))
    if added:
        _below(tree, "set", source)["plugins"] = united(tree["base"].get("plugins", ()), added)
    sweep = validate_as(Sweep, tree, source)
    experiments = [experiment for _, experiment in sweep.corners()]
    _check_epochs(sweep, experiments, source)
    return sweep


def _direction(metric: str) -> Mode:
    """Which way a metric is better; `max` for one that there is not, which is refused afterwards."""
    info = info_of(metric)
    return info.direction if info else "max"


def _load_plugins(tree: dict[str, Any], source: str, directory: Path) -> list[str]:
    """Load what a sweep names under `plugins`, or sets for its experiments; the names, taken out of `tree`."""
    settings = tree["set"] if isinstance(tree.get("set"), dict) else {}
    added = united(named_plugins(tree, source), named_plugins(settings, f"{source}: set"))
    load_plugins(added, (directory, Path()))
    tree.pop("plugins", None)
    settings.pop("plugins", None)
    return added


def _dotted(tree: dict[str, Any], *, searched: bool) -> dict[str, Any]:
    """The same tree with dotted keys only; a mapping that names a kind of domain is a value, not a parent of keys."""
    if not searched:
        return flatten(tree)
    out: dict[str, Any] = {}
    kinds = {"uniform", "loguniform", "integers", "choice", "grid", "when"}
    for key, value in tree.items():
        if isinstance(value, dict) and value and not kinds & value.keys():
            out |= {f"{key}.{k}": v for k, v in _dotted(value, searched=True).items()}
        else:
            out[key] = value
    return out


def _apply(tree: dict[str, Any], key: str, value: Any, said: str) -> None:
    head, _, rest = key.partition(".")
    if head in Sweep.model_fields and (rest or head not in ("set", "space")):
        (_below(tree, head, said) if rest else tree)[rest or head] = value
    elif head in Experiment.model_fields:
        _below(tree, "set", said)[key] = value
    else:
        allowed = [*Sweep.model_fields, *Experiment.model_fields]
        near = difflib.get_close_matches(head, allowed, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{said}: unknown key {head}.{hint} Allowed: {', '.join(dict.fromkeys(allowed))}.")


def _below(tree: dict[str, Any], key: str, said: str) -> dict[str, Any]:
    """The mapping under a key of a sweep, made if it is missing. Raises `ConfigError` where something else is there."""
    if tree.get(key) is None:
        tree[key] = {}
    if not isinstance(tree[key], dict):
        raise ConfigError(f"{said}: {key} is a value, it has no keys below it")
    found: dict[str, Any] = tree[key]
    return found


def _check_epochs(sweep: Sweep, experiments: Sequence[Experiment], source: str) -> None:
    if isinstance(sweep.scheduler, NoScheduler):
        return
    shortest = min(e.train.epochs for e in experiments)
    if sweep.scheduler.grace_epochs >= shortest:
        raise ConfigError(
            f"{source}: scheduler.grace_epochs = {sweep.scheduler.grace_epochs}: trials have {shortest} epochs, so "
            "none would ever be stopped early; choose a smaller number, or scheduler.name=none"
        )
    for e in experiments:
        if e.train.evaluate_every >= e.train.epochs:
            raise ConfigError(
                f"{source}: train.evaluate_every = {e.train.evaluate_every} of {e.train.epochs} epochs: a trial is "
                "judged only at its end, so none would be stopped early; evaluate more often, or scheduler.name=none"
            )
