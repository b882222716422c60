"""The search space of a sweep: for each searched key its values, and under which choice of another key it exists."""

import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self, TypeAlias

from optuna import Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Discriminator, Field, Tag, model_validator

from mgdet.config_base import Config

Scalar: TypeAlias = bool | int | float | str | None
MOST_DOMAINS, MOST_OPTIONS, MOST_POINTS = 100, 4096, 20_000
"""Bounds of a space: searched keys, values of all choices and grids together, combinations of all grids."""
Real: TypeAlias = Annotated[float, Field(ge=-1e300, le=1e300)]
"""A number whose distance from another one is finite."""
Whole: TypeAlias = Annotated[int, Field(ge=-(2**53), le=2**53)]
"""An integer that a searcher's floating-point numbers can be."""
Params: TypeAlias = dict[str, Scalar]
"""A trial as the searcher knows it: a plain value for each key that exists in the trial."""


class Domain(Config, ABC):
    """The values of a key; `when: {other.key: value or [values]}` limits it to trials where `other.key` has these."""

    when: dict[str, Scalar | list[Scalar]] = Field(default={})

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether the key exists beside these values of the keys before it."""
        return all(
            key in values and values[key] in (allowed if isinstance(allowed, list) else [allowed])
            for key, allowed in self.when.items()
        )

    @abstractmethod
    def options(self) -> list[Any]:
        """Every value of a finite domain; the two ends of an interval."""

    @abstractmethod
    def distribution(self) -> BaseDistribution:
        """The distribution from which a searcher of Optuna draws the plain (encoded) values."""

    def encode(self, value: Any) -> Scalar:
        """The plain value that stands for `value` in a searcher, which knows neither lists nor mappings."""
        return value if isinstance(value, bool | int | float | str | None) else json.dumps(value, sort_keys=True)

    def decode(self, value: Scalar) -> Any:
        """The value that `encode` has turned into the plain one."""
        return value


class _Interval(Domain):
    def options(self) -> list[Any]:
        return list(self._ends())

    @abstractmethod
    def _ends(self) -> tuple[float, float]: ...

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self._ends()
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"[{low}, {high}]: expected two finite numbers, the lower one first")
        return self


class Uniform(_Interval):
    """Any number of the interval, all equally likely."""

    uniform: tuple[Real, Real]

    def _ends(self) -> tuple[float, float]:
        return self.uniform

    def distribution(self) -> BaseDistribution:
        """The uniform distribution over the interval."""
        return FloatDistribution(*self.uniform)


class LogUniform(_Interval):
    """Any number of the interval, its logarithm being uniformly distributed."""

    loguniform: tuple[Annotated[float, Field(gt=0)], Real]

    def _ends(self) -> tuple[float, float]:
        return self.loguniform

    def distribution(self) -> BaseDistribution:
        """The distribution whose logarithm is uniform over the interval."""
        return FloatDistribution(*self.loguniform, log=True)


class Integers(_Interval):
    """An integer, both ends included; with `log: true` (from 1 on) its logarithm is uniformly distributed."""

    integers: tuple[Whole, Whole]
    log: bool = False

    def _ends(self) -> tuple[float, float]:
        return self.integers

    @model_validator(mode="after")
    def _log_of_positive(self) -> Self:
        if self.log and self.integers[0] < 1:
            raise ValueError(f"log: true needs a lower end of at least 1, not {self.integers[0]}")
        return self

    def distribution(self) -> BaseDistribution:
        """The uniform distribution over the integers, or over their logarithm."""
        return IntDistribution(*self.integers, log=self.log)


class _Finite(Domain):
    def distribution(self) -> BaseDistribution:
        return CategoricalDistribution([self.encode(v) for v in self.options()])

    def decode(self, value: Scalar) -> Any:
        return next(v for v in self.options() if self.encode(v) == value)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        encoded = [json.dumps(v, sort_keys=True) for v in self.options()]
        if len(set(encoded)) < len(encoded):
            raise ValueError(f"{self.options()}: a value stands twice")
        return self


class Choice(_Finite):
    """One of these values, chosen by the searcher."""

    choice: Annotated[list[Any], Field(min_length=1)]

    def options(self) -> list[Any]:
        """The values, as they are written."""
        return self.choice


class Grid(_Finite):
    """Each of these values, together with each value of every other grid."""

    grid: Annotated[list[Any], Field(min_length=1)]

    def options(self) -> list[Any]:
        """The values, as they are written."""
        return self.grid


_KINDS = {"uniform": Uniform, "loguniform": LogUniform, "integers": Integers, "choice": Choice, "grid": Grid}


def _kind(value: Any) -> str | None:
    if isinstance(value, Domain):
        return next(k for k, v in _KINDS.items() if isinstance(value, v))
    found = [k for k in _KINDS if isinstance(value, dict) and k in value]
    return found[0] if len(found) == 1 else None


AnyDomain = Annotated[
    Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("loguniform")]
    | Annotated[Integers, Tag("integers")]
    | Annotated[Choice, Tag("choice")]
    | Annotated[Grid, Tag("grid")],
    Discriminator(
        _kind,
        custom_error_type="domain",
        custom_error_message="expected exactly one of uniform: [low, high], loguniform: [low, high], "
        "integers: [low, high], choice: [values], grid: [values], and optionally when: {key: value}",
    ),
]


class Space:
    """The searched keys, those that others depend on first. Raises ValueError where `when` cannot be followed."""

    def __init__(self, domains: Mapping[str, Domain]) -> None:
        self.domains: dict[str, Domain] = {}
        waiting = dict(domains)
        values = sum(len(d.options()) for d in domains.values())
        if len(domains) > MOST_DOMAINS or values > MOST_OPTIONS:
            raise ValueError(
                f"{len(domains)} keys with {values} values: expected at most {MOST_DOMAINS} keys and "
                f"{MOST_OPTIONS} values"
            )
        while waiting:
            ready = [k for k, d in waiting.items() if all(parent in self.domains for parent in d.when)]
            if not ready:
                raise ValueError(_why_not_ordered(waiting, domains))
            for key in ready:
                self.domains[key] = waiting.pop(key)
        for key, domain in self.domains.items():
            self._check_parents(key, domain)
        parents = {p for d in self.domains.values() for p in d.when}
        if math.prod(len(self.domains[p].options()) for p in parents) > MOST_OPTIONS:
            raise ValueError(
                f"{', '.join(sorted(parents))}: other keys depend on more than {MOST_OPTIONS} combinations"
            )

    def suggest(self, trial: Trial) -> Params:
        """Plain values that Optuna chooses for each key that exists, given the values of the keys before it."""
        params: Params = {}
        values: dict[str, Any] = {}
        for key, domain in self.domains.items():
            if domain.active(values):
                params[key] = _suggest(trial, key, domain.distribution())
                values[key] = domain.decode(params[key])
        return params

    def settings(self, params: Mapping[str, Scalar]) -> dict[str, Any]:
        """The values of the configuration's keys that stand behind the searcher's plain ones."""
        return {key: self.domains[key].decode(value) for key, value in params.items()}

    def require(self, params: Params) -> Params:
        """The same plain values, if they could have been suggested. Raises `ValueError` where they could not."""
        values: dict[str, Any] = {}
        for key, domain in self.domains.items():
            if domain.active(values) != (key in params):
                raise ValueError(f"{key}: expected {'a' if domain.active(values) else 'no'} value beside {values}")
            if key in params:
                if not _contains(domain.distribution(), params[key]):
                    raise ValueError(f"{key} = {params[key]!r:.80}: not a value of {domain.model_dump()}")
                values[key] = domain.decode(params[key])
        if unknown := params.keys() - self.domains.keys():
            raise ValueError(f"{min(unknown)!r:.80} is not searched")
        return params

    def grid(self) -> list[Params]:
        """Every combination of all grids' values, as plain ones; a single empty one without a grid."""
        grids = {k: d for k, d in self.domains.items() if isinstance(d, Grid)}
        points = list(itertools.islice(_product(grids), MOST_POINTS + 1))
        if len(points) > MOST_POINTS:
            raise ValueError(
                f"the grids have more than {MOST_POINTS:,} points; leave values out, or take choice for some"
            )
        return [{k: grids[k].encode(v) for k, v in point.items()} for point in points]

    def corners(self, limit: int = 2048) -> Iterator[dict[str, Any]]:
        """Settings that together hold every option and both ends of every interval.

        If there are at most `limit` combinations, all of them. Otherwise all combinations of the keys on which others
        depend, and in each of them every option of every other key in turn, with the first option of the rest.
        """
        some = list(itertools.islice(_product(self.domains), limit + 1))
        if len(some) <= limit:
            yield from some
            return
        parents = {p for d in self.domains.values() for p in d.when}
        for chosen in _product({k: d for k, d in self.domains.items() if k in parents}):
            rest = {k: d for k, d in self.domains.items() if k not in parents and d.active(chosen)}
            first = chosen | {k: d.options()[0] for k, d in rest.items()}
            yield first
            yield from (first | {k: v} for k, d in rest.items() for v in d.options()[1:])

    def _check_parents(self, key: str, domain: Domain) -> None:
        for parent, allowed in domain.when.items():
            options = self.domains[parent]
            if not isinstance(options, _Finite):
                raise ValueError(f"{key}: when names {parent}, which is an interval; only choice and grid can decide")
            for value in allowed if isinstance(allowed, list) else [allowed]:
                if value not in options.options():
                    raise ValueError(f"{key}: when {parent} = {value!r} never holds; it is one of {options.options()}")
            if isinstance(domain, Grid) and not isinstance(options, Grid):
                raise ValueError(f"{key} is a grid, but {parent}, on which it depends, is chosen by the searcher")


