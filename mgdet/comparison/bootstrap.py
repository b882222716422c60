"""Intervals of a difference between two groups of detectors: a paired bootstrap over images, and the runs' variance."""

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


def difference(base: Floats, other: Floats, images: int, level: float = 0.95) -> Difference:
    """The difference of a statistic between two groups of runs, with its interval.

    The interval is the difference plus and minus its standard error times a quantile of Student's t (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, section 12.2). Its variance is the sum of

    - what the images add: the variance of the difference over samples of the images, which are the same for all runs
      (that pairs them), less what the runs of a group do not share, because the next part has it as well (as the
      pigeonhole bootstrap counts it twice: Owen, Annals of Applied Statistics 1, 2007);
    - for each group of several runs, what the runs add: the variance between them over their number.

    The degrees of freedom are those of Welch and Satterthwaite, of one less than the images and one less than the runs.
    A group of one run says nothing of its seeds: then the interval is that of the images alone.

    Percentiles of the samples are not used: of a number that cannot be negative and is nearly always small, such as the
    cost of a rare error, they hold the truth too seldom.

    Args:
        base: `[R1, 1 + S]`, the runs of the first group on all images and on `S` samples of them.
        other: `[R2, 1 + S]`, the second group on the same samples.
        images: how many there are.
        level: share of intervals that hold the true difference.
    """
    from scipy.stats import t

    sides = [side[~np.isnan(side[:, 0])] for side in (base, other)]
    first, second = (float(side[:, 0].mean()) if len(side) else np.nan for side in sides)
    value = second - first
    if np.isnan(value):
        return Difference(first, second, value, np.nan, np.nan)
    together = _variance(sides[1][:, 1:].mean(axis=0) - sides[0][:, 1:].mean(axis=0))
    several = [side for side in sides if len(side) > 1]
    of_images = max(0.0, together - sum(_not_shared(side[:, 1:]) for side in several))
    parts = [(of_images, images - 1), *((float(side[:, 0].var(ddof=1)) / len(side), len(side) - 1) for side in several)]
    variance = sum(part for part, _ in parts)
    if np.isnan(together) or variance == 0:
        reach = np.nan if np.isnan(together) else 0.0
    else:
        freedom = variance**2 / sum(part**2 / free for part, free in parts if part > 0)
        reach = float(t.ppf((1 + level) / 2, freedom)) * variance**0.5
    return Difference(first, second, value, value - reach, value + reach)


def _variance(values: Floats) -> float:
    """Of what is defined; NaN of fewer than two values."""
    known = values[~np.isnan(values)]
    return float(known.var(ddof=1)) if len(known) > 1 else np.nan


def _not_shared(samples: Floats) -> float:
    """The variance that images give to the mean of `R` runs `[R, S]`, as far as each run goes its own way."""
    runs = len(samples)
    own = sum(_variance(run) for run in samples - samples.mean(axis=0))
    return float(np.nan_to_num(own)) / (runs * (runs - 1))
