"""The record of each trial, `trial.json` in its directory, which is first written before the trial is started.

These files are all that a sweep is continued from. Ray's own state of a sweep is neither read nor needed.
"""

import itertools
import json
import re
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState, create_trial
from pydantic import BaseModel, ConfigDict, model_validator

from mgdet.errors import ConfigError
from mgdet.lease import Ownership
from mgdet.records import Count, Metrics, RecordError, plain, read_as, seal
from mgdet.storage import Location, locate
from mgdet.sweep.config import Sweep
from mgdet.sweep.constraints import broken, excesses
from mgdet.sweep.space import Params, Space

State = Literal["waiting", "running", "finished", "stopped", "failed"]
DONE: tuple[State, ...] = ("finished", "stopped", "failed")
FAILURE = "failure"
"""The key under which a trial reports the message of an error that a second try would meet again."""


class EpochMetrics(BaseModel):
    """The metrics of one evaluation of a trial."""

    epoch: Count
    """Epochs completed."""
    metrics: Metrics
    """Those below `val/`, by their tracking names; what is undefined is NaN, and null on disk."""
    time: float
    """Seconds since 1970."""


class Trial(BaseModel):
    """One trial of a sweep, as far as it has come."""

    model_config = ConfigDict(extra="forbid")

    number: Count
    name: str
    params: Params
    """The searched values in the plain form that the searcher knows."""
    settings: dict[str, Any]
    """The searched values as they stand in the configuration."""
    epochs: Count
    """Epochs of the whole training."""
    state: State = "waiting"
    reason: str = ""
    """Why it was stopped, or the error with which it failed."""
    evaluations: list[EpochMetrics] = []
    """In order of the epoch."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        epochs = [0, *(e.epoch for e in self.evaluations)]
        if any(a >= b for a, b in itertools.pairwise(epochs)) or epochs[-1] > self.epochs:
            raise ValueError(f"evaluations of the epochs {epochs[1:]}, expected growing ones from 1 to {self.epochs}")
        return self

    @property
    def done(self) -> bool:
        """Whether it has finished, was stopped or failed, so that it is not run again."""
        return self.state in DONE

    @property
    def epoch(self) -> int:
        """The epoch of its last evaluation; 0 before the first."""
        return self.evaluations[-1].epoch if self.evaluations else 0

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last evaluation, by which trials are compared: the best of many would flatter a trial."""
        return self.evaluations[-1].metrics if self.evaluations else {}

    def add(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Append an evaluation; False, and nothing is changed, if a restart only repeats it."""
        if epoch <= self.epoch:
            return False
        values = {k: float(v) for k, v in metrics.items() if k.startswith("val/")}
        self.evaluations.append(EpochMetrics(epoch=epoch, metrics=values, time=time.time()))
        return True


class TrialStore:
    """The trials of a sweep on disk, under its directory `uri`; whoever writes them passes the `owner` of the sweep."""

    def __init__(self, uri: str, name: str, owner: Ownership | None = None) -> None:
        self.directory, self.name, self._owner = locate(uri), name, owner
        self.trials: list[Trial] = []
        while (trial := self._read(len(self.trials))) is not None:
            self.trials.append(trial)
        self._refuse_gaps()

    def new(self, sweep: Sweep, params: Params, settings: dict[str, Any]) -> Trial:
        """The next trial, on disk when this returns; the seed of a repetition is added to its `settings`.

        Raises `ConfigError` if its experiment would not be valid, or the record cannot be written.
        """
        number = len(self.trials)
        name, settings = self._name(number), with_seed(sweep, settings, number)
        epochs = sweep.trial(name, settings).train.epochs
        trial = Trial(number=number, name=name, params=params, settings=settings, epochs=epochs)
        try:
            self.save(trial)
        except OSError as error:
            raise ConfigError(
                f"{self._file(number)} cannot be written: {error}. Make room or mend the storage, and run the same "
                "command: the sweep goes on, and its trials that ran go on from their checkpoints."
            ) from error
        self.trials.append(trial)
        return trial

    def save(self, trial: Trial) -> None:
        """Write the trial's `trial.json`. Raises `OSError`, and `OwnedError` where another process owns the sweep."""
        if self._owner is not None:
            self._owner.require()
        file = self._file(trial.number)
        file.parent.mkdir()
        file.replace(seal(trial.model_dump(mode="json")))

    def require(self, sweep: Sweep) -> None:
        """Check that every trial could be one of this sweep. Raises `ConfigError`, with the file and what is wrong."""
        space = Space(sweep.space)
        for trial in self.trials:
            try:
                settings = with_seed(sweep, space.settings(space.require(trial.params)), trial.number)
                if plain(settings) != plain(trial.settings):
                    raise ValueError(f"the settings {trial.settings} are not those of the values {trial.params}"[:600])
                epochs = sweep.trial(trial.name, trial.settings).train.epochs
                if trial.epochs != epochs:
                    raise ValueError(f"epochs = {trial.epochs}, expected {epochs}")
            except ValueError as error:
                raise _damaged(self._file(trial.number), error) from error

    def _refuse_gaps(self) -> None:
        """Raise `ConfigError` where a later trial than the last one has begun: a new one would take its place."""
        later = re.compile(rf"{re.escape(self.name)}-(\d{{3,9}})")
        for name in sorted(self.directory.children()):
            found = later.fullmatch(name)
            if not found or int(found[1]) < len(self.trials):
                continue
            for record in (self.directory / name / file for file in ("trial.json", "run.json")):
                if record.exists():
                    raise ConfigError(
                        f"{self._file(len(self.trials))} is missing, and there is {record}: records of the sweep were "
                        "lost, and its next trial would take the place of another one. Restore the record, or move the "
                        "sweep away or choose another name="
                    )

    def _name(self, number: int) -> str:
        return f"{self.name}-{number:03d}"

    def _file(self, number: int) -> Location:
        return self.directory / self._name(number) / "trial.json"

    def _read(self, number: int) -> Trial | None:
        file = self._file(number)
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return None
        try:
            trial = read_as(Trial, data)
            if (trial.number, trial.name) != (number, self._name(number)):
                raise RecordError(f"it is the record of trial {trial.number}, {trial.name!r:.80}")
        except RecordError as error:
            raise _damaged(file, error) from error
        return trial


def _damaged(file: Location, error: ValueError) -> ConfigError:
    return ConfigError(f"{file} is damaged ({error}); move the sweep away or choose another name=")


def with_seed(sweep: Sweep, settings: dict[str, Any], number: int) -> dict[str, Any]:
    """The settings of trial `number`, with the seed of its repetition where trials are repeated."""
    if sweep.repeat == 1:
        return settings
    return {**settings, "seed": sweep.experiment(settings).seed + number % sweep.repeat}


def judged(trials: Iterable[Trial], repeat: int) -> list[Trial]:
    """One trial for each choice of values: where each is repeated, the mean of its repetitions so far.

    It has the name and the settings of the first repetition, and counts as finished when all have run to their end, of
    those that did not fail.
    """
    if repeat == 1:
        return list(trials)
    found = [list(members) for _, members in itertools.groupby(trials, lambda trial: trial.number // repeat)]
    return [_mean(members, repeat) for members in found]


def _mean(members: list[Trial], repeat: int) -> Trial:
    good = [t for t in members if t.state != "failed" and t.evaluations]
    names = [name for name in (good[0].metrics if good else {}) if all(name in t.metrics for t in good)]
    metrics = {name: statistics.fmean(t.metrics[name] for t in good) for name in names}
    state: State = "running"
    if len(members) == repeat and all(t.done for t in members):
        state = "failed" if not good else "finished" if all(t.state == "finished" for t in good) else "stopped"
    first = members[0]
    means = EpochMetrics(epoch=min(t.epoch for t in good), metrics=metrics, time=0.0) if good else None
    reason = f"mean of {len(good)} of {repeat} repetitions" if good else first.reason
    return first.model_copy(update={"state": state, "reason": reason, "evaluations": [means] if means else []})


def values(sweep: Sweep, trial: Trial) -> list[float] | None:
    """The sweep's metrics of the trial's last evaluation, in their order; None where one is undefined."""
    found = [trial.metrics.get(m) for m in sweep.metric]
    return None if any(v is None or v != v for v in found) else [float(v) for v in found if v is not None]


def ranked(sweep: Sweep, trials: Iterable[Trial]) -> list[Trial]:
    """The trials that have a value of the first metric, the best first.

    A trial that ran to its end stands before every one that was stopped: those were trained for a shorter time. One
    that breaks a constraint stands behind all others.
    """
    metric, mode = sweep.lead
    sign = 1 if mode == "min" else -1
    scored = [t for t in trials if t.state != "failed" and t.metrics.get(metric, float("nan")) == t.metrics.get(metric)]
    return sorted(
        scored,
        key=lambda t: (
            bool(broken(sweep.constraints, t.metrics)),
            t.state != "finished",
            sign * t.metrics[metric],
            t.number,
        ),
    )


def winner_of(sweep: Sweep, trials: Iterable[Trial]) -> Trial | None:
    """The best of the trials or choices, None where none has a value or all break a constraint."""
    best = next(iter(ranked(sweep, trials)), None)
    return None if best is None or broken(sweep.constraints, best.metrics) else best


def front(sweep: Sweep, trials: Iterable[Trial]) -> list[Trial]:
    """The Pareto front of the trials that ran to their end: no other is as good in all metrics and better in one."""
    signs = [1 if mode == "min" else -1 for mode in sweep.metric.values()]
    points = {}
    for trial in trials:
        kept = trial.state == "finished" and not broken(sweep.constraints, trial.metrics)
        if kept and (found := values(sweep, trial)) is not None:
            points[trial.number] = (trial, [s * v for s, v in zip(signs, found, strict=True)])

    def beaten(mine: Sequence[float]) -> bool:
        return any(
            all(a <= b for a, b in zip(o, mine, strict=True)) and list(o) != list(mine) for _, o in points.values()
        )

    return [trial for trial, mine in points.values() if not beaten(mine)]


def tell(study: Study, sweep: Sweep, trial: Trial) -> None:
    """Add a trial that is done to a study of Optuna, as failed where it has no value of some metric."""
    found = values(sweep, trial) if trial.state != "failed" else None
    study.add_trial(
        create_trial(
            state=TrialState.FAIL if found is None else TrialState.COMPLETE,
            values=found,
            params=trial.params,
            distributions=distributions(sweep, trial),
            # Where Optuna's samplers look for it; the trials that they have suggested get it from `constraints_func`.
            system_attrs={"constraints": excesses(sweep.constraints, trial.metrics)} if sweep.constraints else None,
        )
    )


def distributions(sweep: Sweep, trial: Trial) -> dict[str, BaseDistribution]:
    """The domains of the trial's values, as Optuna knows them."""
    return {key: sweep.space[key].distribution() for key in trial.params}


def definition(sweep: Sweep) -> dict[str, Any]:
    """The part of a sweep that decides its trials, as JSON values: sweeps that agree in it may continue each other."""
    tree = json.loads(sweep.model_dump_json(exclude={"trials", "concurrent", "max_failures", "report_every_s"}))
    newer = ("warm_start", "repeat", "repeat_until", "constraints")
    for key in newer:  # as in the records of versions that did not know them
        if getattr(sweep, key) == Sweep.model_fields[key].default:
            del tree[key]
    for part in ("cluster", "tracking"):
        tree["base"].pop(part, None)
    tree["set"] = {k: v for k, v in tree["set"].items() if k.split(".")[0] not in ("cluster", "tracking")}
    return dict(tree)
