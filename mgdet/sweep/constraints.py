"""Bounds that a trial has to keep to win: `val/divergence <= 0.3`."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_WRITTEN = re.compile(r"\s*(\S+)\s*(<=|>=)\s*(\S+)\s*")


class Constraint(NamedTuple):
    """A bound on a metric of the last evaluation."""

    metric: str
    relation: str
    """`<=` or `>=`."""
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {self.relation} {self.bound:g}"

    def excess(self, metrics: Mapping[str, float]) -> float:
        """By how much the bound is passed, 0 or less where it is kept; infinite where the metric is undefined."""
        value = metrics.get(self.metric, math.nan)
        if math.isnan(value):
            return math.inf
        return value - self.bound if self.relation == "<=" else self.bound - value


def constraint(text: str) -> Constraint:
    """The bound that a text such as `val/divergence <= 0.3` stands for. Raises `ValueError`."""
    found = _WRITTEN.fullmatch(text)
    try:
        bound = float(found[3]) if found else math.nan
    except ValueError:
        bound = math.nan
    if not found or not math.isfinite(bound):
        raise ValueError(f"{text!r}: expected a metric, <= or >=, and a number, such as 'val/divergence <= 0.3'")
    return Constraint(found[1], found[2], bound)


def broken(constraints: Iterable[str], metrics: Mapping[str, float]) -> list[str]:
    """Those of the constraints that these metrics do not keep."""
    return [text for text in constraints if constraint(text).excess(metrics) > 0]


def excesses(constraints: Iterable[str], metrics: Mapping[str, float]) -> list[float]:
    """By how much each is passed, as Optuna's samplers know it; a large number where the metric is undefined."""
    return [min(constraint(text).excess(metrics), 1e9) for text in constraints]