def _product(domains: Mapping[str, Domain], values: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """All combinations of the options of these keys, in order, each key only where it exists beside `values`."""
    values = values or {}
    if not domains:
        yield dict(values)
        return
    (key, domain), *rest = domains.items()
    for more in [{key: option} for option in domain.options()] if domain.active(values) else [{}]:
        yield from _product(dict(rest), {**values, **more})


def _suggest(trial: Trial, key: str, distribution: BaseDistribution) -> Scalar:
    match distribution:
        case FloatDistribution():
            return trial.suggest_float(key, distribution.low, distribution.high, log=distribution.log)
        case IntDistribution():
            return trial.suggest_int(key, distribution.low, distribution.high, log=distribution.log)
        case CategoricalDistribution():
            return trial.suggest_categorical(key, distribution.choices)
    raise TypeError(f"{key}: {distribution}")


def _contains(distribution: BaseDistribution, value: Scalar) -> bool:
    match distribution:
        case FloatDistribution() | IntDistribution():
            kinds = int if isinstance(distribution, IntDistribution) else int | float
            return (
                isinstance(value, kinds)
                and not isinstance(value, bool)
                and distribution.low <= value <= distribution.high
            )
        case CategoricalDistribution():
            return any(type(value) is type(choice) and value == choice for choice in distribution.choices)
    raise TypeError(f"{distribution}")


def _why_not_ordered(waiting: Mapping[str, Domain], domains: Mapping[str, Domain]) -> str:
    for key, domain in waiting.items():
        for parent in domain.when:
            if parent not in domains:
                return f"{key}: when names {parent}, which is not in the space (there: {', '.join(domains)})"
    return f"{', '.join(waiting)}: each depends on another one of them"
