"""The progress of a sweep as a table of text, for a terminal or a job's log."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mgdet.evaluation.evaluator import AP, DIVERGENCE
from mgdet.sweep.config import Sweep
from mgdet.sweep.constraints import broken, constraint
from mgdet.sweep.trials import DONE, Trial, judged, ranked, winner_of
from mgdet.text import aligned, duration

_SHOWN_DONE = 5


def table(sweep: Sweep, trials: Sequence[Trial], concurrent: int, everything: bool = False) -> str:
    """Trials by state, the best so far, and a row for each running trial and the last few that are done.

    `everything` shows all of them, the best first, then those without a value.
    """
    best = ranked(sweep, trials)
    if everything:
        shown = [*best, *(t for t in trials if t not in best)]
    else:
        shown = [t for t in trials if t.done][-_SHOWN_DONE:] + [t for t in trials if not t.done]
    lines = [_summary(sweep, trials, concurrent)]
    choices = judged(trials, sweep.repeat)
    if winner := winner_of(sweep, choices):
        lines.append(f"best {headline(sweep, winner)}")
    elif choices and sweep.constraints:
        lines.append(f"no trial keeps {' and '.join(sweep.constraints)} so far")
    pace = seconds_per_epoch(trials)
    rows = [_row(sweep, t, pace) for t in shown]
    return "\n".join(
        [*lines, *aligned([["trial", "state", "epoch", *sweep_metrics(sweep), "left", "searched"], *rows])]
    )


def headline(sweep: Sweep, trial: Trial) -> str:
    """A line on one trial: its state, its last metrics, its searched values and why it ended."""
    found = ", ".join(f"{m} {trial.metrics[m]:.4f}" for m in sweep_metrics(sweep) if m in trial.metrics)
    reached = f"at epoch {trial.epoch} of {trial.epochs}: {found}" if found else "without an evaluation"
    why = f" ({trial.reason})" if trial.reason else ""
    if found and (passed := broken(sweep.constraints, trial.metrics)):
        why += f" (breaks {' and '.join(passed)})"
    return f"{trial.name} {trial.state} {reached}; {settings_text(trial.settings)}{why}"


def sweep_metrics(sweep: Sweep) -> list[str]:
    """The metrics that a table shows: AP and divergence beside those of the sweep and of its constraints."""
    bounded = [constraint(text).metric for text in sweep.constraints]
    return list(dict.fromkeys([*sweep.metric, *bounded, AP.name, DIVERGENCE.name]))


def settings_text(settings: Mapping[str, Any]) -> str:
    """`sigma=2.31 lr=0.0004`: keys by their last part where that is enough to tell them apart."""
    short = short_names(list(settings))
    return " ".join(f"{short[k]}={value_text(v)}" for k, v in settings.items())


def value_text(value: object, digits: int = 4) -> str:
    """A searched value for people: a component without options by its name alone."""
    if isinstance(value, Mapping) and set(value) == {"name"}:
        return str(value["name"])
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's last part where that is enough to tell it from the others, else the whole key."""
    lasts = [k.rpartition(".")[2] for k in keys]
    return {k: last if lasts.count(last) == 1 and last != "name" else k for k, last in zip(keys, lasts, strict=True)}


def seconds_per_epoch(trials: Sequence[Trial]) -> float | None:
    """Median of the seconds per epoch between two evaluations of a trial; None while no trial has two."""
    gaps = [
        (later.time - earlier.time) / (later.epoch - earlier.epoch)
        for t in trials
        for earlier, later in itertools.pairwise(t.evaluations)
    ]
    return statistics.median(gaps) if gaps else None


def _summary(sweep: Sweep, trials: Sequence[Trial], concurrent: int) -> str:
    counts = {state: sum(t.state == state for t in trials) for state in DONE}
    done, running = sum(counts.values()), sum(t.state == "running" for t in trials)
    parts = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    text = f"{sweep.name}: {done} of {sweep.total} trials done{f' ({parts})' if parts else ''}, {running} running"
    pace = seconds_per_epoch(trials)
    if pace is None or done >= sweep.total:
        return text
    mine = [t.epochs - t.epoch for t in trials if not t.done]
    longest = max(t.epochs for t in trials)
    epochs = sum(mine) + longest * (sweep.total - len(trials))
    return f"{text}; at most {duration(epochs * pace / concurrent)} left"


def _row(sweep: Sweep, trial: Trial, pace: float | None) -> list[str]:
    left = duration((trial.epochs - trial.epoch) * pace) if trial.state == "running" and pace else ""
    found = [f"{trial.metrics[m]:.4f}" if m in trial.metrics else "" for m in sweep_metrics(sweep)]
    searched = settings_text(trial.settings) + (f"  {trial.reason}" if trial.state == "failed" else "")
    return [trial.name, trial.state, f"{trial.epoch}/{trial.epochs}", *found, left, searched]
