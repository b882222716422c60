import numpy as np
import pytest

from mgdet.errors import DataError
from mgdet.evaluation import DetectionArrays, EvaluationConfig, coco_ap, voc_ap
from mgdet.evaluation.average_precision import IOU_THRESHOLDS
from mgdet.evaluation.coco import CocoAP
from tests.evaluation.test_coco import THREE, dataset, gt_from, perfect
from tests.evaluation.test_evaluator import evaluated, split
from tests.reference import voc as oracle

PROTOCOLS = ("voc07", "voc12")


def expected_ap(gt, det, protocol):
    """AP [T, K] of the loop oracle, NaN where undefined."""
    out = np.full((len(IOU_THRESHOLDS), len(gt.categories)), np.nan)
    for k in range(len(gt.categories)):
        rows = [i for i in range(len(gt.boxes)) if gt.labels[i] == k]
        objects = [(int(gt.box_image[i]), gt.boxes[i].tolist(), bool(gt.iscrowd[i])) for i in rows]
        mine = [i for i in np.argsort(det.image, kind="stable").tolist() if det.labels[i] == k]
        found = [(int(det.image[i]), det.boxes[i].tolist(), float(det.scores[i])) for i in mine]
        for t, threshold in enumerate(IOU_THRESHOLDS.tolist()):
            value = oracle.average_precision(objects, found, threshold, protocol == "voc07")
            out[t, k] = np.nan if value is None else value
    return out


def random_pair(seed):
    """Few objects, some of them difficult or equal, and detections about them with tied scores; on a coarse grid."""
    rng = np.random.default_rng(seed)
    images, count = int(rng.integers(1, 5)), int(rng.integers(0, 12))
    annotations = []
    for n in range(count):
        x, y, w, h = (int(v) for v in (*rng.integers(0, 6, 2) * 10, *rng.integers(1, 5, 2) * 10))
        annotations.append((n, int(rng.integers(images)), int(rng.choice([5, 2])), (x, y, w, h), rng.random() < 0.3))
        if rng.random() < 0.2:
            annotations.append((n + 100, *annotations[-1][1:4], rng.random() < 0.5))
    gt = gt_from(dataset(annotations, images=range(images)))
    chosen = rng.integers(0, max(1, len(gt.boxes)), int(rng.integers(0, 30)) if len(gt.boxes) else 0)
    noise = rng.integers(-1, 2, (len(chosen), 4)) * rng.choice([0, 2, 5], (len(chosen), 1))
    boxes = (gt.boxes[chosen] + noise).reshape(-1, 4)
    strays = int(rng.integers(0, 6))
    corner = rng.integers(0, 60, (strays, 2))
    det = DetectionArrays(
        np.r_[gt.box_image[chosen], rng.integers(0, images, strays)].astype(np.int64),
        np.r_[boxes, np.concatenate([corner, corner + rng.integers(0, 40, (strays, 2))], axis=1)].astype(np.float64),
        rng.choice([rng.integers(0, 5) / 4, 0.5004, 0.4996, 0.5, rng.random()], len(chosen) + strays),
        np.r_[gt.labels[chosen], rng.integers(0, 3, strays)].astype(np.int64),
    )
    return gt, det


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(100))
def test_equals_the_loop_oracle(protocol, seed):
    gt, det = random_pair(seed)
    expected = expected_ap(gt, det, protocol)
    found = voc_ap(gt, det, protocol)
    np.testing.assert_allclose(found.ap, expected, atol=1e-12)
    defined = expected[~np.isnan(expected)]
    assert (pytest.approx(defined.mean(), abs=1e-12) if len(defined) else None) == found.AP


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_degenerate_input(protocol):
    gt = gt_from(dataset(THREE))
    assert voc_ap(gt, DetectionArrays.empty(), protocol).AP == 0.0
    assert voc_ap(gt, perfect(gt), protocol).AP == 1.0
    assert voc_ap(gt, perfect(gt), protocol).per_class == {"cat": 1.0, "dog": 1.0, "eel": None}
    for data in (dataset([]), dataset([], images=()), dataset([], categories=())):
        bare = gt_from(data)
        found = voc_ap(bare, DetectionArrays.empty(), protocol)
        assert found.AP is None
        assert found.metrics() == {}
    only = gt_from(dataset([(0, 3, 5, (10, 10, 50, 50), True)]))
    inside = DetectionArrays(np.array([1]), only.boxes.copy(), np.array([0.9]), np.array([0]))
    assert voc_ap(only, inside, protocol).metrics() == {}, "all objects are difficult"
    with pytest.raises(DataError, match="categories"):
        voc_ap(gt, DetectionArrays(np.array([0]), np.zeros((1, 4)), np.array([0.5]), np.array([7])), protocol)


