"""Intervals of a difference between two groups of detectors, by a paired bootstrap over images and seeds."""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from mgdet.evaluation.matching import Floats


class Difference(NamedTuple):
    """A number of two groups, and how much the second one has more. What is undefined is NaN."""

    base: float  # mean over the runs of the first group
    other: float
    value: float  # other - base
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval does not hold 0."""
        return self.low > 0 or self.high < 0


def image_weights(images: int, samples: int, generator: Generator) -> Floats:
    """How often each of `N` images is in each sample, `[1 + samples, N]`: once in the first row, then at random."""
    drawn = generator.multinomial(images, np.full(images, 1 / images), size=samples)
    return np.concatenate([np.ones((1, images)), drawn.astype(np.float64)])


def difference(base: Floats, other: Floats, generator: Generator, level: float = 0.95) -> Difference:
    """The difference of a statistic between two groups of runs, with its interval.

    Each sample draws images, the same for all runs (which is what pairs them), and from each group as many of its runs
    as it has. Drawing from `R` runs has only `(R - 1) / R` of the variance between them, so their deviations are
    stretched by the square root of `R / (R - 1)`; and as that variance is itself known from few runs only, the
    percentiles are moved away from the difference by the ratio of Student's t, with the degrees of freedom of Welch
    and Satterthwaite, to the normal distribution. A group of one run says nothing of its seeds: then the interval is
    that of the images alone.

    Args:
        base: `[R1, 1 + S]`, the runs of the first group on all images and on `S` samples of them.
        other: `[R2, 1 + S]`, the second group on the same samples.
        generator: draws the runs.
        level: share of intervals that hold the true difference.
    """
    from scipy.stats import norm, t

    sides = [side[~np.isnan(side[:, 0])] for side in (base, other)]
    if any(not len(side) for side in sides):
        one, two = (float(side[:, 0].mean()) if len(side) else np.nan for side in sides)
        return Difference(one, two, np.nan, np.nan, np.nan)
    first, second = (float(side[:, 0].mean()) for side in sides)
    value = second - first
    drawn = [_drawn(side[:, 1:], generator) for side in sides]
    deviations = drawn[1] - drawn[0] - value
    deviations = deviations[~np.isnan(deviations)]
    if not len(deviations):
        return Difference(first, second, value, np.nan, np.nan)
    tail = (1 - level) / 2
    low, high = np.quantile(deviations, [tail, 1 - tail], method="weibull")  # unbiased also for few samples
    freedom = _freedom(sides)
    stretch = 1.0 if np.isinf(freedom) else float(t.ppf(1 - tail, freedom) / norm.ppf(1 - tail))
    return Difference(first, second, value, value + stretch * float(low), value + stretch * float(high))


def _drawn(side: Floats, generator: Generator) -> Floats:
    """The mean of a group in each sample `[S]`, over runs that are drawn anew for it."""
    runs, samples = side.shape
    if runs == 1:
        return np.asarray(side[0])
    chosen = generator.integers(runs, size=(runs, samples))
    mean = side.mean(axis=0)
    picked = np.take_along_axis(side, chosen, axis=0).mean(axis=0)
    return np.asarray(mean + np.sqrt(runs / (runs - 1)) * (picked - mean))


def _freedom(sides: list[Floats]) -> float:
    """Degrees of freedom of the variance of the difference; infinite where no group has several runs."""
    images = float(np.nanvar(sides[1][:, 1:].mean(axis=0) - sides[0][:, 1:].mean(axis=0)))
    total, known = images, 0.0
    for side in sides:
        if len(side) > 1:
            variance = float(side[:, 0].var(ddof=1)) / len(side)
            total += variance
            known += variance**2 / (len(side) - 1)
    return total**2 / known if known else np.inf
