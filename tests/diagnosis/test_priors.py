"""Objects against anchors: the one nearest place of each shape is as good as all places."""

import numpy as np
import pytest
import torch

from mgdet.boxes import pairwise_iou
from mgdet.config import load
from mgdet.data.transforms import FixedSize
from mgdet.diagnosis.base import NO_ID, Data, Split
from mgdet.diagnosis.priors import Inputs, best_ious, inputs_of, priors, shapes_of
from mgdet.ground_truth import GroundTruth
from mgdet.models.anchors import AnchorConfig, grid_priors
from mgdet.structures import Category, PriorLayout


def split_of(boxes, size=(96, 128), labels=None):
    """A split of one image with these objects, without its picture."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    n = len(boxes)
    truth = GroundTruth(
        image_ids=np.array([7]),
        heights=np.array([size[0]]),
        widths=np.array([size[1]]),
        box_image=np.zeros(n, dtype=np.int64),
        boxes=boxes,
        labels=np.zeros(n, dtype=np.int64) if labels is None else np.asarray(labels),
        iscrowd=np.zeros(n, dtype=bool),
        area=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        categories=(Category(1, "a"), Category(2, "b")),
    )
    return Split("train", truth, ["a.jpg"], np.full(n, NO_ID), np.arange(n), [], lambda row: b"")


def random_boxes(rng, n, width, height):
    corners = rng.uniform(0, 1, (n, 2, 2)) * [width, height]
    low, high = corners.min(axis=1), corners.max(axis=1)
    return np.concatenate([low, np.maximum(high, low + 0.5)], axis=1)


@pytest.mark.parametrize(
    "anchors",
    [
        AnchorConfig(sizes=(16, 32, 64, 100, 200), scales=2),
        AnchorConfig(sizes=(8, 16, 32, 64, 128), scales=1, ratios=(0.3, 2.5), offset=0.5, rounded=False),
    ],
    ids=["torchvision", "exact"],
)
@pytest.mark.parametrize("size", [(128, 256), (96, 160)], ids=str)  # the second is not divided by all strides
def test_best_ious_are_those_of_all_anchors(anchors, size):
    height, width = size
    boxes = random_boxes(np.random.default_rng(0), 60, width, height)
    grids = [(-(-height // s), -(-width // s)) for s in (8, 16, 32, 64, 128)]
    layout = PriorLayout(points=False, per_location=anchors.per_location)
    all_of = grid_priors(anchors.generator(), size, grids, torch.device("cpu"), layout, anchors.offset)
    wanted = [pairwise_iou(torch.from_numpy(boxes), all_of[k].boxes.double()).amax(dim=1) for k in range(5)]
    found = best_ious(Inputs(boxes, np.tile(size, (60, 1))), shapes_of(anchors), anchors.offset)
    np.testing.assert_allclose(found, torch.stack(wanted, dim=1), atol=1e-6)


def test_objects_are_resized_and_inputs_padded():
    things, inputs = inputs_of(split_of([[0, 0, 64, 48]]), FixedSize(height=192, width=64), divisor=128)
    assert things.tolist() == [0]
    assert inputs.boxes.tolist() == [[0, 0, 32, 96]]
    assert inputs.padded.tolist() == [[256, 128]]


def findings(boxes, **anchors):
    resize = {"name": "fixed", "height": 96, "width": 128}
    overrides = {f"model.anchors.{key}": value for key, value in anchors.items()}
    experiment = load({"base": "quickstart"}, {"data.transform.resize": resize, **overrides})
    data = Data("x", {"train": split_of(boxes)}, (Category(1, "a"), Category(2, "b")), {})
    return {finding.kind: finding for finding in priors(experiment)(data)}


def test_objects_that_no_anchor_reaches_are_named_and_better_anchors_suggested():
    small = [[x + 4, 4, x + 12, 12] for x in range(0, 100, 16)]
    found = findings(small, sizes=[32, 64, 128, 256, 512])
    assert [case.object for case in found["unreached"].cases] == list(range(7))
    assert "7 of 7 objects" in found["unreached"].text
    assert "no object has its best anchor on P4, P5, P6, P7" in found["idle_levels"].text
    assert "0 instead of 7 objects" in found["suggested"].text
    fitting = findings(small, sizes=[8, 16, 32, 64, 128])
    assert not {"unreached", "some_unreached", "suggested"} & set(fitting)


def test_objects_below_the_finest_stride():
    found = findings([[0, 0, 7, 7], [0, 0, 7, 9]], sizes=[8, 16, 32, 64, 128])
    assert [case.object for case in found["below_stride"].cases] == [0]
