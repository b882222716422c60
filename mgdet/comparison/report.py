"""A comparison as text, as plain values, and as a page."""

from collections.abc import Sequence
from typing import Any

from mgdet.comparison.bootstrap import Difference
from mgdet.comparison.compare import Comparison, ImageChange, Pair
from mgdet.comparison.statistics import ERROR, OF_CLASS
from mgdet.pages.chart import interval
from mgdet.pages.document import command, document, facts, grid, number, section, table, text
from mgdet.text import printable

CLASSES, IMAGES = 40, 15
"""How many classes and images a table shows; the JSON has all."""


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything as plain values; what is undefined is null."""
    return {
        "groups": comparison.groups,
        "images": comparison.images,
        "objects": comparison.objects,
        "samples": comparison.samples,
        "level": comparison.level,
        "seed": comparison.seed,
        "pairs": [
            {
                "base": pair.base,
                "other": pair.other,
                "differences": {
                    name: {**{k: _plain(v) for k, v in found._asdict().items()}, "verdict": pair.verdict(name)}
                    for name, found in pair.differences.items()
                },
                "images": [change._asdict() for change in pair.images],
            }
            for pair in comparison.pairs
        ],
    }


def _plain(value: float) -> float | None:
    return None if value != value else float(value)


def as_text(comparison: Comparison) -> str:
    """Tables for a terminal."""
    lines = [summary(comparison)]
    for pair in comparison.pairs:
        lines += ["", f"{printable(pair.other)} against {printable(pair.base)}", ""]
        rows = [["", "base", "other", "difference", f"{comparison.level:.0%} interval", ""]]
        for name in [*_overall(pair), *_errors(pair), *_classes(pair)[:CLASSES]]:
            found = pair.differences[name]
            ends = f"[{_cell(found.low, True)}, {_cell(found.high, True)}]" if found.low == found.low else ""
            cells = [_cell(found.base), _cell(found.other), _cell(found.value, True), ends, pair.verdict(name)]
            rows.append([printable(name), *cells])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:5], widths[1:5], strict=True)), row[5]]
            ).rstrip()
            for row in rows
        ]
        for title, changes in _images(pair):
            lines += ["", f"{title}:"]
            lines += [
                f"  image {c.image_id} ({printable(c.file)}): {c.base:g} errors -> {c.other:g}" for c in changes[:5]
            ]
    return "\n".join(lines)


def summary(comparison: Comparison) -> str:
    """A sentence on what was compared, and how."""
    groups = ", ".join(f"{printable(name)} ({len(runs)})" for name, runs in comparison.groups.items())
    return (
        f"{comparison.images} images, {comparison.objects} objects; runs: {groups}. Intervals of "
        f"{comparison.level:.0%} from {comparison.samples} samples of the images{_of_seeds(comparison)}."
    )


def _of_seeds(comparison: Comparison) -> str:
    if all(len(runs) > 1 for runs in comparison.groups.values()):
        return " and of the runs of a group"
    return "; a group of one run says nothing of other seeds, whose differences may be larger"


def _cell(value: float, signed: bool = False) -> str:
    return number(value, 4, signed)


def _overall(pair: Pair) -> list[str]:
    return [name for name in pair.differences if not name.startswith((ERROR, OF_CLASS))]


def _errors(pair: Pair) -> list[str]:
    return [name for name in pair.differences if name.startswith(ERROR)]


def _classes(pair: Pair) -> list[str]:
    """The classes, those whose interval does not hold 0 first, then by the size of the difference."""

    def order(name: str) -> tuple[bool, float]:
        found = pair.differences[name]
        return not found.clear, -abs(found.value) if found.value == found.value else 0.0

    return sorted((name for name in pair.differences if name.startswith(OF_CLASS)), key=order)


def _images(pair: Pair) -> list[tuple[str, list[ImageChange]]]:
    wins = [change for change in pair.images if change.change < 0]
    losses = [change for change in reversed(pair.images) if change.change > 0]
    return [
        (f"{printable(pair.other)} makes fewer errors in {len(wins)} images", wins),
        (f"{printable(pair.other)} makes more errors in {len(losses)} images", losses),
    ]


def page(comparison: Comparison, typed: str = "") -> str:
    """The whole page; `typed` is the command that made it."""
    runs = [
        (text(name), "<br>".join(text(_run(each)) for each in members)) for name, members in comparison.groups.items()
    ]
    parts = ["<h1>Comparison</h1>", f"<p>{text(summary(comparison))}</p>", facts(runs)]
    if typed:
        parts.append(command(typed))
    for pair in comparison.pairs:
        title = f"{pair.other} against {pair.base}"
        classes = _classes(pair)
        hidden = f", {CLASSES} of {len(classes)}" if len(classes) > CLASSES else ""
        parts.append(
            section(
                title,
                _table(pair, _overall(pair), "All classes"),
                _table(pair, _errors(pair), "AP50 lost to errors of a type (TIDE)"),
                _table(pair, classes[:CLASSES], f"AP of a class{hidden}"),
                grid((_image_table(name, changes) for name, changes in _images(pair)), 420),
                hint="better and worse: the interval does not hold 0. Of some thirty rows about one or two do so by "
                "chance alone. Lower is better for the divergence and for errors.",
            )
        )
    return document("mgdet comparison", parts)


def _run(each: dict[str, Any]) -> str:
    where = each.get("checkpoint") or each["name"]
    return f"{where} on {each.get('data', '?')}, {each.get('split', '?')}"


def _table(pair: Pair, names: Sequence[str], caption: str) -> str:
    known = [pair.differences[name] for name in names]
    reach = max([abs(v) for found in known for v in (found.low, found.high) if v == v], default=0.0)
    rows = [_row(pair, name, reach) for name in names]
    if not rows:
        return ""
    header = ("", pair.base, pair.other, "difference", "", "low", "high", "")
    return table(header, rows, caption)


def _row(pair: Pair, name: str, reach: float) -> list[str]:
    found: Difference = pair.differences[name]
    verdict = pair.verdict(name)
    shown = name.removeprefix(ERROR).removeprefix(OF_CLASS)
    strip = interval(found.low, found.value, found.high, reach, verdict) if found.low == found.low else ""
    said = f'<span class="{verdict}">{verdict}</span>' if verdict else ""
    values = [number(found.base), number(found.other), number(found.value, signed=True)]
    return [text(shown), *values, said, *(number(v, signed=True) for v in (found.low, found.high)), strip]


def _image_table(title: str, changes: Sequence[ImageChange]) -> str:
    if not changes:
        return f'<p class="hint">{text(title)}</p>'
    rows = [[text(f"{c.image_id} ({c.file})"), f"{c.base:g}", f"{c.other:g}"] for c in changes[:IMAGES]]
    return table(("image", "errors of the base", "of the other"), rows, title)
