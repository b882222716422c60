"""The page of an examination: one HTML file with contact sheets and bars, which needs no network and no other file."""

import base64
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mgdet.diagnosis.base import Case, Data, Finding
from mgdet.diagnosis.examine import Examined
from mgdet.diagnosis.kinds import KINDS, SEVERITIES
from mgdet.diagnosis.report import by_class, summary
from mgdet.diagnosis.thumbnails import thumbnail
from mgdet.pages.document import bars, document, grid, table, text

SHOWN = 12
"""Pictures of each finding; all cases are in the JSON file."""
LISTED = 200
"""Cases of each finding that are listed by name."""
CLASSES = 40
"""Classes that have a bar."""

_STYLE = """
:root { --error: #c62828; --warning: #b26a00; --note: #3367a8 }
details { border: 1px solid var(--line); border-left: 5px solid var(--level); border-radius: 6px; margin: .8rem 0 }
summary { padding: .6rem .8rem; cursor: pointer } details > div { padding: 0 .8rem .8rem }
.error { --level: var(--error) } .warning { --level: var(--warning) } .note { --level: var(--note) }
.level { color: #fff; background: var(--level); border-radius: 4px; padding: .1rem .5rem; font-size: .8rem }
figure img { width: 100% } img + img { margin-top: 3px }
figcaption, li { font-size: .8rem; line-height: 1.35 } ul { padding-left: 1.2rem; margin: 0 }
"""


def page(examined: Examined) -> str:
    """The whole page."""
    parts = [
        f"<h1>mgdet doctor</h1><p>{text(summary(examined))}</p>",
        _splits(examined.data),
        "<h2>Objects</h2>",
        grid(_plots(examined.data)),
    ]
    for severity in SEVERITIES:
        found = [finding for finding in examined.findings if finding.severity == severity]
        if found:
            parts.append(f"<h2>{severity.capitalize()}s</h2>")
            parts += [_finding(finding, examined.data) for finding in found]
    return document(f"mgdet doctor: {examined.data.place}", parts, _STYLE)


def _splits(data: Data) -> str:
    rows = []
    for split in data.splits.values():
        crowds = int(split.truth.iscrowd.sum())
        cells = (split.name, len(split.names), len(split.truth.boxes) - crowds, crowds)
        rows.append([text(cell) for cell in cells])
    return table(("split", "images", "objects", "crowds"), rows)


def _plots(data: Data) -> Iterator[str]:
    totals: dict[str, int] = {category.name: 0 for category in data.categories}
    for split in data.splits.values():
        for name, n in by_class(split).items():
            totals[name] += n
    ranked = sorted(totals.items(), key=lambda item: -item[1])
    hidden = f", the {CLASSES} largest of {len(ranked)}" if len(ranked) > CLASSES else ""
    yield _bars(f"by class{hidden}", ranked[:CLASSES])
    truths = [split.truth for split in data.splits.values()]
    boxes = np.concatenate([truth.boxes[~truth.iscrowd] for truth in truths] or [np.zeros((0, 4))])
    if len(boxes):
        width, height = (boxes[:, 2:] - boxes[:, :2]).T
        yield _bars("by size (root of the area, pixels)", _octaves(np.sqrt(width * height), 0.5))
        yield _bars("by height / width", _octaves(height / width, 0.5))


def _octaves(values: NDArray[np.float64], step: float) -> list[tuple[str, int]]:
    """How many values lie in each part of an octave, from the first to the last that has some."""
    parts = np.floor(np.log2(values) / step).astype(np.int64)
    first = int(parts.min())
    counts = np.bincount(parts - first)
    edges = 2.0 ** (step * (first + np.arange(len(counts) + 1)))
    return [(f"{a:.3g} to {b:.3g}", int(n)) for a, b, n in zip(edges, edges[1:], counts, strict=False)]


def _bars(title: str, rows: list[tuple[str, int]]) -> str:
    return bars(title, [(name, n, str(n)) for name, n in rows])


def _finding(finding: Finding, data: Data) -> str:
    figures = "".join(_figure(case, data) for case in finding.cases[:SHOWN] if case.row is not None)
    named = finding.cases if not figures else finding.cases[SHOWN:]
    items = "".join(f"<li>{text(str(case))}</li>" for case in named[:LISTED])
    if len(named) > LISTED:
        items += f"<li>and {len(named) - LISTED} more</li>"
    more = (
        f"<details><summary>{len(named)} more</summary><ul>{items}</ul></details>" if figures else f"<ul>{items}</ul>"
    )
    is_open = " open" if finding.severity != "note" else ""
    return (
        f'<details class="{finding.severity}"{is_open}><summary><span class="level">{KINDS[finding.kind].title}</span> '
        f"{text(finding.text)}</summary><div>"
        f"{grid([figures], 210)}{more if items else ''}</div></details>"
    )


def _figure(case: Case, data: Data) -> str:
    """The picture of a case, and below it the one that it is a copy of."""
    shown = [case]
    if case.twin is not None:
        split, row = case.twin
        shown.append(data.splits[split].case(row))
    jpegs = [jpeg for one in shown if (jpeg := thumbnail(one, data))]
    images = "".join(f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">' for jpeg in jpegs)
    return f"<figure>{images}<figcaption>{text(str(case))}</figcaption></figure>"
