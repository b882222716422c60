"""Calibration, confusions and groups of objects; the whole analysis on data sets without anything."""

import json

import numpy as np
import pytest

from mgdet.evaluation.analysis import analyse
from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.calibration import calibration, confusion
from mgdet.evaluation.coco import coco_ap
from mgdet.evaluation.matching import coco_matches, overlaps
from mgdet.evaluation.page import evaluation_sections
from mgdet.evaluation.strata import by_crowdedness, by_positives, strata
from mgdet.ground_truth import GroundTruth
from tests.evaluation.test_matching import problem
from tests.reference import judging as oracle
from tests.reference.matching import iou


def test_calibration_equals_its_definition():
    for seed in range(10):
        gt, det = problem(seed, ties=seed % 2 == 0)
        matches = coco_matches(gt, det)
        found, counts = calibration(det, matches), ~matches.ignored
        expected = oracle.expected_error(det.scores[counts], matches.right[counts])
        assert found.error == pytest.approx(expected)
        assert found.detections.sum() == counts.sum()
    nothing = calibration(DetectionArrays.empty(), coco_matches(gt, DetectionArrays.empty()))
    assert (nothing.error, nothing.worst) == (None, None)


@pytest.mark.parametrize("sizes", [{}, {"objects": 0}, {"detections": 0}, {"objects": 30, "classes": 3}])
def test_confusion_equals_the_loop(sizes):
    for seed in range(10):
        gt, det = problem(seed, **sizes)
        kept = np.random.default_rng(seed).random(len(det.scores)) < 0.7
        assert (confusion(gt, det, kept) == oracle.confusion(gt, det, kept)).all()


def test_a_group_of_all_objects_has_the_ap_of_coco():
    for seed in range(4):
        gt, det = problem(seed, objects=20)
        everything = {"all": np.ones(20, dtype=bool), "none": np.zeros(20, dtype=bool)}
        whole, nothing = strata(gt, det, overlaps(gt, det, 0.5), everything)
        assert whole.ap == pytest.approx(coco_ap(gt, det, "pycocotools").AP)
        assert (nothing.objects, nothing.ap, nothing.recall) == (0, None, None)


def test_a_group_ignores_the_other_objects():
    """By the loop of the reference, in which the others are crowds that are matched like objects."""
    gt, det = problem(1, objects=20)
    gt = GroundTruth(**{**vars(gt), "iscrowd": np.zeros(20, dtype=bool)})
    chosen = gt.labels == 0
    (group,) = strata(gt, det, overlaps(gt, det, 0.5), {"one class": chosen})
    alone = GroundTruth(**{**vars(gt), "iscrowd": ~chosen})
    assert group.ap == pytest.approx(coco_ap(alone, det, "pycocotools").per_class["c0"])


def test_groups_partition_the_objects():
    gt, _ = problem(2, objects=30)
    crowded = by_crowdedness(gt)
    for g in np.flatnonzero(~gt.iscrowd):
        others = [
            o
            for o in range(30)
            if o != g
            and gt.box_image[o] == gt.box_image[g]
            and not gt.iscrowd[o]
            and iou(gt.boxes[g], gt.boxes[o], False) >= 0.1
        ]
        expected = ["alone", "overlaps 1 object", "overlaps 2 or more"][min(2, len(others))]
        assert [name for name, chosen in crowded.items() if chosen[g]] == [expected]
    counts = np.array([0, 1, 2, 4, 5, 9, 10, 99])
    groups = by_positives(counts)
    assert sum(chosen.astype(int) for chosen in groups.values()).tolist() == [1] * 8
    assert groups["2 to 4"].tolist() == [False, False, True, True, False, False, False, False]


@pytest.mark.parametrize("sizes", [{}, {"objects": 0}, {"detections": 0}, {"objects": 0, "detections": 0}])
def test_the_whole_analysis_is_plain_and_can_be_shown(sizes):
    gt, det = problem(5, **sizes)
    positives = {"classification": np.arange(len(gt.boxes))}
    found = analyse(gt, det, positives=positives)
    values = json.loads(json.dumps(found.as_json(gt), allow_nan=False))
    assert sum(each["count"] for name, each in values["errors"].items() if name != "missed") <= len(det.scores)
    titles = ["size", "crowdedness", "positives of classification"]
    assert list(values["groups"]) == titles
    shown = "".join(evaluation_sections(coco_ap(gt, det), found, gt))
    assert "<h2>Classes</h2>" in shown
    assert "nan" not in shown
    wrong, missed = found.images
    assert wrong.sum() == (found.shown & ~found.matches.right).sum()
    assert missed.sum() == (~gt.iscrowd).sum() - (found.shown & found.matches.right).sum()
