"""What the annotations say: classes, images without objects, strange boxes, objects that are annotated twice."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mgdet.data.findings import empty_classes, similar_names
from mgdet.diagnosis.base import Case, Cases, Data, Finding, Split
from mgdet.text import first_of

RARE = 10
"""A class with fewer objects in the whole data set is nearly empty."""
TINY = 4.0
"""Pixels of a side, in the picture as it is stored."""
WHOLE = 0.99
SAME = 0.9
"""The IoU from which two boxes are taken for one."""


def classes(data: Data) -> Iterator[Finding]:
    """Classes without objects or with few, missing ids, names that are nearly equal."""
    truths = {name: split.truth for name, split in data.splits.items()}
    for text in empty_classes(truths, data.parents):
        yield Finding("empty_class", what=text)
    for text in similar_names(data.categories):
        yield Finding("similar_names", what=text)
    counts = np.zeros(len(data.categories), dtype=np.int64)
    for truth in truths.values():
        counts += np.bincount(truth.labels[~truth.iscrowd], minlength=len(counts))
    rare = [f"{data.categories[k].name} {counts[k]}" for k in np.argsort(counts, kind="stable") if 0 < counts[k] < RARE]
    if rare:
        yield Finding("rare_class", what=f"{len(rare)} classes have fewer than {RARE} objects: {first_of(rare)}")
    ids = sorted(category.id for category in data.categories)
    if gaps := [_span(a + 1, b - 1) for a, b in pairwise(ids) if b - a > 1]:
        yield Finding(
            "id_gaps", what=f"category ids that no class has: {first_of(gaps)}; labels are counted without them"
        )


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def objects(data: Data) -> Iterator[Finding]:
    """Images without objects, and boxes that are tiny or cover everything."""
    empty, tiny, whole = [], [], []
    for split in data.splits.values():
        truth = split.truth
        counts = np.bincount(truth.box_image[~truth.iscrowd], minlength=len(truth.image_ids))
        empty += [split.case(int(row)) for row in np.flatnonzero(counts == 0)]
        sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
        tiny += _boxes(split, (sides.min(axis=1) < TINY) & ~truth.iscrowd)
        areas = (truth.heights * truth.widths)[truth.box_image]
        whole += _boxes(split, (sides.prod(axis=1) >= WHOLE * areas) & ~truth.iscrowd)
    if empty:
        yield Finding("no_objects", tuple(empty))
    if tiny:
        yield Finding("tiny", tuple(tiny), f"{TINY:g}")
    if whole:
        yield Finding("whole", tuple(whole), f"{WHOLE:.0%}")


def _boxes(split: Split, chosen: NDArray[np.bool_]) -> list[Case]:
    found = []
    for thing in np.flatnonzero(chosen).tolist():
        width, height = split.truth.boxes[thing, 2:] - split.truth.boxes[thing, :2]
        name = split.truth.categories[int(split.truth.labels[thing])].name
        found.append(split.case(int(split.truth.box_image[thing]), thing, f"{name}, {width:g} x {height:g} pixels"))
    return found


def overlaps(data: Data) -> Iterator[Finding]:
    """Objects whose box is nearly that of an earlier one in the same image."""
    cases = Cases()
    for split in data.splits.values():
        truth = split.truth
        order = np.argsort(truth.box_image, kind="stable")
        order = order[~truth.iscrowd[order]]
        ends = np.flatnonzero(np.diff(truth.box_image[order])) + 1
        for things in np.split(order, ends):
            pairs = overlapping(truth.boxes[things], SAME)
            for later in {j for _, j in pairs}:
                i = next(i for i, j in pairs if j == later)
                a, b = int(things[i]), int(things[later])
                kind = "twice" if truth.labels[a] == truth.labels[b] else "two_classes"
                here = truth.categories[int(truth.labels[b])].name
                case = split.case(int(truth.box_image[b]), b, f"{here}, as {split.name_of(a)}", a)
                cases.add(kind, case)
    yield from cases.findings(f"{SAME:g}")


def overlapping(boxes: NDArray[np.float64], least: float) -> list[tuple[int, int]]:
    """Pairs i < j of `[n, 4]` boxes with an area whose IoU is at least `least`."""
    if len(boxes) < 2:
        return []
    i, j = np.triu_indices(len(boxes), 1)
    return [(a, b) for a, b, iou in zip(i.tolist(), j.tolist(), ious(boxes[i], boxes[j]), strict=True) if iou >= least]


def ious(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of boxes that broadcast against each other, `[..., 4]`, all with an area."""
    overlap = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0).prod(axis=-1)
    areas = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1)
    return np.asarray(overlap / (areas - overlap))