def one_class(objects, found):
    """`objects`: xywh or (xywh, difficult) of one image; `found`: (xyxy, score)."""
    gt = gt_from(dataset([(n, 3, 5, *o) for n, o in enumerate(objects)], images=(3,)))
    zeros = np.zeros(len(found), dtype=np.int64)
    return gt, DetectionArrays(
        zeros, np.array([f[0] for f in found], dtype=float), np.array([f[1] for f in found]), zeros
    )


def test_difficult_objects_are_neither_right_nor_wrong():
    near, far = (0, 0, 10, 10), (50, 50, 10, 10)
    gt, det = one_class([(near, True), (far,)], [([0, 0, 10, 10], 0.9), ([0, 0, 10, 10], 0.8), ([50, 50, 60, 60], 0.7)])
    assert voc_ap(gt, det).AP == 1.0, "the second detection of a difficult object is ignored as well"


def test_a_detection_of_a_taken_object_is_wrong_even_if_it_overlaps_a_free_one():
    """COCO gives it the free one; VOC only asks about the one that it overlaps most."""
    gt, det = one_class([((0, 0, 10, 10),), ((2, 0, 10, 10),)], [([0, 0, 10, 10], 0.9), ([0.5, 0, 10.5, 10], 0.8)])
    assert voc_ap(gt, det, "voc12").AP50 == 0.5
    assert pytest.approx(1.0) == coco_ap(gt, det).AP50


def test_the_iou_has_to_exceed_the_threshold():
    gt, det = one_class([((0, 0, 10, 10),)], [([0, 0, 10, 5], 0.9)])
    assert voc_ap(gt, det).AP50 == 0.0
    assert pytest.approx(1.0) == coco_ap(gt, det).AP50


def test_scores_count_with_three_decimals():
    """The wrong detection has the lower score, but is first in its image, and both are written as 0.900."""
    gt, det = one_class([((0, 0, 10, 10),)], [([50, 50, 60, 60], 0.90001), ([0, 0, 10, 10], 0.90002)])
    assert voc_ap(gt, det).AP50 == 0.5
    gt, det = one_class([((0, 0, 10, 10),)], [([50, 50, 60, 60], 0.900), ([0, 0, 10, 10], 0.901)])
    assert voc_ap(gt, det).AP50 == 1.0


def test_eleven_points_by_hand():
    """Two of three objects, with a wrong detection between: recall 1/3 at precision 1, 2/3 at 2/3."""
    objects = [((0, 0, 10, 10),), ((20, 0, 10, 10),), ((40, 0, 10, 10),)]
    found = [([0, 0, 10, 10], 0.9), ([60, 60, 70, 70], 0.8), ([20, 0, 30, 10], 0.7)]
    gt, det = one_class(objects, found)
    assert pytest.approx((4 * 1 + 3 * 2 / 3) / 11) == voc_ap(gt, det, "voc07").AP50
    assert pytest.approx(1 / 3 + 2 / 9) == voc_ap(gt, det, "voc12").AP50


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_evaluator_honours_the_protocol(protocol):
    gt, det = split()
    config = EvaluationConfig(protocol=protocol)
    result = evaluated(gt, det, [[3, 1]], [[0, 2, 4, 5, 6]], config=config).compute()
    found = result.of(CocoAP)
    assert found.protocol == protocol
    image = np.repeat(np.arange(7), 6).reshape(7, 6)[det.valid.numpy()]
    arrays = DetectionArrays(image, *(t[det.valid].numpy() for t in (det.boxes, det.scores, det.labels)))
    np.testing.assert_allclose(found.ap, expected_ap(gt, arrays, protocol), atol=1e-12)
    metrics = result.metrics()
    assert {"val/AP", "val/AP50", "val/AP75", "val/AP/a", "val/divergence"} <= metrics.keys()
    assert not any(name.startswith("val/AR") or name in ("val/APs", "val/APm", "val/APl") for name in metrics)
    assert evaluated(gt, det, [[0, 1, 2, 3, 4, 5, 6]], config=config).compute().metrics() == metrics
