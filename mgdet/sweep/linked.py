"""The trials of a sweep as charts that are linked: parallel coordinates, divergence against AP, and the table.

The charts are SVG that can be read without a script. The script (linked.js) only selects: whoever narrows an axis, with
the pointer or with the two sliders below it, sees the trials within it in all three.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mgdet.evaluation.evaluator import AP, DIVERGENCE
from mgdet.pages.chart import Dot, scatter
from mgdet.pages.document import section, text
from mgdet.sweep.config import Sweep
from mgdet.sweep.pictures import height, ticks
from mgdet.sweep.table import short_names, sweep_metrics, value_text
from mgdet.sweep.trials import Trial, ranked

STYLE, SCRIPT = (Path(__file__).with_name(f"linked.{kind}") for kind in ("css", "js"))
_STEP, _LEFT, _RIGHT, _TOP, _HIGH = 130, 65, 90, 34, 240
_LOW_COLOR, _MIDDLE, _HIGH_COLOR = (0, 114, 178), (127, 127, 127), (213, 94, 0)
"""Blue and vermilion of Okabe and Ito (2008), told apart with every kind of colour vision, on white and on black."""
_MARKS = {"finished": "circle", "stopped": "cross"}


class Axis(NamedTuple):
    """An axis of the parallel coordinates."""

    name: str
    heights: tuple[float | None, ...]
    """Of each trial, 0 to 1; None where it has no value."""
    texts: tuple[str, ...]
    """The value of each trial."""
    ticks: tuple[tuple[float, str], ...]


def axes(sweep: Sweep, trials: Sequence[Trial]) -> list[Axis]:
    """An axis for each searched key, and for each metric that has a value."""
    found = []
    for key in sweep.space:
        heights = [height(sweep, key, trial.settings) for trial in trials]
        texts = tuple(value_text(trial.settings.get(key, "")) for trial in trials)
        found.append(Axis(key, tuple(None if math.isnan(h) else h for h in heights), texts, tuple(ticks(sweep, key))))
    for metric in sweep_metrics(sweep):
        values = [trial.metrics.get(metric, math.nan) for trial in trials]
        known = [v for v in values if math.isfinite(v)]
        if known:
            low, high = min(known), max(known)

            def place(v: float, low: float = low, high: float = high) -> float:
                return (v - low) / (high - low) if high > low else 0.5

            marks = ((0.0, low), (0.5, (low + high) / 2), (1.0, high)) if high > low else ((0.5, low),)
            found.append(
                Axis(
                    metric,
                    tuple(place(v) if math.isfinite(v) else None for v in values),
                    tuple(f"{v:.4f}" if math.isfinite(v) else "" for v in values),
                    tuple((at, f"{v:.3f}") for at, v in marks),
                )
            )
    return found


def linked_charts(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """Both charts with what selects; empty where no trial has a value of the first metric.

    Lines, points and the rows of a table belong to the trial whose name is in their `data-trial`.
    """
    shown = ranked(sweep, trials)
    if not shown:
        return ""
    lead, mode = sweep.lead
    drawn = axes(sweep, shown)
    of_lead = next(axis for axis in drawn if axis.name == lead)
    colors = [_color(at) for at in of_lead.heights]
    names = short_names([axis.name for axis in drawn])
    data = [{"name": axis.name, **_places(axis, shown)} for axis in drawn]
    packed = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    better = "high" if mode == "max" else "low"
    return "".join(
        [
            section(
                "Searched values and results",
                '<p class="picked"><output aria-live="polite">'
                f'{len(shown)} of {len(shown)} trials</output> <button type="button" hidden>show all</button></p>',
                _parallel(drawn, shown, colors, names),
                hint=f"Each line is a trial, from blue (low {lead}) to orange (high, {better} is better); dashed: "
                "stopped early; thick: the best. Narrow an axis by dragging along it or by its sliders: the chart and "
                "the table below show the same trials.",
            ),
            _against(shown, colors),
            f'<script type="application/json" id="axes">{packed}</script>',
        ]
    )


def _parallel(drawn: Sequence[Axis], shown: Sequence[Trial], colors: Sequence[str], names: dict[str, str]) -> str:
    width, bottom = _LEFT + _STEP * (len(drawn) - 1) + _RIGHT, _TOP + _HIGH
    parts = []
    for row, (trial, color) in reversed(list(enumerate(zip(shown, colors, strict=True)))):
        dash = "" if trial.state == "finished" else ' stroke-dasharray="6 3"'
        thick = ' class="best"' if row == 0 else ""
        parts.append(
            f'<g data-trial="{text(trial.name)}"{thick} stroke="{color}"{dash}><title>{text(trial.name)}</title>'
            f'<path d="{_path([axis.heights[row] for axis in drawn])}"/></g>'
        )
    for i, axis in enumerate(drawn):
        x = _LEFT + i * _STEP
        parts.append(f'<g class="axis" data-axis="{i}"><line x1="{x}" y1="{_TOP}" x2="{x}" y2="{bottom}"/>')
        parts.append(f'<rect class="brush" x="{x - 7}" y="{_TOP}" width="14" height="0"/>')
        parts += [
            f'<text x="{x + 9}" y="{bottom - at * _HIGH + 4:.1f}">{text(_cut(said, 14))}</text>'
            for at, said in axis.ticks
        ]
        anchor = "start" if i == 0 else "middle"
        parts.append(
            f'<text class="key" x="{x - (60 if i == 0 else 0)}" y="14" text-anchor="{anchor}">'
            f"{text(_cut(names[axis.name], 20))}<title>{text(axis.name)}</title></text>"
        )
        parts.append(f'<rect class="hold" x="{x - 20}" y="{_TOP - 10}" width="40" height="{_HIGH + 20}"/></g>')
    sliders = "".join(_sliders(i, axis, names[axis.name]) for i, axis in enumerate(drawn))
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="parallel coordinates">'
        f'<div class="parallel" style="width:{width}px"><svg viewBox="0 0 {width} {bottom + 14}" data-top="{_TOP}" '
        f'data-high="{_HIGH}" role="img" aria-label="parallel coordinates of the trials">{"".join(parts)}</svg>'
        f'<div class="sliders" style="padding-left:{_LEFT - _STEP // 2}px">{sliders}</div></div></div>'
    )


def _sliders(i: int, axis: Axis, name: str) -> str:
    last = len(_steps(axis)) - 1
    ends = "".join(
        f'<input type="range" min="0" max="{last}" value="{value}" data-axis="{i}" data-end="{end}" '
        f'aria-label="{text(axis.name)}, {said}"{" disabled" if last < 1 else ""}>'
        for end, value, said in (("low", 0, "from"), ("high", last, "to"))
    )
    return f'<div style="width:{_STEP}px" title="{text(name)}">{ends}</div>'


def _steps(axis: Axis) -> list[tuple[float, str]]:
    """The different values of an axis, the lowest first: what sliders move between."""
    known = {at: said for at, said in zip(axis.heights, axis.texts, strict=True) if at is not None}
    return sorted(known.items())


def _places(axis: Axis, shown: Sequence[Trial]) -> dict[str, Any]:
    """The steps of an axis, and at which of them each trial is, null where it has none."""
    steps = _steps(axis)
    at = {value: i for i, (value, _) in enumerate(steps)}
    return {
        "steps": [[round(value, 4), said] for value, said in steps],
        "at": {trial.name: None if h is None else at[h] for trial, h in zip(shown, axis.heights, strict=True)},
    }


def _path(heights: Sequence[float | None]) -> str:
    """A line through the axes, with a dot at each, broken where there is no value."""
    parts, down = [], False
    for i, at in enumerate(heights):
        if at is None:
            down = False
            continue
        x, y = _LEFT + i * _STEP, _TOP + _HIGH * (1 - at)
        parts.append(f"{'L' if down else 'M'}{x},{y:.1f}")
        parts.append(f"m-3,0h6M{x},{y:.1f}")  # seen also where both neighbours are missing
        down = True
    return "".join(parts)


def _against(shown: Sequence[Trial], colors: Sequence[str]) -> str:
    dots = [
        Dot(
            trial.metrics[DIVERGENCE.name],
            trial.metrics[AP.name],
            color,
            _MARKS.get(trial.state, "square"),
            trial.name,
        )
        for trial, color in zip(shown, colors, strict=True)
        if {AP.name, DIVERGENCE.name} <= trial.metrics.keys()
    ]
    if not dots:
        return ""
    chart = scatter("AP against divergence", dots, f"{DIVERGENCE.name} (lower: the tasks agree more)", AP.name)
    hint = "The last evaluation of each trial; a cross was stopped early, a square is still running."
    return section("AP against divergence", f'<div class="against">{chart}</div>', hint=hint)


def _color(at: float | None) -> str:
    """Blue for 0, grey in the middle, vermilion for 1."""
    at = 0.5 if at is None else at
    low, high, share = (_LOW_COLOR, _MIDDLE, 2 * at) if at < 0.5 else (_MIDDLE, _HIGH_COLOR, 2 * at - 1)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


def _cut(said: str, most: int) -> str:
    return said if len(said) <= most else f"{said[: most - 1]}…"
