"""Objects against the priors of a configuration: which no anchor fits, which levels have none, what would fit better.

For each anchor shape the place of its grid that overlaps an object most is the one whose centre is nearest, in x and in
y independently, because the overlap along an axis only shrinks with the distance of the centres. So the best IoU of an
object over all anchors of the pyramid is found from one place for each shape.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mgdet.config import Experiment
from mgdet.data.transforms import Resize
from mgdet.diagnosis.annotations import ious
from mgdet.diagnosis.base import Case, Data, Finding, Split
from mgdet.models import RetinaNetConfig
from mgdet.models.anchors import AnchorConfig
from mgdet.text import first_of

FINEST = 8
"""Stride of the finest level, in pixels; that of each further one is twice as large."""
POSITIVE = 0.5
"""The IoU that an anchor needs where the assigner has no `positive_iou`."""
MANY = 0.05
"""The share of objects that no anchor fits from which that is a warning."""
SAMPLE = 2000
"""Objects from which anchors are suggested, evenly through their order by area."""
BASES = 2 ** np.arange(2.0, 6.01, 0.5)
"""Sides of the finest level's smallest anchor that are tried, pixels: 4 to 64."""
RATIOS = ((1.0,), (0.5, 1.0, 2.0), (1 / 3, 1.0, 3.0), (0.25, 0.5, 1.0, 2.0, 4.0), (1.0, 2.0, 3.0), (1 / 3, 0.5, 1.0))
"""Sets of aspect ratios (height / width) that are tried."""
GAIN = 0.01
"""Other anchors are suggested where they reach at least so large a share of the objects more."""


class Inputs(NamedTuple):
    """The `M` objects of a split as the network gets them."""

    boxes: NDArray[np.float64]  # [M, 4]
    padded: NDArray[np.int64]  # [M, 2] (height, width) of the padded input


