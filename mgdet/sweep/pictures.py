"""The pictures of a sweep as PNG files: parallel coordinates, divergence against AP, importance of the keys."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mgdet.evaluation.evaluator import AP, DIVERGENCE
from mgdet.sweep.config import Sweep
from mgdet.sweep.space import Integers, LogUniform, Uniform
from mgdet.sweep.table import value_text
from mgdet.sweep.trials import Trial, front, ranked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STATES = {"finished": "o", "stopped": "x", "running": "."}
_COLORS = "viridis"


def parallel_coordinates(sweep: Sweep, trials: Sequence[Trial]) -> bytes | None:
    """One vertical axis for each searched key and one for the first metric, one line for each trial.

    A line is broken where a key does not exist in the trial, and dashed if the trial was stopped before its end. None
    if no trial has a value of the metric.
    """
    metric, mode = sweep.lead
    shown = ranked(sweep, trials)
    if not shown:
        return None
    keys = list(sweep.space)
    low, high = min(t.metrics[metric] for t in shown), max(t.metrics[metric] for t in shown)
    figure = _figure(2.2 + 1.9 * (len(keys) + 1), 5.2)
    axes = figure.subplots()
    from matplotlib import colormaps

    for rank, trial in reversed(list(enumerate(shown))):
        heights = [height(sweep, key, trial.settings) for key in keys]
        heights.append((trial.metrics[metric] - low) / (high - low) if high > low else 0.5)
        good = heights[-1] if mode == "max" else 1 - heights[-1]
        axes.plot(
            range(len(heights)),
            heights,
            color=colormaps[_COLORS](good * 0.9),
            linestyle="-" if trial.state == "finished" else "--",
            linewidth=2.6 if rank == 0 else 1.1,
            alpha=0.95 if rank == 0 else 0.7,
            marker="o",
            markersize=4,
        )
    for x, key in enumerate(keys):
        _axis(axes, x, ticks(sweep, key))
    _axis(axes, len(keys), [(h, f"{low + h * (high - low):.3f}") for h in (0, 0.25, 0.5, 0.75, 1)])
    axes.set_xticks(range(len(keys) + 1), [*keys, metric], fontsize=9)
    axes.set(xlim=(-0.35, len(keys) + 0.45), ylim=(-0.06, 1.06), yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(
        f"{sweep.name}: {len(shown)} trials, thick the best ({shown[0].name}), dashed stopped early", fontsize=10
    )
    return _png(figure)


def divergence_against_ap(sweep: Sweep, trials: Sequence[Trial]) -> bytes | None:
    """A point for each trial's last evaluation, coloured by the first searched key; None if none has both."""
    shown = [t for t in trials if {AP.name, DIVERGENCE.name} <= t.metrics.keys()]
    if not shown:
        return None
    key = next(iter(sweep.space))
    figure = _figure(6.4, 4.8)
    axes = figure.subplots()
    heights = [height(sweep, key, t.settings) for t in shown]
    for state, marker in _STATES.items():
        group = [(t, h) for t, h in zip(shown, heights, strict=True) if t.state == state]
        if group:
            points = axes.scatter(
                [t.metrics[DIVERGENCE.name] for t, _ in group],
                [t.metrics[AP.name] for t, _ in group],
                c=[h for _, h in group],
                vmin=0,
                vmax=1,
                cmap=_COLORS,
                marker=marker,
                label=state,
            )
    best = ranked(sweep, shown)[:1]
    for trial in {t.number: t for t in [*best, *(front(sweep, trials) if len(sweep.metric) > 1 else [])]}.values():
        if trial in shown:
            axes.annotate(
                trial.name,
                (trial.metrics[DIVERGENCE.name], trial.metrics[AP.name]),
                xytext=(5, 5),
                textcoords="offset points",
                fontsize=8,
            )
    bar = figure.colorbar(points, ax=axes, label=key)
    marks = ticks(sweep, key)
    bar.set_ticks([h for h, _ in marks], labels=[text for _, text in marks])
    axes.set(xlabel=f"{DIVERGENCE.name} (lower: the tasks agree more)", ylabel=AP.name)
    axes.set_title(f"{sweep.name}: last evaluation of {len(shown)} trials", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _png(figure)


def importance_bars(sweep: Sweep, importance: Mapping[str, float]) -> bytes:
    """One bar for each key, the most important on top."""
    figure = _figure(6.4, 1.2 + 0.45 * len(importance))
    axes = figure.subplots()
    items = list(importance.items())[::-1]
    bars = axes.barh([k for k, _ in items], [v for _, v in items], color="#3b6ea5")
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set(xlim=(0, 1.1), xlabel=f"share in what sets the best trials by {sweep.lead[0]} apart (PED-ANOVA)")
    axes.set_title(f"{sweep.name}: importance of the searched keys", fontsize=10)
    return _png(figure)


def height(sweep: Sweep, key: str, settings: Mapping[str, Any]) -> float:
    """The height, 0 to 1, of a trial's value on the axis of `key`; NaN where the trial has no such key."""
    if key not in settings:
        return math.nan
    domain, value = sweep.space[key], settings[key]
    match domain:
        case Uniform() | LogUniform() | Integers():
            low, high = domain.options()
            if isinstance(domain, LogUniform) or (isinstance(domain, Integers) and domain.log):
                return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
            return float((value - low) / (high - low))
    options = domain.options()
    return options.index(value) / (len(options) - 1) if len(options) > 1 else 0.5


def ticks(sweep: Sweep, key: str) -> list[tuple[float, str]]:
    """Heights on the axis of `key`, with the texts of their values."""
    domain = sweep.space[key]
    options = domain.options()
    if isinstance(domain, Uniform | LogUniform | Integers):
        low, high = options
        middle = math.sqrt(low * high) if isinstance(domain, LogUniform) else (low + high) / 2
        if isinstance(domain, Integers):
            middle = int(middle)
        options = [low, middle, high]
    texts = [value_text(o, 3) for o in options]
    return [(height(sweep, key, {key: o}), text) for o, text in zip(options, texts, strict=True)]


def _axis(axes: Any, x: float, marks: Sequence[tuple[float, str]]) -> None:
    axes.axvline(x, color="0.75", linewidth=1, zorder=0)
    for at, text in marks:
        axes.annotate(text, (x, at), xytext=(6, 0), textcoords="offset points", fontsize=8, va="center", color="0.25")


def _figure(width: float, height: float) -> "Figure":
    """An empty one, in inches. Matplotlib is imported late: every trial imports this module, and none draws."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: "Figure") -> bytes:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # values may hold a $
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
