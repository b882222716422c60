"""What an evaluation says, as parts of an HTML page: tables, curves, errors, and the worst images."""

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image
from torch import Tensor

from mgdet.evaluation.analysis import Analysis
from mgdet.evaluation.average_precision import RECALL_THRESHOLDS, APResult
from mgdet.evaluation.draw import draw_boxes
from mgdet.evaluation.error_types import OF_DETECTIONS
from mgdet.ground_truth import GroundTruth
from mgdet.pages.chart import Line, Span, line_chart
from mgdet.pages.document import bars, grid, number, picture, section, table, text
from mgdet.structures import unique_names

CURVES = 6
"""Classes whose precision-recall curve is shown: the worst ones of more."""
ROWS = 100
"""Classes in a table."""
CONFUSED = 12
"""Classes up to which the whole confusion matrix is shown, and confusions that are listed of more."""
WORST = 8
"""Images that are shown."""
LONGEST = 640
"""Pixels of the longer side of a picture."""
_RIGHT, _WRONG, _MISSED = 1, 2, 0  # places in the colours of `draw`; each box says what it is, too
_MEANING = {
    "class": "an object of another class lies there",
    "location": "an object of the class is near, the box fits badly",
    "both": "near an object of another class",
    "duplicate": "the object has a better detection",
    "background": "no object is near",
    "missed": "objects that nothing finds, not even a wrong detection that would be corrected",
}

ReadImage = Callable[[int], Tensor]
"""The pixels `[3, H, W]` of the image in a row of the split."""


def evaluation_sections(found: APResult, analysis: Analysis, gt: GroundTruth) -> list[str]:
    """The sections of a page on an evaluation, without pictures."""
    return [
        section("Classes", _classes(found, analysis), hint=_score_hint(found)),
        section("Precision, recall and calibration", _curves(found, analysis)),
        section("Errors", *_errors(analysis)),
        section("Which class is taken for which", _confusion(analysis, gt), hint=_CONFUSION_HINT),
        section("Groups of objects", _groups(analysis), hint=_GROUPS_HINT),
    ]


_GROUPS_HINT = (
    "All other objects are ignored. Detections that find no object are wrong in every group, so that the AP of a "
    "small group is low: compare groups between detectors. Objects overlap from an IoU of 0.1 on. Positives: priors "
    "that learn from the object by the training's assigner, on the evaluated network."
)
_CONFUSION_HINT = (
    "Of detections from the score of the best F1 of their class on, at an IoU of 0.5. A row is the class of the "
    "object, a column that of the detection."
)


def _score_hint(found: APResult) -> str:
    return (
        f"AP by the rule of {found.protocol}. F1 is the best one at an IoU of 0.5; detections with at least the score "
        "beside it are kept for it."
    )


def _classes(found: APResult, analysis: Analysis) -> str:
    names = sorted(found.per_class, key=lambda name: (found.per_class[name] is None, found.per_class[name] or 0.0))
    rows = []
    for name in names[:ROWS]:
        point, at = analysis.points[name], found.per_class_at[name]
        values = (found.per_class[name], at[0], at[5], point.f1, point.score, point.precision, point.recall)
        rows.append([text(name), str(point.objects), *(number(value) for value in values)])
    hidden = f", the worst {ROWS} of {len(names)}" if len(names) > ROWS else ""
    header = ("class", "objects", "AP", "AP50", "AP75", "F1", "score", "precision", "recall")
    return table(header, rows, f"Classes, the worst first{hidden}")


def _curves(found: APResult, analysis: Analysis) -> str:
    unit = Span(0.0, 1.0)
    defined = [k for k in range(found.precision.shape[2]) if (found.precision[0, :, k] >= 0).all()]
    names = list(found.per_class)
    charts = []
    if defined:
        mean = [
            Line(f"IoU {iou:.2f}", RECALL_THRESHOLDS.tolist(), found.precision[t][:, defined].mean(axis=1).tolist())
            for t, iou in ((0, 0.5), (5, 0.75), (8, 0.9))
        ]
        charts.append(line_chart("Mean over the classes", mean, "recall", "precision", across=unit, up=unit))
        worst = sorted(defined, key=lambda k: float(found.precision[0, :, k].mean()))[:CURVES]
        lines = [Line(names[k], RECALL_THRESHOLDS.tolist(), found.precision[0, :, k].tolist()) for k in worst]
        title = "Classes at IoU 0.50" if len(worst) == len(defined) else f"The {CURVES} worst classes at IoU 0.50"
        charts.append(line_chart(title, lines, "recall", "precision", across=unit, up=unit))
    bins = analysis.calibration
    if bins.error is not None:
        line = Line("detections", bins.score.tolist(), bins.right.tolist())
        title = f"Calibration: expected error {bins.error:.3f}"
        charts.append(
            line_chart(title, [line], "score", "share of right ones", across=unit, up=unit, diagonal=True, dots=True)
        )
    return grid(charts)


