"""Draw the README's picture of who learns what, docs/pictures/who_learns_what.png.

    uv run benchmarks/who_learns_what.py runs/quickstart

It takes a training image of the quickstart, the detector that the quickstart trained, and two assigners. Each panel
shows the anchors that learn one task from the image's object. Every number in the picture is counted or measured here.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from mgdet.assign.max_iou import MaxIoU
from mgdet.assign.mutual_guidance import MutualGuidance
from mgdet.boxes import pairwise_iou
from mgdet.data.dataset import ShardedDataset
from mgdet.inference.load import Trained, load_detector
from mgdet.microscope.subject import read_images
from mgdet.structures import Batch, Predictions

SAME, CLASSIFICATION, LOCALIZATION = "#4d4d4d", "#c04a00", "#0072b2"
"""After Okabe and Ito: colour-blind readers can tell them apart. Line widths and labels say the same."""
POSITION = 596
"""Row of the image in the training split: it holds one object, and the tasks disagree about it."""


def main() -> None:
    """Draw the picture from a run's best checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="runs/quickstart", help="directory of a trained RetinaNet")
    parser.add_argument("--position", type=int, default=POSITION, help="row of the image in the training split")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/who_learns_what.png"))
    args = parser.parse_args()
    trained = load_detector(args.run, ["data.loader.workers=0"], torch.device("cpu"))
    dataset = ShardedDataset(trained.experiment.data.uri, trained.experiment.data.train_split)
    (batch,) = read_images(dataset, trained.experiment, [args.position])
    draw(trained, batch, args.out)
    print(args.out)


def draw(trained: Trained, batch: Batch, out: Path) -> None:
    """Three panels side by side, as wide as a README shows them."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    predictions: Predictions = trained.detector(batch.images, batch.sizes)
    priors = predictions.priors
    overlap, mutual = (assigner(predictions, batch.targets) for assigner in (MaxIoU(), MutualGuidance()))
    static, cls, loc = (labels.gt_index[0] == 0 for labels in (overlap.cls, mutual.cls, mutual.loc))
    fit, score = measures(batch, predictions)
    number = int(static.sum())
    panels = (
        Panel(
            f"max IoU, both tasks:\nthe {number} anchors with IoU ≥ 0.5",
            SAME,
            static,
            static & ~(cls | loc),
            [f"predicts IoU {f:.2f}, score {s:.2f}" for f, s in zip(fit, score, strict=True)],
        ),
        Panel(
            f"mutual guidance, classification:\nthe {number} whose predicted boxes fit best",
            CLASSIFICATION,
            cls,
            cls & ~static,
            [f"predicts IoU {f:.2f}" for f in fit],
        ),
        Panel(
            f"mutual guidance, localization:\nthe {number} with the best overlap and score",
            LOCALIZATION,
            loc,
            loc & ~static,
            [f"score {s:.2f}" for s in score],
        ),
    )
    frame = torch.cat([priors.boxes[static | cls | loc], batch.targets.boxes[0]])
    figure, axes = plt.subplots(1, 3, figsize=(8.2, 3.25), dpi=200)
    figure.subplots_adjust(left=0.005, right=0.995, top=0.865, bottom=0.01, wspace=0.03)
    for axis, panel in zip(axes, panels, strict=True):
        show(axis, batch, priors.boxes, panel)
        axis.set_xlim(float(frame[:, 0].min()) - 2, float(frame[:, 2].max()) + 2)
        axis.set_ylim(float(frame[:, 3].max()) + 2, float(frame[:, 1].min()) - 2)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


class Panel(NamedTuple):
    """What one panel shows."""

    title: str
    color: str
    positive: Tensor  # [A] bool
    marked: Tensor  # [A] bool, those of `positive` that the other rule does not choose
    texts: list[str]  # why a prior is marked, for each of A


def measures(batch: Batch, predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Of each prior `[A]`: the IoU of its predicted box with the object, and its score for the object's class."""
    fit = pairwise_iou(batch.targets.boxes, predictions.boxes)[0, 0]
    return fit, predictions.logits[0, :, int(batch.targets.labels[0, 0])].sigmoid()


def show(axis: Axes, batch: Batch, anchors: Tensor, panel: Panel) -> None:
    """The image, its object, and the anchors that learn; the marked ones with bold lines and a text."""
    pixels = batch.images[0].permute(1, 2, 0).float()
    axis.imshow((255 - (255 - pixels) * 0.5).byte().numpy(), interpolation="bicubic")
    axis.set(xticks=[], yticks=[], facecolor="#f2f2f2")
    axis.set_title(panel.title, fontsize=9.5, color=panel.color)
    rectangle(axis, batch.targets.boxes[0, 0], "black", 3)
    for box in anchors[panel.positive & ~panel.marked]:
        rectangle(axis, box, SAME, 1)
    for number, index in enumerate(panel.marked.nonzero()[:, 0].tolist()):
        rectangle(axis, anchors[index], panel.color, 2.6)
        write(axis, anchors[index], panel.texts[index], panel.color, bottom=number % 2 == 1)


def write(axis: Axes, box: Tensor, text: str, color: str, bottom: bool) -> None:
    """A text inside the box, at its upper or lower right corner."""
    _, y1, x2, y2 = box.tolist()
    style = {"facecolor": color, "edgecolor": "none", "pad": 1.5}
    y, side = (y2 - 1, "bottom") if bottom else (y1 + 1, "top")
    axis.text(x2 - 1, y, text, color="white", fontsize=8, ha="right", va=side, bbox=style)


def rectangle(axis: Axes, box: Tensor, color: str, width: float) -> None:
    """The outline of one box."""
    x1, y1, x2, y2 = box.tolist()
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=color, linewidth=width))


if __name__ == "__main__":
    main()