def inputs_of(split: Split, resize: Resize, divisor: int) -> tuple[NDArray[np.int64], Inputs]:
    """The objects outside of crowds, by index, as an evaluation resizes and pads them, each image alone."""
    truth = split.truth
    things = np.flatnonzero(~truth.iscrowd)
    sizes = np.stack([truth.heights, truth.widths], axis=1)
    known, which = np.unique(sizes, axis=0, return_inverse=True)
    targets = np.array([resize.target(int(h), int(w)) for h, w in known], dtype=np.int64).reshape(-1, 2)
    image = which.reshape(-1)[truth.box_image[things]]
    factor = (targets / known)[image][:, ::-1]
    return things, Inputs(truth.boxes[things] * np.tile(factor, 2), (-(-targets // divisor) * divisor)[image])


def best_ious(inputs: Inputs, shapes: list[NDArray[np.float64]], offset: float) -> NDArray[np.float64]:
    """The best IoU of each object with the anchors of each level, `[M, L]`.

    Args:
        inputs: the objects.
        shapes: (width, height) of the anchors on each level, `[S, 2]`.
        offset: of the anchors' centres in their cell, in strides.
    """
    centres = (inputs.boxes[:, :2] + inputs.boxes[:, 2:]) / 2
    found = np.zeros((len(inputs.boxes), len(shapes)))
    for level, sides in enumerate(shapes):
        stride = FINEST * 2**level
        grid = -(-inputs.padded // stride)
        step = (inputs.padded // grid)[:, ::-1]  # (x, y): not exactly the stride where the grid does not divide it
        cell = (centres / step - offset).round().clip(0, grid[:, ::-1] - 1)
        middle = (cell + offset) * step
        for width, height in sides:
            half = np.array([width, height]) / 2
            anchors = np.concatenate([middle - half, middle + half], axis=1)
            found[:, level] = np.maximum(found[:, level], ious(inputs.boxes, anchors))
    return found


def shapes_of(anchors: AnchorConfig) -> list[NDArray[np.float64]]:
    """(width, height) of the anchors on each level, `[S, 2]`."""
    cells = [cell.double().numpy() for cell in anchors.generator().cell_anchors]
    return [cell[:, 2:] - cell[:, :2] for cell in cells]


def priors(experiment: Experiment) -> Callable[[Data], Iterator[Finding]]:
    """The check of objects against the priors of an experiment."""

    def check(data: Data) -> Iterator[Finding]:
        resize, divisor = experiment.data.transform.resize, experiment.data.loader.divisor
        seen = [(split, *inputs_of(split, resize, divisor)) for split in data.splits.values()]
        seen = [one for one in seen if len(one[1])]
        if not seen:
            return
        yield from _below_stride(seen)
        if isinstance(experiment.model, RetinaNetConfig):
            positive = float(getattr(experiment.assigner, "positive_iou", POSITIVE))
            yield from _against_anchors(seen, experiment.model.anchors, positive)

    return check


_Seen = list[tuple[Split, NDArray[np.int64], Inputs]]


def _below_stride(seen: _Seen) -> Iterator[Finding]:
    cases = []
    for split, things, inputs in seen:
        sides = inputs.boxes[:, 2:] - inputs.boxes[:, :2]
        for k in np.flatnonzero(sides.max(axis=1) < FINEST).tolist():
            cases.append(_case(split, int(things[k]), f"{sides[k, 0]:.1f} x {sides[k, 1]:.1f} pixels of the input"))
    total = sum(len(things) for _, things, _ in seen)
    if cases:
        what = (
            f"{len(cases)} of {total} objects ({len(cases) / total:.1%}) are smaller than the finest stride, "
            f"{FINEST} pixels, at this input size: a larger data.transform.resize or tiles would help"
        )
        yield Finding("below_stride", tuple(cases), what)


def _against_anchors(seen: _Seen, anchors: AnchorConfig, positive: float) -> Iterator[Finding]:
    shapes = shapes_of(anchors)
    by_level = [best_ious(inputs, shapes, anchors.offset) for _, _, inputs in seen]
    best = np.concatenate(by_level).max(axis=1)
    cases = []
    for (split, things, _), found in zip(seen, by_level, strict=True):
        highest = found.max(axis=1)
        below = np.flatnonzero(highest < positive)
        cases += [_case(split, int(things[k]), f"best IoU {highest[k]:.2f}", highest[k]) for k in below]
    if cases:
        cases.sort(key=lambda case: -(case.score or 0))
        half = "" if positive == POSITIVE else f" ({int((best < POSITIVE).sum())} below {POSITIVE:g})"
        what = (
            f"{len(cases)} of {len(best)} objects ({len(cases) / len(best):.1%}) overlap no anchor by IoU "
            f"{positive:g}, the positive threshold{half}, so that they learn from a forced anchor at most"
        )
        yield Finding("unreached" if len(cases) > MANY * len(best) else "some_unreached", tuple(cases), what)
    counts = np.bincount(np.concatenate(by_level).argmax(axis=1), minlength=len(shapes))
    if idle := [f"P{level + 3}" for level in np.flatnonzero(counts == 0).tolist()]:
        shares = ", ".join(f"P{level + 3} {n / len(best):.1%}" for level, n in enumerate(counts))
        what = f"no object has its best anchor on {first_of(idle)} (objects by level: {shares})"
        yield Finding("idle_levels", what=what)
    yield from _suggestion([inputs for _, _, inputs in seen], anchors, positive, best)


def _case(split: Split, thing: int, detail: str, iou: float | None = None) -> Case:
    name = split.truth.categories[int(split.truth.labels[thing])].name
    score = None if iou is None else 1 - float(iou)
    return split.case(int(split.truth.box_image[thing]), thing, f"{name}, {detail}", score=score)


def _suggestion(
    inputs: list[Inputs], anchors: AnchorConfig, positive: float, best: NDArray[np.float64]
) -> Iterator[Finding]:
    """Sizes that double from level to level, and ratios, that reach the most objects; of several the best mean IoU."""
    everything = Inputs(np.concatenate([i.boxes for i in inputs]), np.concatenate([i.padded for i in inputs]))
    area = (everything.boxes[:, 2:] - everything.boxes[:, :2]).prod(axis=1)
    order = np.argsort(area, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(SAMPLE, len(order))).round().astype(np.int64)]
    sample = Inputs(everything.boxes[chosen], everything.padded[chosen])
    tried = [anchors.model_copy(update={"sizes": tuple((b * 2 ** np.arange(5.0)).tolist())}) for b in BASES]
    reached = {}
    for one in tried:
        for tall in (anchors.ratios, *RATIOS):
            if len(tall) <= len(anchors.ratios):  # no more anchors than there are
                other = one.model_copy(update={"ratios": tall})
                found = best_ious(sample, shapes_of(other), anchors.offset).max(axis=1)
                reached[other] = float((found >= positive).mean()), float(found.mean())
    better = max(reached, key=lambda other: reached[other])
    after = best_ious(everything, shapes_of(better), anchors.offset).max(axis=1)
    if (after >= positive).mean() < (best >= positive).mean() + GAIN:
        return
    sizes, ratios = (", ".join(f"{v:.3g}" for v in values) for values in (better.sizes, better.ratios))
    then, now = int((after < positive).sum()), int((best < positive).sum())
    what = (
        f"with model.anchors.sizes=[{sizes}] model.anchors.ratios=[{ratios}] {then} instead of {now} objects would lie "
        f"below {positive:g}, and the mean of the best IoUs would be {after.mean():.2f} instead of {best.mean():.2f}"
    )
    yield Finding("suggested", what=what)