def _errors(analysis: Analysis) -> Iterator[str]:
    counts = analysis.counts()
    costs = [(name, cost, number(cost)) for name, cost in analysis.costs.items()]
    yield grid([bars("AP50 lost to errors of a type", costs)] if costs else [])
    rows = [[text(name), str(n), number(analysis.costs.get(name)), text(_MEANING[name])] for name, n in counts.items()]
    yield table(("type", "number", "AP50 lost", "what it is"), rows, "Types of errors (TIDE)", words=True)


def _confusion(analysis: Analysis, gt: GroundTruth) -> str:
    names, matrix = [*unique_names(gt.categories), "(none)"], analysis.confusion
    if len(names) - 1 <= CONFUSED:
        most = max(1, int(matrix.max()))
        rows = [
            [text(name), *(_shaded(n, n / most, i == k) for k, n in enumerate(matrix[i].tolist()))]
            for i, name in enumerate(names)
        ]
        return table(("object", *names), rows, "Confusion matrix")
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    off[-1] = off[:, -1] = 0
    order = np.argsort(-off, axis=None, kind="stable")[:CONFUSED]
    pairs = [np.unravel_index(place, off.shape) for place in order if off.flat[place]]
    rows = [[text(names[i]), text(names[k]), str(off[i, k])] for i, k in pairs]
    return table(("object", "taken for", "times"), rows, "The most frequent confusions")


def _shaded(n: int, share: float, right: bool) -> str:
    if not n:
        return "0"
    color = "0, 114, 178" if right else "213, 94, 0"
    return f'<span style="background:rgba({color},{0.15 + 0.45 * share:.2f});padding:.1rem .4rem">{n}</span>'


def _groups(analysis: Analysis) -> str:
    tables = [
        table(
            (f"by {title}", "objects", "AP", "recall"),
            [[text(s.name), str(s.objects), number(s.ap), number(s.recall)] for s in found],
        )
        for title, found in analysis.groups.items()
    ]
    return grid(tables, 420)


def worst_images(
    gt: GroundTruth, found: APResult, analysis: Analysis, read: ReadImage, names: Callable[[int], str]
) -> str:
    """The section of the images with the most errors; an image that cannot be read is left out."""
    figures = []
    for row in analysis.images.worst()[:WORST].tolist():
        try:
            pixels = read(row)
        except Exception:  # a picture is not worth the page
            continue
        wrong, missed = int(analysis.images.wrong[row]), int(analysis.images.missed[row])
        caption = f"image {gt.image_ids[row]} ({names(row)}): {wrong} wrong, {missed} missed"
        figures.append(picture(error_picture(pixels, gt, found, analysis, row), "jpeg", caption, caption))
    hint = "Detections from the score of the best F1 of their class on. Each box says what it is."
    return section("Worst images", grid(figures, 380), hint=hint)


def error_picture(pixels: Tensor, gt: GroundTruth, found: APResult, analysis: Analysis, row: int) -> bytes:
    """A JPEG of an image `[3, H, W]` with its right and wrong detections and the objects that were missed."""
    det, matches = found.detections, analysis.matches
    names = unique_names(gt.categories)
    boxes: list[list[float]] = []
    kinds: list[int] = []
    texts: list[str] = []
    mine = np.flatnonzero((det.image == row) & analysis.shown)
    for d in mine[np.argsort(matches.right[mine], kind="stable")].tolist():
        right = bool(matches.right[d])
        kind = "" if right else f"{OF_DETECTIONS[analysis.errors.type[d]]}: "
        boxes.append(det.boxes[d].tolist())
        kinds.append(_RIGHT if right else _WRONG)
        texts.append(f"{kind}{names[det.labels[d]]} {det.scores[d]:.2f}")
    found_objects = set(matches.object[mine[matches.right[mine]]].tolist())
    for o in np.flatnonzero((gt.box_image == row) & ~gt.iscrowd).tolist():
        if o not in found_objects:
            boxes.append(gt.boxes[o].tolist())
            kinds.append(_MISSED)
            texts.append(f"missed: {names[gt.labels[o]]}")
    drawn = draw_boxes(pixels, boxes, kinds, texts)
    drawn.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    drawn.save(out, "JPEG", quality=82)
    return out.getvalue()
