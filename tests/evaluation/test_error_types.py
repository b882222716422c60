"""Types of errors and what they cost equal a loop, and `tidecv` where that is installed."""

import sys
from unittest.mock import MagicMock

import numpy as np
import pytest

from mgdet.evaluation import ranking
from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.error_types import (
    ERROR_TYPES,
    NEAR_IOU,
    OF_DETECTIONS,
    error_costs,
    error_rankings,
    error_types,
)
from mgdet.evaluation.matching import coco_matches, overlaps
from mgdet.ground_truth import GroundTruth
from tests.evaluation.test_matching import problem
from tests.reference import judging as oracle


def typed(gt, det):
    return error_types(gt, det, overlaps(gt, det, NEAR_IOU, same_class=False), coco_matches(gt, det))


def costs(gt, det, weights=None):
    weights = np.ones((1, len(gt.image_ids))) if weights is None else weights
    return error_costs(error_rankings(gt, det, typed(gt, det)), weights)


SIZES = [{}, {"objects": 0}, {"detections": 0}, {"objects": 40}, {"classes": 1}, {"detections": 4}]


@pytest.mark.parametrize("sizes", SIZES)
def test_types_equal_the_loop(sizes):
    for seed in range(8):
        gt, det = problem(seed, ties=seed % 2 == 0, **sizes)
        found = typed(gt, det)
        kind, corrects, missed, _ = oracle.error_types(gt, det)
        names = [None if k < 0 else OF_DETECTIONS[k] for k in found.type]
        assert names == [kind[d] for d in range(len(det.scores))]
        assert {d: g for d, g in enumerate(found.corrects) if g >= 0} == corrects
        assert set(found.missed.tolist()) == missed


@pytest.mark.parametrize("sizes", SIZES[2:])
def test_costs_equal_the_loop(sizes):
    """With crowds among the objects, and every other time with equal scores."""
    for seed in range(8):
        gt, det = problem(seed, ties=seed % 2 == 0, **sizes)
        if gt.iscrowd.all():
            continue
        found = costs(gt, det)
        base, expected = oracle.error_costs(gt, det)
        assert found.ap[0] == pytest.approx(base, abs=1e-12)
        assert dict(zip(ERROR_TYPES, found.rise[0], strict=True)) == pytest.approx(expected, abs=1e-12)


def test_costs_of_weighted_images_are_those_of_the_repeated_images():
    gt, det = problem(3, images=4, objects=20, detections=60)
    weights = np.random.default_rng(0).multinomial(4, np.full(4, 0.25), size=5).astype(float)
    found = costs(gt, det, weights)
    for s, weight in enumerate(weights):
        repeated = costs(*oracle.sample(gt, det, weight))
        assert found.ap[s] == pytest.approx(repeated.ap[0], abs=1e-12, nan_ok=True)
        np.testing.assert_allclose(found.rise[s], repeated.rise[0], atol=1e-12)


def test_each_type_of_error():
    gt = GroundTruth(
        image_ids=np.array([1, 2]),
        heights=np.full(2, 100),
        widths=np.full(2, 100),
        box_image=np.array([0, 0, 1]),
        boxes=np.array([[0, 0, 10, 10], [40, 40, 60, 60], [0, 0, 10, 10]], dtype=float),
        labels=np.array([0, 1, 0]),
        iscrowd=np.zeros(3, dtype=bool),
        area=np.array([100.0, 400, 100]),
        categories=problem(0)[0].categories,
    )
    cases = {
        None: ([0, 0, 10, 10], 0),
        "duplicate": ([0, 0, 10, 9.5], 0),
        "location": ([0, 0, 10, 4], 0),
        "class": ([40, 40, 60, 60], 0),
        "both": ([40, 40, 60, 48], 0),
        "background": ([80, 80, 90, 90], 0),
    }
    boxes = np.array([box for box, _ in cases.values()], dtype=float)
    scores = np.linspace(0.9, 0.1, len(cases))
    det = DetectionArrays(np.zeros(len(cases), dtype=int), boxes, scores, np.array([k for _, k in cases.values()]))
    found = typed(gt, det)
    assert [None if k < 0 else OF_DETECTIONS[k] for k in found.type] == list(cases)
    assert found.missed.tolist() == [2], "the square is found by the detection whose class would be corrected"
    assert found.corrects.tolist() == [-1, -1, -1, 1, -1, -1]


@pytest.mark.parametrize("seed", range(6))
def test_costs_equal_tidecv(seed, monkeypatch):
    """Without crowds and ties, where they differ on purpose. `pip install --no-deps tidecv` is enough."""
    for drawn in ("cv2", "seaborn", "appdirs"):  # it draws with them
        try:
            __import__(drawn)
        except ImportError:
            monkeypatch.setitem(sys.modules, drawn, MagicMock())
    tidecv = pytest.importorskip("tidecv", reason="it is not installed")
    monkeypatch.setattr(ranking, "RECALL_THRESHOLDS", np.arange(101) / 100)  # COCO's differ in their last bits
    rng = np.random.default_rng(seed)
    gt, det = problem(seed, images=6, objects=37, detections=150)
    shift = rng.uniform(-1.5, 1.5, (150, 4))  # no two IoUs are equal
    det = DetectionArrays(det.image, det.boxes + shift.clip(-1.4, 1.4), det.scores, det.labels)
    gt = GroundTruth(**{**vars(gt), "iscrowd": np.zeros(37, dtype=bool)})
    truth, found = tidecv.Data("truth"), tidecv.Data("found")
    for image in range(6):
        truth.add_image(image, str(image))
    for g in range(37):
        truth.add_ground_truth(int(gt.box_image[g]), int(gt.labels[g]), _xywh(gt.boxes[g]))
    for k, category in enumerate(gt.categories):
        truth.add_class(k, category.name)
    for d in range(150):
        found.add_detection(int(det.image[d]), int(det.labels[d]), float(det.scores[d]), _xywh(det.boxes[d]))
    run = tidecv.TIDE().evaluate(truth, found, mode=tidecv.TIDE.BOX)
    mine = costs(gt, det)
    assert mine.ap[0] * 100 == pytest.approx(run.ap, abs=1e-6)
    theirs = list(run.fix_main_errors().values())
    np.testing.assert_allclose(mine.rise[0] * 100, theirs, atol=1e-6)


def _xywh(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
