"""AP of weighted images is pycocotools' AP of a data set that has each image as often."""

import numpy as np
import pytest

from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.coco import coco_ap
from mgdet.evaluation.ranking import average_precisions, coco_rankings, mean_defined
from mgdet.ground_truth import GroundTruth
from tests.evaluation.test_matching import problem
from tests.reference.judging import sample


def larger(gt, det, factor=6):
    """The same boxes in a scale that has all of COCO's sizes."""
    gt = GroundTruth(**{**vars(gt), "boxes": gt.boxes * factor, "area": gt.area * factor**2})
    return gt, DetectionArrays(det.image, det.boxes * factor, det.scores, det.labels)


@pytest.mark.parametrize("sizes", [{}, {"objects": 0}, {"detections": 0}, {"classes": 1}])
def test_weighted_ap_is_that_of_pycocotools(sizes):
    for seed in range(3):
        gt, det = larger(*problem(seed, **{"images": 5, "objects": 25, "detections": 80, **sizes}))
        weights = np.random.default_rng(seed).multinomial(5, np.full(5, 0.2), size=2)
        weights = np.concatenate([np.ones((1, 5)), weights])
        ranked = coco_rankings(gt, det)
        found = {name: average_precisions(classes, weights) for name, classes in ranked.items()}
        for s, weight in enumerate(weights):
            expected = coco_ap(*sample(gt, det, weight), "pycocotools")
            for name, size in (("AP", "all"), ("APs", "small"), ("APm", "medium"), ("APl", "large")):
                value = float(mean_defined(found[size][s], axis=(0, 1)))
                known = getattr(expected, name)
                assert np.isnan(value) if known is None else value == pytest.approx(known, abs=1e-12)
            np.testing.assert_allclose(found["all"][s], expected.ap, atol=1e-12)


def test_ties_of_scores_are_resolved_as_pycocotools_does():
    for seed in range(6):
        gt, det = problem(seed, objects=20, ties=True)
        found = average_precisions(coco_rankings(gt, det)["all"], np.ones((1, 3)))[0]
        np.testing.assert_allclose(found, coco_ap(gt, det, "pycocotools").ap, atol=1e-12)
