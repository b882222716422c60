"""Pictures and tables of an evaluation, as matplotlib figures that the caller saves or logs.

Figures are made without pyplot, so they need no display, share no state and are freed like any other object.
"""

import html
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from mgdet.evaluation.average_precision import IOU_THRESHOLDS, RECALL_THRESHOLDS, APResult
from mgdet.evaluation.divergence import DivergenceResult
from mgdet.evaluation.draw import COLORS
from mgdet.evaluation.fonts import drawable
from mgdet.structures import Category, Detections, Targets
from mgdet.text import csv_text, printable

_MAX_CURVES = 10
_GREY = "#666666"
_TRUTH = "#ffffff"


def pr_curves(result: APResult) -> Figure:
    """Precision over recall: the mean over classes at each IoU threshold, and each class at IoU 0.50.

    Of more than ten classes the five best and five worst are drawn. Both panels say what is missing where nothing is
    defined.
    """
    figure = _figure(11.0, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    defined = (
        np.flatnonzero((result.precision[0] > -1).all(axis=0)) if result.precision.size else np.zeros(0, dtype=int)
    )
    for axes in (left, right):
        _style(axes, xlabel="recall", ylabel="precision" if axes is left else "", limits=(0, 1, 0, 1.02))
    n = f"{result.n_images:,} images, {result.n_boxes:,} objects"
    left.set_title(
        f"Mean over {len(defined)} classes\n{_known(f'AP ({result.protocol})', result.AP)}, {n}", fontsize=11
    )
    right.set_title(f"By class at IoU 0.50\n{_known('AP50', result.AP50)}, {n}", fontsize=11)
    if not len(defined):
        for axes in (left, right):
            _note(axes, "no ground truth")
        return figure
    colors = colormaps["viridis"]
    norm = Normalize(0.5, 0.95)
    for t, threshold in enumerate(IOU_THRESHOLDS):
        left.plot(
            RECALL_THRESHOLDS, result.precision[t][:, defined].mean(axis=1), color=colors(norm(threshold)), lw=1.8
        )
    bar = figure.colorbar(ScalarMappable(norm, colors), ax=left, ticks=IOU_THRESHOLDS[::3], pad=0.02)
    bar.set_label("IoU threshold")
    _class_curves(right, result, defined)
    return figure


def _class_curves(axes: Axes, result: APResult, defined: Any) -> None:
    names = list(result.per_class)
    at50 = result.precision[0]
    ranked = sorted(defined.tolist(), key=lambda k: -at50[:, k].mean())
    shown = ranked if len(ranked) <= _MAX_CURVES else ranked[: _MAX_CURVES // 2] + ranked[-_MAX_CURVES // 2 :]
    labels = []
    for i, k in enumerate(shown):
        label = f"{names[k]}  {at50[:, k].mean():.3f}  (n = {result.class_boxes[names[k]]:,})"
        axes.plot(RECALL_THRESHOLDS, at50[:, k], lw=1.8, color=colormaps["tab10"](i % 10), label=str(i))
        labels.append(drawable(label))
    title = "class, AP50, objects" if len(shown) == len(ranked) else f"5 best and 5 worst of {len(ranked)} classes"
    legend = axes.legend(
        title=title, fontsize=8, title_fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False
    )
    # only now, because a name that begins with _ would be left out, and one with $ taken for a formula
    for text, shown_as in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(shown_as.text)
        text.set_fontproperties(FontProperties(fname=str(shown_as.font), size=8))


def score_iou_figure(divergence: DivergenceResult) -> Figure:
    """Classification score against IoU of the `pre_nms` candidates, one panel a score, with its correlations.

    Where the tasks agree the cloud rises from the lower left to the upper right; a detector that is blind to how well
    it localizes shows a flat one.
    """
    names = sorted(divergence.sample_scores, key=lambda n: n == divergence.final) or ["raw"]
    figure = _figure(5.4 * len(names) + 0.6, 5.8)
    panels = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    drawn = None
    for axes, name in zip(panels, names, strict=True):
        score = divergence.sample_scores.get(name, np.zeros(0))
        lowest = float(divergence.sample_iou.min()) if len(score) else 0.5
        _style(
            axes,
            xlabel="IoU of the predicted box with its object",
            ylabel="score for the object's class" * (axes is panels[0]),
        )
        axes.set_xlim(min(0.5, np.floor(lowest * 20) / 20), 1)
        axes.set_ylim(0, 1)
        axes.set_title(_score_title(divergence, name, len(score)), fontsize=10)
        if not len(score):
            _note(axes, "no candidates")
            continue
        extent = (*axes.get_xlim(), 0, 1)
        drawn = axes.hexbin(
            divergence.sample_iou, score, gridsize=34, extent=extent, norm=LogNorm(1), cmap="magma_r", mincnt=1, lw=0.2
        )
        _trend(axes, divergence.sample_iou, score)
        _correlations(axes, divergence, name)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=list(panels), pad=0.015)
        bar.set_label("boxes per cell")
        bar.ax.yaxis.set_major_formatter("{x:g}")
    return figure


def _score_title(divergence: DivergenceResult, name: str, shown: int) -> str:
    role = " (ranks the detections)" if name == divergence.final else ""
    sample = f" ({shown:,} drawn at random)" if shown < divergence.n_candidates else ""
    return f"{name} score{role}\npredictions before NMS, n = {divergence.n_candidates:,}{sample}"


def _trend(axes: Axes, iou: Any, score: Any) -> None:
    """The median score of each tenth of the boxes by IoU."""
    if len(iou) < 50:
        return
    order = np.array_split(np.argsort(iou), 10)
    middle = [float(np.median(iou[part])) for part in order], [float(np.median(score[part])) for part in order]
    outline = [patheffects.withStroke(linewidth=4, foreground="white")]
    axes.plot(*middle, "o-", color="#1f77b4", lw=2, ms=4, path_effects=outline, label="median score per tenth of boxes")
    axes.legend(loc="upper left", fontsize=8, framealpha=0.9)


def _correlations(axes: Axes, divergence: DivergenceResult, name: str) -> None:
    rows = {
        "pre_nms": "objects",
        **{k: "objects" for k in divergence.populations[name] if k.startswith("pre_nms_top")},
        "per_image": "images",
        "post_nms": "detections",
        "per_class": "classes",
    }
    known = {k: p for k, p in divergence.populations[name].items() if p.rho is not None}
    lines = [f"{k:<14}ρ = {known[k].rho:+.3f}   n = {known[k].n:,} {unit}" for k, unit in rows.items() if k in known]
    text = "\n".join(lines) or "ρ undefined: too few candidates, or constant scores"
    # Below the axes: every corner of the cloud says something (the lower right one, that good boxes score low)
    axes.text(0.0, -0.15, text, transform=axes.transAxes, ha="left", va="top", fontsize=8.5, family="monospace")


def detections_figure(
    images: Tensor,
    targets: Targets,
    detections: Detections,
    categories: Sequence[Category],
    sizes: Tensor | None = None,
    original_sizes: Tensor | None = None,
    score_floor: float = 0.3,
    max_images: int = 9,
) -> Figure:
    """A grid of images with their objects (white, dashed) and detections (coloured by class).

    Args:
        images: `[B, 3, H, W]` uint8 RGB, the network's input.
        targets: objects in pixels of `images`.
        detections: in pixels of the original files if both sizes are given, else in pixels of `images`.
        sizes: `[B, 2]` (height, width) of the unpadded input; padding is cut off.
        original_sizes: `[B, 2]` (height, width) of the files.
        score_floor: detections below it are not drawn; the title of each image counts them.
        max_images: at most this many of the batch are drawn.
    """
    count = min(len(images), max_images)
    columns = max(1, min(3, count))
    rows = max(1, -(-count // columns))
    figure = _figure(4.6 * columns, (4.5 * images.shape[-2] / images.shape[-1] + 0.35) * rows + 0.45)
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes in grid:
        axes.set_axis_off()
    for i in range(count):
        height, width = images.shape[-2:] if sizes is None else sizes[i].tolist()
        grid[i].imshow(images[i, :, :height, :width].permute(1, 2, 0).cpu().numpy())
        found = detections.boxes[i].detach().cpu().double()
        if sizes is not None and original_sizes is not None:
            ratio = sizes[i].cpu().double() / original_sizes[i].cpu().double()
            found = found * ratio.flip(0).repeat(2)
        truth = _draw_objects(grid[i], targets, i, categories)
        drawn = (detections.valid[i] & (detections.scores[i] >= score_floor)).cpu()
        _draw_detections(grid[i], found[drawn], detections, i, drawn, categories)
        hidden = int(detections.valid[i].sum()) - int(drawn.sum())
        weaker = f" (+{hidden} weaker)" if hidden else ""
        title = f"{_count(truth, 'object')}, {_count(int(drawn.sum()), 'detection')}{weaker}"
        grid[i].set_title(title, fontsize=9)
    handles = [
        Line2D([], [], color="#999999", ls=(0, (4, 2)), lw=2, label="object (ground truth)"),
        Line2D([], [], color=COLORS[0], lw=2, label=f"detection with score ≥ {score_floor:g}, coloured by class"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return figure


def _draw_objects(axes: Axes, targets: Targets, i: int, categories: Sequence[Category]) -> int:
    boxes = targets.boxes[i][targets.valid[i]].cpu().tolist()
    for box, label in zip(boxes, targets.labels[i][targets.valid[i]].tolist(), strict=True):
        _draw_box(axes, box, _TRUTH, dashed=True)
        _tag(axes, box[0], box[3], categories[label].name, _TRUTH, above=False)
    return len(boxes)


def _draw_detections(
    axes: Axes, boxes: Tensor, detections: Detections, i: int, drawn: Tensor, categories: Sequence[Category]
) -> None:
    labels = detections.labels[i].cpu()[drawn].tolist()
    scores = detections.scores[i].detach().cpu()[drawn].tolist()
    # The best last, so that it lies on top
    for box, label, score in reversed(list(zip(boxes.tolist(), labels, scores, strict=True))):
        color = COLORS[label % len(COLORS)]
        _draw_box(axes, box, color, dashed=False)
        _tag(axes, box[0], box[1], f"{categories[label].name} {score:.2f}", color, above=True)


def _tag(axes: Axes, x: float, y: float, text: str, color: str, above: bool) -> None:
    """A label on the edge of a box, kept inside the picture: detections bear theirs above, objects theirs below."""
    bottom, top = axes.get_ylim()  # rows count downward
    room = 0.06 * (bottom - top)
    outside = y > top + room if above else y < bottom - room
    style = {"facecolor": color, "edgecolor": "none", "pad": 1.2, "alpha": 0.92}
    place: dict[str, Any] = {"ha": "left", "va": "bottom" if above == outside else "top", "clip_on": True}
    shown, font = drawable(text)
    place["fontproperties"] = FontProperties(fname=str(font), size=7)
    corner = max(x, axes.get_xlim()[0]), min(max(y, top), bottom)
    axes.text(*corner, shown, color="black", bbox=style, parse_math=False, **place)


def _draw_box(axes: Axes, box: Sequence[float], color: str, dashed: bool) -> None:
    x1, y1, x2, y2 = box
    rectangle = Rectangle(
        (x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=color, lw=1.6, ls=(0, (4, 2)) if dashed else "-"
    )
    rectangle.set_path_effects([patheffects.withStroke(linewidth=3.2, foreground="#000000aa")])
    axes.add_patch(rectangle)


def per_class_table(result: APResult, style: Literal["markdown", "csv"] = "markdown") -> str:
    """AP, AP50, AP75 and the number of objects of each class, worst defined class last; undefined cells are empty."""
    at = result.per_class_at
    rows = [
        (name, result.class_boxes[name], ap, float(at[name][0]), float(at[name][5]))
        for name, ap in sorted(result.per_class.items(), key=lambda item: (item[1] is None, -(item[1] or 0.0), item[0]))
    ]
    header = ("class", "objects", "AP", "AP50", "AP75")
    total = ("all", result.n_boxes, result.AP, result.AP50, result.AP75)
    digits = 4 if style == "markdown" else 6
    cells = [[r[0], str(r[1]), *(_cell(v, digits) for v in r[2:])] for r in (*rows, total)]
    if style == "csv":
        return csv_text([header, *cells])
    cells = [[_markdown(c) for c in row] for row in cells]
    width = [max(len(c) for c in column) for column in zip(header, *cells, strict=True)]
    pad = [[c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, width, strict=True))] for r in cells]
    head = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(header, width, strict=True))]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(width)]
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, rule, *pad))


def _markdown(text: str) -> str:
    """The text in a cell of a table; nothing in it is taken for Markdown or HTML."""
    escaped = html.escape(printable(text), quote=False)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", escaped)


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.{digits}f}"


def _known(name: str, value: float | None) -> str:
    return f"{name} undefined" if value is None else f"{name} {value:.3f}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes, xlabel: str, ylabel: str, limits: tuple[float, float, float, float] | None = None) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if limits is not None:
        axes.set_xlim(*limits[:2])
        axes.set_ylim(*limits[2:])


def _note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_GREY, fontsize=12)
