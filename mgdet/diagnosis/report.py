"""What an examination found, as lines for people and as plain values for JSON."""

from typing import Any

import numpy as np

from mgdet.diagnosis.base import Case, Finding, Split
from mgdet.diagnosis.examine import Examined
from mgdet.diagnosis.kinds import SEVERITIES
from mgdet.text import duration, first_of, printable

FORMAT = 1
"""Of the JSON file; raised when a key changes its meaning or goes."""
NAMED = 3
"""Cases that a line of text names."""
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


def lines(examined: Examined) -> list[str]:
    """The report: what the data set holds, then the findings, the most severe first."""
    out = [f"{'split':<12}{'images':>8}{'objects':>9}{'crowds':>8}{'small/medium/large':>22}   objects by class"]
    for split in examined.data.splits.values():
        truth = split.truth
        crowds = int(truth.iscrowd.sum())
        counts = first_of([f"{name} {n}" for name, n in by_class(split).items()], 12)
        sizes = "/".join(map(str, by_area(split)))
        row = (
            f"{split.name:<12}{len(truth.image_ids):>8}{len(truth.boxes) - crowds:>9}{crowds:>8}{sizes:>22}   {counts}"
        )
        out.append(row)
    for name, values in statistics(examined).items():
        least, low, middle, high, most = values
        out.append(f"{name}: {least:.3g} to {most:.3g}, median {middle:.3g}, 90 % between {low:.3g} and {high:.3g}")
    for finding in examined.findings:
        out.append(f"\n{finding.severity}: {finding.text} [{finding.kind}]")
        shown = first_of([str(case) for case in finding.cases], NAMED, "\n    ")
        out += [f"    {shown}"] if finding.cases else []
    out.append(f"\n{summary(examined)}")
    return [printable(line, lines=True) for line in out]


def summary(examined: Examined) -> str:
    """How many findings of each severity, in one line."""
    counts = [sum(f.severity == severity for f in examined.findings) for severity in SEVERITIES]
    words = [f"{n} {name}{'' if n == 1 else 's'}" for n, name in zip(counts, SEVERITIES, strict=True)]
    return f"{', '.join(words)} in {examined.data.place}, after {duration(examined.seconds)}"


def by_class(split: Split) -> dict[str, int]:
    """Objects outside of crowds of each class."""
    truth = split.truth
    counts = np.bincount(truth.labels[~truth.iscrowd], minlength=len(truth.categories))
    return {category.name: int(n) for category, n in zip(truth.categories, counts, strict=True)}


def by_area(split: Split) -> list[int]:
    """Objects outside of crowds by COCO's ranges of the area: below 32^2, below 96^2, all others."""
    area = split.truth.area[~split.truth.iscrowd]
    return [int((area < 32**2).sum()), int(((area >= 32**2) & (area < 96**2)).sum()), int((area >= 96**2).sum())]


def statistics(examined: Examined) -> dict[str, list[float]]:
    """The quantiles 0, 5, 50, 95 and 100 % of the sizes and aspect ratios of all objects outside of crowds."""
    sides = [s.truth.boxes[~s.truth.iscrowd] for s in examined.data.splits.values()]
    boxes = np.concatenate(sides) if sides else np.zeros((0, 4))
    if not len(boxes):
        return {}
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    measures = {"size of objects (root of the area, pixels)": np.sqrt(width * height), "height / width": height / width}
    return {name: np.quantile(values, QUANTILES).tolist() for name, values in measures.items()}


def as_json(examined: Examined) -> dict[str, Any]:
    """Everything that was found, with all cases."""
    return {
        "format": FORMAT,
        "data": examined.data.place,
        "splits": {
            split.name: {
                "images": len(split.names),
                "objects": by_class(split),
                "small, medium, large": by_area(split),
                "crowds": int(split.truth.iscrowd.sum()),
            }
            for split in examined.data.splits.values()
        },
        "categories": [{"id": category.id, "name": category.name} for category in examined.data.categories],
        "statistics": statistics(examined),
        "findings": [_finding(finding) for finding in examined.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "text": finding.text,
        "cases": [_case(case) for case in finding.cases],
    }


def _case(case: Case) -> dict[str, Any]:
    left_out = "row", "twin"  # the text of the detail names the twin
    values = {key: value for key, value in case._asdict().items() if key not in left_out}
    return {key: value for key, value in values.items() if value not in (None, "", ())}
