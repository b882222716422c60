"""COCO's matching equals its loop and pycocotools, and the best F1 its definition."""

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.coco import _annotations, _results
from mgdet.evaluation.matching import coco_matches, operating_points
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Category
from tests.reference import matching as oracle


def problem(seed, images=3, classes=2, objects=9, detections=40, ties=False):
    """Crowded boxes on a coarse grid, so that IoUs and scores tie, with crowds among the objects."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        corner = rng.integers(0, 8, (count, 2)) * 4.0
        return np.concatenate([corner, corner + rng.integers(1, 5, (count, 2)) * 4.0], axis=1)

    truth = boxes(objects)
    gt = GroundTruth(
        image_ids=rng.permutation(100)[:images],
        heights=np.full(images, 64),
        widths=np.full(images, 64),
        box_image=rng.integers(0, images, objects),
        boxes=truth,
        labels=rng.integers(0, classes, objects),
        iscrowd=rng.random(objects) < 0.25,
        area=np.prod(truth[:, 2:] - truth[:, :2], axis=1),
        categories=tuple(Category(7 - k, f"c{k}") for k in range(classes)),
    )
    scores = rng.integers(0, 6, detections) / 8 if ties else rng.permutation(detections) / detections
    det = DetectionArrays(
        rng.integers(0, images, detections), boxes(detections), scores, rng.integers(0, classes, detections)
    )
    return gt, det


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("sizes", [{}, {"objects": 0}, {"detections": 0}, {"objects": 60}, {"images": 1, "classes": 1}])
def test_matches_equal_the_loop(threshold, sizes):
    for seed in range(10):
        for max_dets in (3, 100):
            gt, det = problem(seed, ties=seed % 2 == 0, **sizes)
            found = coco_matches(gt, det, threshold, max_dets)
            expected = oracle.coco_matches(gt, det, threshold, max_dets)
            for d, (outcome, thing) in expected.items():
                assert (found.right[d], found.ignored[d]) == (outcome == "right", outcome == "ignored")
                assert found.object[d] == (-1 if thing is None else thing)


@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_matches_equal_pycocotools(threshold, capsys):
    for seed in range(20):
        gt, det = problem(seed, objects=20)
        found = coco_matches(gt, det, threshold)
        sides = []
        for dataset in (_annotations(gt), _results(gt, det)):
            coco = COCO()
            coco.dataset = dataset
            coco.createIndex()
            sides.append(coco)
        judge = COCOeval(*sides, iouType="bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.iouThrs = np.array([threshold])
        judge.evaluate()
        seen = 0
        for entry in filter(None, judge.evalImgs):
            for number, match, ignored in zip(entry["dtIds"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True):
                seen += 1
                assert found.object[number - 1] == match - 1
                assert (found.right[number - 1], found.ignored[number - 1]) == (
                    match > 0 and not ignored,
                    bool(ignored),
                )
        assert seen == len(det.scores)


def test_the_best_f1_is_that_of_the_best_threshold():
    for seed in range(40):
        gt, det = problem(seed, ties=seed % 2 == 0)
        matches = coco_matches(gt, det, 0.5, 5)
        for label, point in enumerate(operating_points(gt, det, matches).values()):
            mine = (det.labels == label) & ~matches.ignored
            objects = int((~gt.iscrowd & (gt.labels == label)).sum())
            assert (point.objects, point.detections) == (objects, mine.sum())
            f1, score, precision, recall = oracle.best_f1(
                matches.right[mine], np.ones(mine.sum(), dtype=bool), det.scores[mine].tolist(), objects
            )
            if score is None:
                assert point.f1 is None
                continue
            assert point.f1 == pytest.approx(f1)
            assert point.score == score
            assert (point.precision, point.recall) == (pytest.approx(precision), pytest.approx(recall))


def test_two_classes_of_one_name_are_kept_apart():
    gt, det = problem(0)
    gt = GroundTruth(**{**vars(gt), "categories": (Category(4, "a"), Category(9, "a"))})
    assert list(operating_points(gt, det, coco_matches(gt, det))) == ["a (4)", "a (9)"]
