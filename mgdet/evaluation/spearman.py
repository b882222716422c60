"""Spearman's rank correlation within many groups at once."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class GroupCorrelation(NamedTuple):
    """Spearman's rho of each group."""

    groups: NDArray[np.int64]  # [U] the distinct group numbers, ascending
    rho: NDArray[np.float64]  # [U], NaN where undefined
    size: NDArray[np.int64]  # [U] elements of the group


def spearman_by_group(
    group: NDArray[np.int64], x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]
) -> GroupCorrelation:
    """Spearman's rank correlation of `x` and `y` within each group; all `[n]`, average ranks for ties.

    NaN where a group has fewer than 3 elements, a constant side, or a NaN among its values. Doubled, centred ranks are
    integers, so the sums are exact (up to 2e5 elements a group) whatever the order of the elements.
    """
    groups, inverse, count = np.unique(group, return_inverse=True, return_counts=True)
    if not len(groups):
        return GroupCorrelation(groups, np.zeros(0), count)
    a, b = _centred_ranks(inverse, count, x), _centred_ranks(inverse, count, y)
    u = len(groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt(np.bincount(inverse, a * a, u) * np.bincount(inverse, b * b, u))
        rho = np.clip(np.bincount(inverse, a * b, u) / spread, -1.0, 1.0)
    rho[(count < 3) | (spread == 0)] = np.nan
    return GroupCorrelation(groups, rho, count)


def _centred_ranks(
    group: NDArray[np.int64], count: NDArray[np.int64], values: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Twice the average rank within the group minus its mean, in the order of the input; NaN for NaN values."""
    order = np.lexsort((values, group))
    g, v = group[order], values[order]
    new_run = np.r_[True, (g[1:] != g[:-1]) | (v[1:] != v[:-1])]
    run_start = np.flatnonzero(new_run)
    run_length = np.diff(np.r_[run_start, len(g)])
    group_start = np.cumsum(count) - count
    run_group = g[run_start]
    doubled = 2 * (run_start - group_start[run_group]) + run_length - count[run_group]
    out = np.empty(len(g))
    out[order] = np.repeat(doubled, run_length)
    out[np.isnan(values)] = np.nan
    return out
