"""Charts as SVG within a page: they scale with it, follow its colours, and each line has a dash of its own."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from mgdet.pages.document import text

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Of Okabe and Ito (2008), whose hues are told apart with every kind of colour vision."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4", "1 4", "9 3 2 3 2 3", "14 3 5 3", "5 2")
WIDTH, HEIGHT = 400, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 10, 40


class Line(NamedTuple):
    """A line of a chart; points that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


class Dot(NamedTuple):
    """A point of a scatter plot."""

    x: float
    y: float
    color: str
    mark: str
    """`circle`, `cross` or `square`."""
    name: str
    """What a reader is told of it, and its `data-trial`."""


class Span(NamedTuple):
    """From where to where an axis goes."""

    low: float
    high: float


def line_chart(
    title: str,
    lines: Sequence[Line],
    x: str,
    y: str,
    *,
    across: Span | None = None,
    up: Span | None = None,
    diagonal: bool = False,
    dots: bool = False,
) -> str:
    """Lines over common axes, with a legend where there are several.

    Args:
        title: of the chart, also what a screen reader says.
        lines: at most ten are told apart.
        x, y: what the axes show.
        across, up: what they span; by default what the points need.
        diagonal: also the line on which both are equal.
        dots: mark each point.
    """
    kept = [
        [(a, b) for a, b in zip(line.x, line.y, strict=True) if math.isfinite(a) and math.isfinite(b)] for line in lines
    ]
    points = [point for each in kept for point in each]
    if not points:
        return f'<figure><h3>{text(title)}</h3><p class="hint">nothing to show</p></figure>'
    across = across or _span([a for a, _ in points])
    up = up or _span([b for _, b in points])

    def place(a: float, b: float) -> str:
        right, top = WIDTH - _RIGHT, HEIGHT - _BOTTOM
        return (
            f"{_LEFT + (a - across.low) / (across.high - across.low) * (right - _LEFT):.1f},"
            f"{top - (b - up.low) / (up.high - up.low) * (top - _TOP):.1f}"
        )

    parts = [*_axes(across, up, x, y)]
    if diagonal:
        (x1, y1), (x2, y2) = (place(v, v).split(",") for v in (max(across.low, up.low), min(across.high, up.high)))
        parts.append(f'<line class="guide" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>')
    for i, each in enumerate(kept):
        parts.append(f'<polyline class="line" {_look(i)} points="{" ".join(place(*point) for point in each)}"/>')
        if dots or len(each) == 1:
            circles = (place(*point).split(",") for point in each)
            parts += [f'<circle cx="{a}" cy="{b}" r="3" fill="{COLORS[i % len(COLORS)]}"/>' for a, b in circles]
    frame = f'class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}"'
    drawn = f"<svg {frame}>{''.join(parts)}</svg>"
    return f"<figure><h3>{text(title)}</h3>{drawn}{legend([line.name for line in lines])}</figure>"


def scatter(title: str, dots: Sequence[Dot], x: str, y: str) -> str:
    """Points over common axes, each with its name; there must be one."""
    across, up = _span([dot.x for dot in dots]), _span([dot.y for dot in dots])
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = _axes(across, up, x, y)
    for dot in reversed(dots):  # the first one on top
        a = _LEFT + (dot.x - across.low) / (across.high - across.low) * (right - _LEFT)
        b = bottom - (dot.y - up.low) / (up.high - up.low) * (bottom - _TOP)
        shape = {
            "circle": f'circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{dot.color}"',
            "cross": f'path d="M{a - 4:.1f},{b - 4:.1f}l8,8m0,-8l-8,8" stroke="{dot.color}" stroke-width="2"',
            "square": f'rect x="{a - 3:.1f}" y="{b - 3:.1f}" width="6" height="6" fill="none" stroke="{dot.color}"',
        }[dot.mark]
        said = text(f"{dot.name}: {x} {dot.x:.4f}, {y} {dot.y:.4f}")
        parts.append(f'<{shape} data-trial="{text(dot.name)}"><title>{said}</title></{shape.split()[0]}>')
    frame = f'class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}"'
    return f"<figure><svg {frame}>{''.join(parts)}</svg></figure>"


def legend(names: Sequence[str]) -> str:
    """Which line is which; nothing where there is one."""
    if len(names) < 2:
        return ""
    items = "".join(
        f'<li><svg viewBox="0 0 30 10" aria-hidden="true"><line x1="0" y1="5" x2="30" y2="5" stroke-width="2.5" '
        f"{_look(i)}/></svg>{text(name)}</li>"
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def interval(low: float, value: float, high: float, reach: float, verdict: str = "") -> str:
    """A difference with its interval about 0, where the strip goes from `-reach` to `reach`.

    The verdict, `better` or `worse`, decides its colour.
    """

    def at(v: float) -> float:
        return 65 + 62 * max(-1.0, min(1.0, v / reach if reach else 0.0))

    color = {"better": "var(--good)", "worse": "var(--bad)"}.get(verdict, "currentColor")
    return (
        f'<svg class="interval" viewBox="0 0 130 16" aria-hidden="true"><line x1="65" y1="0" x2="65" y2="16" '
        f'stroke="currentColor" stroke-opacity=".4"/><line x1="{at(low):.1f}" y1="8" x2="{at(high):.1f}" y2="8" '
        f'stroke="{color}" stroke-width="2"/><circle cx="{at(value):.1f}" cy="8" r="3.5" fill="{color}"/></svg>'
    )


def _look(i: int) -> str:
    dash = DASHES[i % len(DASHES)]
    return f'stroke="{COLORS[i % len(COLORS)]}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _span(values: Sequence[float]) -> Span:
    low, high = min(values), max(values)
    if low == high:
        return Span(low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
    margin = 0.04 * (high - low)
    return Span(0.0 if 0 <= low < margin * 5 else low - margin, high + margin)


def _axes(across: Span, up: Span, x: str, y: str) -> list[str]:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = [f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}"/>']
    for value in _ticks(across):
        a = _LEFT + (value - across.low) / (across.high - across.low) * (right - _LEFT)
        parts.append(f'<line class="frame" x1="{a:.1f}" y1="{_TOP}" x2="{a:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{a:.1f}" y="{bottom + 15}" text-anchor="middle">{_short(value)}</text>')
    for value in _ticks(up):
        b = bottom - (value - up.low) / (up.high - up.low) * (bottom - _TOP)
        parts.append(f'<line class="frame" x1="{_LEFT}" y1="{b:.1f}" x2="{right}" y2="{b:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{b + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{text(x)}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">{text(y)}</text>')
    return parts


def _ticks(span: Span) -> list[float]:
    """Some four round values within the span."""
    step = 10.0 ** math.floor(math.log10((span.high - span.low) / 4))
    step *= next(f for f in (1, 2, 2.5, 5, 10) if (span.high - span.low) / (f * step) <= 5)
    first = math.ceil(span.low / step - 1e-9)
    return [k * step for k in range(first, math.floor(span.high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3g}"
