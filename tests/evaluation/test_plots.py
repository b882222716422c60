import csv

import numpy as np
import pytest
import torch

from mgdet.evaluation import DetectionArrays, DivergenceAccumulator, DivergenceConfig, coco_ap
from mgdet.evaluation.divergence import DivergenceResult, Population
from mgdet.evaluation.draw import draw_boxes
from mgdet.evaluation.plots import detections_figure, per_class_table, pr_curves, score_iou_figure
from mgdet.structures import Category, Detections, pad_targets
from tests.evaluation.test_coco import THREE, dataset, gt_from, perfect


def texts(figure):
    """Everything written on a figure; drawing it first proves that it can be."""
    figure.canvas.draw()
    out = [t.get_text() for axes in figure.axes for t in [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]]
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()] + figure.legends
    return "\n".join(out + [t.get_text() for legend in legends for t in legend.get_texts()])


def test_pr_curves_name_their_population():
    gt = gt_from(dataset(THREE))
    text = texts(pr_curves(coco_ap(gt, perfect(gt))))
    for part in ("recall", "precision", "3 images, 3 objects", "Mean over 2 classes", "AP50 1.000", "cat", "n = 2"):
        assert part in text
    assert "eel" not in text  # no ground truth, no curve


@pytest.mark.slow
def test_pr_curves_of_many_classes_and_of_none():
    names = tuple((i, f"c{i:02d}") for i in range(1, 31))
    gt = gt_from(dataset([(i, 3, i, (i, i, 20, 20)) for i in range(1, 31)], categories=names))
    figure = pr_curves(coco_ap(gt, perfect(gt)))
    assert len(figure.axes[1].lines) == 10
    for empty in (gt_from(dataset([])), gt_from(dataset([], categories=()))):
        assert "no ground truth" in texts(pr_curves(coco_ap(empty, DetectionArrays.empty())))


ODD_NAMES = ("_private", "$a$ and $\\frac$", "cat\x1b[2J\ndog", "<b>|`x`", "=1+1")


def test_names_of_classes_are_only_text(tmp_path):
    """None is left out, obeyed or taken for a formula, in a picture or in a table."""
    names = tuple(enumerate(ODD_NAMES, start=1))
    gt = gt_from(dataset([(i, 3, i, (i, i, 20, 20)) for i, _ in names], categories=names))
    result = coco_ap(gt, perfect(gt))
    figure = pr_curves(result)
    figure.savefig(tmp_path / "pr.png")
    shown = texts(figure)
    for name in ("_private  1.000", "$a$ and $\\frac$  1.000", r"cat\x1b[2J\ndog", "<b>|`x`", "=1+1"):
        assert name in shown
    table = per_class_table(result)
    assert len(table.splitlines()) == 2 + len(names) + 1
    assert r"| &lt;b&gt;\|\`x\` " in table
    assert "\x1b" not in table + per_class_table(result, "csv")
    assert [row["class"] for row in csv.DictReader(per_class_table(result, "csv").splitlines())][:1] == [
        "$a$ and $\\frac$"
    ]
    assert "'=1+1," in per_class_table(result, "csv")


@pytest.mark.slow
def test_names_of_classes_in_a_picture_are_only_text(tmp_path):
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    targets = pad_targets([torch.tensor([[5.0, 5, 40, 40]])], [torch.tensor([0])])
    found = Detections(
        targets.boxes, torch.tensor([[0.9]]), torch.tensor([[0]]), torch.tensor([[True]]), torch.tensor([[0]])
    )
    for name in ODD_NAMES:
        figure = detections_figure(images, targets, found, [Category(1, name)])
        figure.savefig(tmp_path / "d.png")
        assert "\x1b" not in texts(figure)
        plain = draw_boxes(images[0], [[5.0, 5, 40, 40]], [0], [name.replace("\x1b", r"\x1b").replace("\n", r"\n")])
        assert draw_boxes(images[0], [[5.0, 5, 40, 40]], [0], [name]).tobytes() == plain.tobytes()


def test_score_iou_figure_prints_rho_and_n():
    rng = np.random.default_rng(0)
    iou = rng.uniform(0.5, 1, 400).astype(np.float32)
    populations = {"raw": {"pre_nms": Population(0.25, 31)}, "rescored": {"pre_nms": Population(0.75, 30)}}
    scores = {"raw": rng.random(400), "rescored": iou**2}
    figure = score_iou_figure(DivergenceResult("rescored", populations, 1234, iou, scores))
    text = texts(figure)
    for part in ("ρ = +0.250   n = 31 objects", "ρ = +0.750", "n = 1,234 (400 drawn", "IoU", "ranks the detections"):
        assert part in text
    assert len(figure.axes) == 3  # side by side, and a colour bar


def test_score_iou_figure_of_nothing():
    assert "no candidates" in texts(score_iou_figure(DivergenceAccumulator(DivergenceConfig()).compute()))
    lonely = DivergenceResult("raw", {"raw": {"pre_nms": Population(None, 0)}}, 1, np.array([0.9]), {"raw": np.ones(1)})
    assert "undefined" in texts(score_iou_figure(lonely))


@pytest.mark.parametrize("rescaled", [False, True])
def test_detections_figure(rescaled):
    images = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8)
    targets = pad_targets([torch.tensor([[5.0, 5, 40, 40]]), torch.zeros(0, 4)], [torch.tensor([1]), torch.zeros(0)])
    boxes = torch.zeros(2, 3, 4)
    boxes[0, 0], boxes[0, 1] = torch.tensor([6.0, 4, 42, 41]), torch.tensor([90.0, 60, 120, 80])
    scores = torch.tensor([[0.9, 0.4, 0.1], [0, 0, 0]])
    valid = torch.tensor([[True, True, True], [False] * 3])
    labels = torch.tensor([[1, 0, 0], [0, 0, 0]])
    sizes = torch.tensor([[60, 90], [64, 96]])
    if rescaled:
        boxes *= 2
    found = Detections(boxes, scores, labels, valid, torch.zeros_like(labels))
    more = {"sizes": sizes, "original_sizes": sizes * 2} if rescaled else {}
    figure = detections_figure(images, targets, found, [Category(1, "ant"), Category(2, "bee")], **more)
    text = texts(figure)
    for part in (
        "1 object, 2 detections (+1 weaker)",
        "0 objects, 0 detections",
        "bee 0.90",
        "ant 0.40",
        "ground truth",
    ):
        assert part in text
    drawn = figure.axes[0].patches[-1]
    assert (drawn.get_x(), drawn.get_width()) == pytest.approx((5.5, 36.0))
    assert len(detections_figure(images[:0], targets, found, []).axes) == 1


def test_per_class_table():
    gt = gt_from(dataset(THREE, categories=((5, "c|at"), (2, "do,g"), (90, "eel"))))
    result = coco_ap(gt, perfect(gt))
    lines = per_class_table(result).splitlines()
    assert lines[0].split() == ["|", "class", "|", "objects", "|", "AP", "|", "AP50", "|", "AP75", "|"]
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[1] for line in lines[2:]] == ["c\\|at", "do,g", "eel", "all"]
    rows = list(csv.DictReader(per_class_table(result, "csv").splitlines()))
    assert rows[1] == {"class": "do,g", "objects": "1", "AP": "1.000000", "AP50": "1.000000", "AP75": "1.000000"}
    assert rows[2] == {"class": "eel", "objects": "0", "AP": "", "AP50": "", "AP75": ""}
