"""Which repetitions of a choice of values need not be trained, because the choice cannot win any more.

Of `r` repetitions `k` have ended, with the mean `m`. Values of one choice are taken to be normal with a deviation `s`
that is the same for all choices, and is pooled from the repetitions of all of them. Given the `k` values, the mean of
all `r` is then distributed like

    m + t * s * sqrt(1/k - 1/r)

with `t` of Student's distribution, whose degrees of freedom are those of `s` (the prediction interval of a mean, Hahn
and Meeker, Statistical Intervals, 1991, section 4.7). The remaining repetitions are left out where that mean stays
behind the leader's with the probability `sweep.repeat_until`.
"""

import math
import statistics
from collections.abc import Iterable, Sequence

from mgdet.sweep.config import Sweep
from mgdet.sweep.trials import Trial, judged, winner_of


def cannot_win(sweep: Sweep, trials: Sequence[Trial], choice: int) -> str:
    """Why no further repetition of the choice needs to be trained; empty where one may still matter.

    Args:
        sweep: with `repeat` of more than 1.
        trials: all of the sweep so far.
        choice: of the trials with the numbers from `choice` * `repeat` on.
    """
    if sweep.repeat_until is None:
        return ""
    metric, mode = sweep.lead
    leader = winner_of(sweep, judged(trials, sweep.repeat))
    if leader is None or leader.state != "finished" or leader.number // sweep.repeat == choice:
        return ""
    mine = [trial for trial in trials if trial.number // sweep.repeat == choice]
    if any(trial.state == "stopped" for trial in mine):
        return f"left out: another repetition was stopped, and {leader.name} came to its end"
    found = _values(mine, metric)
    bound = best_mean(found, sweep.repeat, sweep.repeat_until, _groups(sweep, trials), sign=1 if mode == "max" else -1)
    best = leader.metrics[metric]
    if bound is None or (bound >= best if mode == "max" else bound <= best):
        return ""
    return (
        f"left out: {metric} = {statistics.fmean(found):.4f} after {len(found)} of {sweep.repeat} repetitions would "
        f"reach {bound:.4f} at best, with a probability of {sweep.repeat_until:g}, and {leader.name} has {best:.4f}"
    )


def best_mean(
    found: Sequence[float], repeat: int, confidence: float, groups: Iterable[Sequence[float]], sign: int = 1
) -> float | None:
    """The bound that the mean of all `repeat` values does not pass with a probability of `confidence`.

    Args:
        found: the values so far.
        repeat: how many there will be.
        confidence: of a one-sided interval.
        groups: values of each choice, this one among them, from which the deviation is pooled.
        sign: 1 for an upper bound, -1 for a lower one.

    Returns:
        None where there is no value, or no two of the same choice.
    """
    from scipy import stats  # it takes half a second

    squares = freedom = 0.0
    for group in groups:
        if len(group) > 1:
            squares += statistics.variance(group) * (len(group) - 1)
            freedom += len(group) - 1
    if not found or not freedom:
        return None
    quantile = float(stats.t.ppf(confidence, freedom))
    spread = math.sqrt(squares / freedom) * math.sqrt(max(0.0, 1 / len(found) - 1 / repeat))
    return statistics.fmean(found) + sign * quantile * spread


def _groups(sweep: Sweep, trials: Sequence[Trial]) -> list[list[float]]:
    """The values of each choice's repetitions that ran to their end."""
    groups: dict[int, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.number // sweep.repeat, []).append(trial)
    return [_values(group, sweep.lead[0]) for group in groups.values()]


def _values(trials: Iterable[Trial], metric: str) -> list[float]:
    found = [trial.metrics.get(metric, math.nan) for trial in trials if trial.state == "finished"]
    return [value for value in found if math.isfinite(value)]
