"""The statistics of a study: paired differences, their intervals and tests, and rank correlations."""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from scipy import stats

CONFIDENCE, POWER = 0.95, 0.8
MOST_EXACT = 16
"""Pairs up to which every choice of signs is counted."""
DRAWS = 100_000
MOST_SEEDS = 10_000


class Paired(NamedTuple):
    """Differences of an arm and the baseline, one for each seed that both have."""

    seeds: int
    mean: float
    deviation: float  # of one difference; NaN for a single one
    low: float
    high: float
    p: float  # two-sided, that signs are as they are by chance

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def paired(arm: Mapping[int, float], baseline: Mapping[int, float]) -> Paired:
    """Compare two arms by seed; a seed that one of them lacks, or whose value is not a number, is left out."""
    both = sorted(s for s in arm.keys() & baseline.keys() if math.isfinite(arm[s]) and math.isfinite(baseline[s]))
    values = [arm[s] - baseline[s] for s in both]
    n = len(values)
    if not n:
        return Paired(0, *[math.nan] * 5)
    mean = math.fsum(values) / n
    if n == 1:
        return Paired(1, mean, math.nan, math.nan, math.nan, math.nan)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * deviation / math.sqrt(n)
    return Paired(n, mean, deviation, mean - half, mean + half, sign_flip(values))


def sign_flip(values: Sequence[float]) -> float:
    """Share of the choices of signs whose sum is at least as far from 0: exact up to 16 values, else by 100,000 draws.

    The test assumes that a difference is as likely as its negative when the arms are alike, and nothing else.
    """
    found = abs(math.fsum(values)) * (1 - 1e-12)
    if len(values) <= MOST_EXACT:
        sums = [abs(math.fsum(s * v for s, v in zip(signs, values, strict=True))) for signs in _signs(len(values))]
        return sum(s >= found for s in sums) / len(sums)
    lots = random.Random(0)
    hits = sum(abs(math.fsum(lots.choice((-1, 1)) * v for v in values)) >= found for _ in range(DRAWS))
    return (hits + 1) / (DRAWS + 1)


def _signs(n: int) -> Iterator[tuple[int, ...]]:
    return itertools.product((-1, 1), repeat=n)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values (1979) of one family of tests; NaN takes no part."""
    known = sorted((value, name) for name, value in p.items() if math.isfinite(value))
    adjusted, largest = dict.fromkeys(p, math.nan), 0.0
    for rank, (value, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        adjusted[name] = largest
    return adjusted


def seeds_needed(difference: float, deviation: float) -> int | None:
    """Paired seeds with which a difference is found with 80 % power at 5 %, two-sided t-test; None above 10,000."""
    if not (math.isfinite(difference) and math.isfinite(deviation)) or difference == 0:
        return None
    if deviation == 0:
        return 2
    low, high = 2, 3
    while _power(difference, deviation, high) < POWER:
        low, high = high, high * 2
        if high > MOST_SEEDS:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(difference, deviation, middle) >= POWER else (middle + 1, high)
    return low


def _power(difference: float, deviation: float, n: int) -> float:
    shift = abs(difference) / deviation * math.sqrt(n)
    edge = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))
    return float(stats.nct.sf(edge, n - 1, shift) + stats.nct.cdf(-edge, n - 1, shift))


class Correlation(NamedTuple):
    """Spearman's rho and its p-value; NaN where it is undefined."""

    rho: float
    p: float
    n: int


def spearman(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Of the pairs that are numbers."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return Correlation(math.nan, math.nan, len(pairs))
    found = stats.spearmanr(*zip(*pairs, strict=True))
    return Correlation(float(found.statistic), float(found.pvalue), len(pairs))


def across_arms(arms: Sequence[Sequence[tuple[float, float]]]) -> Correlation:
    """Of the means of each arm's pairs."""
    means = [[_mean(side) for side in zip(*arm, strict=True)] for arm in arms if arm]
    return spearman([m[0] for m in means], [m[1] for m in means])


def within_arms(arms: Sequence[Sequence[tuple[float, float]]]) -> Correlation:
    """Of all pairs less the means of their arm: what is left when arms differ in nothing. No time is in it either."""
    x, y = [], []
    for arm in arms:
        if len(arm) > 1:
            means = [_mean(side) for side in zip(*arm, strict=True)]
            x += [pair[0] - means[0] for pair in arm]
            y += [pair[1] - means[1] for pair in arm]
    return spearman(x, y)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
