import contextlib
import dataclasses
import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgdet.errors import ConfigError, DataError, NonFiniteError
from mgdet.evaluation import DetectionArrays, coco_ap
from mgdet.evaluation.coco import _run_hotcoco, _run_pycocotools
from mgdet.evaluation.coco import xywh as coco_xywh
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Category

PAIRS = Path(__file__).parents[2].parent / "shared" / "data" / "coco_eval"
HOTCOCO = importlib.util.find_spec("hotcoco") is not None
BACKENDS = ("faster", *(["hotcoco"] if HOTCOCO else []), "pycocotools")
needs_hotcoco = pytest.mark.skipif(not HOTCOCO, reason="hotcoco, one of the development dependencies, is missing")
ONE = pytest.approx(1.0, abs=1e-12)  # pycocotools divides by (tp + fp + 2e-16)


def xyxy(xywh):
    boxes = np.array(xywh, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def gt_from(data):
    """Flat ground truth of a COCO dictionary; classes in the order of the file, which need not be that of their ids."""
    row = {image["id"]: i for i, image in enumerate(data["images"])}
    label = {c["id"]: i for i, c in enumerate(data["categories"])}
    anns = data["annotations"]
    return GroundTruth(
        image_ids=np.array(list(row), dtype=np.int64),
        heights=np.array([i["height"] for i in data["images"]], dtype=np.int64),
        widths=np.array([i["width"] for i in data["images"]], dtype=np.int64),
        box_image=np.array([row[a["image_id"]] for a in anns], dtype=np.int64),
        boxes=xyxy([a["bbox"] for a in anns]),
        labels=np.array([label[a["category_id"]] for a in anns], dtype=np.int64),
        iscrowd=np.array([a.get("iscrowd", 0) for a in anns], dtype=bool),
        area=np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in anns], dtype=np.float64),
        categories=tuple(Category(c["id"], c["name"]) for c in data["categories"]),
    )


def det_from(results, gt):
    row = {int(i): n for n, i in enumerate(gt.image_ids)}
    label = {c.id: i for i, c in enumerate(gt.categories)}
    return DetectionArrays(
        image=np.array([row[r["image_id"]] for r in results], dtype=np.int64),
        boxes=xyxy([r["bbox"] for r in results]),
        scores=np.array([r["score"] for r in results], dtype=np.float64),
        labels=np.array([label[r["category_id"]] for r in results], dtype=np.int64),
    )


def dataset(annotations, categories=((5, "cat"), (2, "dog"), (90, "eel")), images=(77, 3, 1000)):
    """`annotations`: (id, image, category, xywh) or with a trailing iscrowd."""
    return {
        "images": [{"id": i, "height": 200, "width": 200} for i in images],
        "categories": [{"id": i, "name": n} for i, n in categories],
        "annotations": [
            {"id": a[0], "image_id": a[1], "category_id": a[2], "bbox": list(a[3]), "iscrowd": int(len(a) > 4 and a[4])}
            for a in annotations
        ],
    }


THREE = [
    (0, 3, 5, (10, 10, 50, 50)),
    (1, 77, 2, (20, 20, 30, 80)),
    (2, 1000, 5, (100, 100, 99, 97)),
]


def perfect(gt):
    keep = ~gt.iscrowd
    n = int(keep.sum())
    return DetectionArrays(gt.box_image[keep], gt.boxes[keep], np.linspace(0.9, 0.5, n), gt.labels[keep])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("folder", "truth", "results"),
    [
        ("val2014_100", "instances_val2014_100.json", "instances_val2014_fakebbox100_results.json"),
        ("synthetic_stress", "gt.json", "dt.json"),
    ],
)
def test_equals_published_numbers(backend, folder, truth, results):
    if not (PAIRS / folder).is_dir():
        pytest.skip(f"the reference pairs are not at {PAIRS}")
    gt = gt_from(json.loads((PAIRS / folder / truth).read_text()))
    expected = json.loads((PAIRS / folder / "expected.json").read_text())["bbox"]
    found = coco_ap(gt, det_from(json.loads((PAIRS / folder / results).read_text()), gt), backend)
    for name, value in expected["stats"].items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-9), name
    for category, ap in zip(gt.categories, found.per_class.values(), strict=True):
        value = expected["per_category_AP"][str(category.id)]
        assert ap == (None if value == -1 else pytest.approx(value, abs=1e-9)), category
    assert found.metrics()["val/AP"] == found.AP
    assert all(type(v) is float and v >= 0 for v in found.metrics().values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_perfect_detector_with_ids_from_zero_and_category_gaps(backend):
    gt = gt_from(dataset(THREE))
    found = coco_ap(gt, perfect(gt), backend)
    assert found.AP == ONE
    assert found.AR100 == 1.0
    assert found.per_class == {"cat": ONE, "dog": ONE, "eel": None}
    assert found.class_boxes == {"cat": 2, "dog": 1, "eel": 0}
    assert found.APs is None
    assert "val/APs" not in found.metrics()
    assert "val/AP/eel" not in found.metrics()
    assert found.metrics()["val/AP/dog"] == ONE
    assert (found.n_images, found.n_boxes, found.n_detections) == (3, 3, 3)
    assert found.precision.shape == (10, 101, 3)
    assert np.isnan(found.per_class_at["eel"]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_classes_keep_their_order_when_ids_are_unordered(backend):
    gt = gt_from(dataset(THREE))
    all_det = perfect(gt)
    only_dogs = all_det.labels == 1
    det = DetectionArrays(*(getattr(all_det, f)[only_dogs] for f in ("image", "boxes", "scores", "labels")))
    found = coco_ap(gt, det, backend)
    assert found.per_class == {"cat": 0.0, "dog": ONE, "eel": None}
    np.testing.assert_allclose(found.precision[:, :, 1], 1, atol=1e-12)
    assert (found.precision[:, :, 2] == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_detections_is_zero(backend):
    found = coco_ap(gt_from(dataset(THREE)), DetectionArrays.empty(), backend)
    assert found.AP == found.AP50 == found.AR100 == 0.0
    assert found.per_class["eel"] is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("data", [dataset([]), dataset([], images=()), dataset([], categories=())])
def test_no_ground_truth_is_undefined(backend, data):
    gt = gt_from(data)
    det = DetectionArrays.empty()
    if len(gt.image_ids) and gt.categories:
        det = DetectionArrays(np.array([0]), np.array([[0.0, 0, 9, 9]]), np.array([0.5]), np.array([1]))
    found = coco_ap(gt, det, backend)
    assert found.AP is None
    assert found.metrics() == {}


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_without_objects_only_adds_false_positives(backend):
    gt = gt_from(dataset(THREE[:2]))  # image 1000 is empty
    good = perfect(gt)
    bad = DetectionArrays(
        np.r_[good.image, 2],
        np.r_[good.boxes, [[0.0, 0, 50, 50]]],
        np.r_[good.scores, 0.99],
        np.r_[good.labels, 1],
    )
    assert coco_ap(gt, good, backend).AP == ONE
    assert coco_ap(gt, bad, backend).per_class == {"cat": ONE, "dog": pytest.approx(0.5), "eel": None}


@pytest.mark.parametrize("backend", BACKENDS)
def test_crowd_is_neither_found_nor_missed(backend):
    gt = gt_from(dataset([*THREE, (3, 3, 5, (100, 100, 60, 60), 1), (4, 3, 90, (0, 0, 60, 60), 1)]))
    good = perfect(gt)
    assert len(good.scores) == 3
    inside = DetectionArrays(
        np.r_[good.image, 1, 1],
        np.r_[good.boxes, [[100.0, 100, 130, 130], [130, 130, 160, 160]]],
        np.r_[good.scores, 0.99, 0.98],
        np.r_[good.labels, 0, 0],
    )
    for det in (good, inside):
        found = coco_ap(gt, det, backend)
        assert found.AP == ONE
        assert found.per_class["eel"] is None  # nothing but a crowd
        assert found.n_boxes == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_are_broken_by_the_order_of_the_detections(backend):
    gt = gt_from(dataset(THREE[:1]))
    right, wrong = [10.0, 10, 60, 60], [100.0, 100, 150, 150]

    def ap(*boxes):
        det = DetectionArrays(np.array([1, 1]), np.array(boxes), np.array([0.5, 0.5]), np.array([0, 0]))
        return coco_ap(gt, det, backend).AP

    assert ap(right, wrong) == ONE
    assert ap(wrong, right) == pytest.approx(0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lower_limit_adds_a_recall_and_changes_nothing_else(backend):
    gt = gt_from(dataset([(i, 3, 5, (i * 10, 5, 9, 9)) for i in range(15)]))
    det = perfect(gt)
    plain, five = coco_ap(gt, det, backend), coco_ap(gt, det, backend, max_dets=5)
    assert five.metrics().pop("val/AR5") == pytest.approx(5 / 15)
    assert {k: v for k, v in five.metrics().items() if k != "val/AR5"} == plain.metrics()
    assert plain.metrics()["val/AR10"] == pytest.approx(10 / 15)


def crowded():
    """150 objects of a class in an image, all of them detected, and some wrong detections among the best."""
    gt = gt_from(dataset([(i, 3, 5, (i % 15 * 12, i // 15 * 12, 9 + i % 40, 9)) for i in range(150)]))
    good = perfect(gt)
    score = np.random.default_rng(0).permutation(200) / 200
    stray = np.tile([190.0, 190, 199, 199], (50, 1))
    return gt, DetectionArrays(
        np.r_[good.image, np.full(50, good.image[0])], np.r_[good.boxes, stray], score, np.zeros(200, dtype=np.int64)
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_dets", [5, 120, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (100, 300))])
def test_a_higher_limit_counts_in_ap_as_in_pycocotools(backend, max_dets):
    gt, det = crowded()
    largest = max(100, max_dets)
    precision, recall = _run_pycocotools(gt, det, [1, 10, largest])
    found = coco_ap(gt, det, backend, max_dets)
    defined = [precision[..., a, -1] for a in range(4)]
    for name, values in zip(("AP", "APs", "APm", "APl"), defined, strict=True):
        expected = values[values > -1]
        assert getattr(found, name) == (pytest.approx(expected.mean(), abs=1e-12) if expected.size else None), name
    for name, area in (("ARs", 1), ("ARm", 2)):
        values = recall[:, :, area, -1]
        assert getattr(found, name) == (pytest.approx(values[values > -1].mean()) if (values > -1).any() else None)
    plain = coco_ap(gt, det, backend)
    assert (found.AP > plain.AP + 0.05) == (max_dets > 100)
    assert (found.AR1, found.AR10, found.AR100) == (plain.AR1, plain.AR10, plain.AR100)
    assert found.metrics()[f"val/AR{max_dets}"] == found.AR_max
    assert set(found.metrics()) == {*plain.metrics(), f"val/AR{max_dets}"}


@given(st.lists(st.tuples(*[st.integers(0, 400_000)] * 4), min_size=1, max_size=20), st.sampled_from([10, 100, 1000]))
def test_decimal_boxes_survive_the_round_trip(boxes, unit):
    xywh = np.array(boxes) / unit
    assert coco_xywh(xyxy(xywh)).tolist() == xywh.tolist()


def test_nothing_is_printed(capsys):
    gt = gt_from(dataset(THREE))
    for backend in BACKENDS:
        coco_ap(gt, perfect(gt), backend)
    assert capsys.readouterr() == ("", "")


def test_classes_of_one_name_stay_apart():
    gt = gt_from(dataset(THREE, categories=((5, "cat"), (2, "cat"), (90, "eel"))))
    assert coco_ap(gt, perfect(gt)).per_class == {"cat (5)": 1.0, "cat (2)": 1.0, "eel": None}


def test_bad_input_is_refused():
    gt = gt_from(dataset(THREE))
    one = np.array([0])
    box = np.array([[0.0, 0, 9, 9]])
    with pytest.raises(DataError, match="image runs from 3 to 3"):
        coco_ap(gt, DetectionArrays(one + 3, box, np.array([0.5]), one))
    with pytest.raises(DataError, match="other data"):
        coco_ap(gt, DetectionArrays(one, box, np.array([0.5]), one + 7))
    with pytest.raises(DataError, match="scores has 2 rows"):
        coco_ap(gt, DetectionArrays(one, box, np.array([0.5, 0.1]), one))
    with pytest.raises(NonFiniteError, match=r"1 of 1 detections .* image id 77"):
        coco_ap(gt, DetectionArrays(one, box * np.nan, np.array([0.5]), one))
    with pytest.raises(DataError, match=r"image ids .* \(3 repeat\)"):
        GroundTruth(**{**vars(gt), "image_ids": np.array([3, 3, 1])})


def random_pair(seed, ties):
    rng = np.random.default_rng(seed)
    n, m, d = rng.integers(1, 6), rng.integers(0, 25), rng.integers(0, 60)
    corner = rng.uniform(0, 150, (m, 2)).round(2)
    size = rng.uniform(1, 120, (m, 2)).round(2)
    gt = GroundTruth(
        image_ids=rng.permutation(1000)[:n],
        heights=np.full(n, 300),
        widths=np.full(n, 300),
        box_image=rng.integers(0, n, m),
        boxes=np.concatenate([corner, corner + size], axis=1),
        labels=rng.integers(0, 3, m),
        iscrowd=rng.random(m) < 0.15,
        area=size.prod(axis=1) * 0.8,
        categories=(Category(9, "a"), Category(1, "b"), Category(4, "c")),
    )
    image, labels = rng.integers(0, n, d), rng.integers(0, 3, d)
    start = rng.uniform(0, 150, (d, 2))
    boxes = np.concatenate([start, start + rng.uniform(1, 100, (d, 2))], axis=1)
    if m:
        copied = rng.random(d) < 0.7
        source = rng.integers(0, m, d)
        boxes = np.where(copied[:, None], gt.boxes[source] + rng.normal(0, 4, (d, 4)), boxes)
        image, labels = np.where(copied, gt.box_image[source], image), np.where(copied, gt.labels[source], labels)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
    scores = rng.integers(1, 8, d) / 8 if ties else (rng.permutation(d) + 1) / (d + 1)
    return gt, DetectionArrays(image, boxes, scores, labels)


@given(seed=st.integers(0, 2**32 - 1), ties=st.booleans())
def test_backends_agree(seed, ties):
    gt, det = random_pair(seed, ties)
    a, b = coco_ap(gt, det, "faster"), coco_ap(gt, det, "pycocotools")
    assert a.metrics() == pytest.approx(b.metrics(), abs=1e-12)
    assert a.per_class == pytest.approx(b.per_class, abs=1e-12)
    np.testing.assert_allclose(a.precision, b.precision, atol=1e-12)


@needs_hotcoco
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(6, 600))])
def test_hotcoco_equals_pycocotools_to_the_bit(seed):
    """All curves and recalls, in every range of areas and at every limit; crowds and empty sides included."""
    limits = ([1, 10, 100], [1, 2, 5], [1, 10, 100, 300])[seed % 3]
    check_hotcoco(*random_pair(seed, ties=seed % 2 == 0), limits)


@needs_hotcoco
def test_hotcoco_with_many_detections_of_an_image():
    gt, det = random_pair(5, ties=True)
    assert gt.iscrowd.any()
    rng = np.random.default_rng(0)
    index = rng.integers(0, len(det.scores), 1500)
    boxes = det.boxes[index] + rng.normal(0, 1, (1500, 4)).round(2)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
    one = np.zeros(1500, dtype=np.int64)
    check_hotcoco(gt, DetectionArrays(one, boxes, rng.integers(0, 9, 1500) / 9, one), [1, 10, 100, 1000])


def check_hotcoco(gt, det, limits):
    with contextlib.redirect_stdout(io.StringIO()):
        theirs, ours = _run_pycocotools(gt, det, limits), _run_hotcoco(gt, det, limits)
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_backend_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    gt = gt_from(dataset(THREE))
    with pytest.raises(ConfigError, match=r"pip install 'mgdet\[hotcoco\]', or take evaluation.backend=faster"):
        coco_ap(gt, perfect(gt), "hotcoco")


@given(seed=st.integers(0, 2**32 - 1))
def test_order_of_images_objects_and_detections_does_not_matter(seed):
    gt, det = random_pair(seed, ties=False)
    rng = np.random.default_rng(seed + 1)
    images, objects, dets = (rng.permutation(len(x)) for x in (gt.image_ids, gt.boxes, det.scores))
    row = np.argsort(images)
    moved_gt = GroundTruth(
        gt.image_ids[images], gt.heights, gt.widths, row[gt.box_image][objects], gt.boxes[objects], gt.labels[objects],
        gt.iscrowd[objects], gt.area[objects], gt.categories,
    )  # fmt: skip
    moved_det = DetectionArrays(row[det.image][dets], det.boxes[dets], det.scores[dets], det.labels[dets])
    assert coco_ap(moved_gt, moved_det).metrics() == coco_ap(gt, det).metrics()


# --- ids are only names


def renumbered(gt, images, categories):
    return dataclasses.replace(
        gt,
        image_ids=np.array(images, dtype=np.int64),
        categories=tuple(Category(i, c.name) for i, c in zip(categories, gt.categories, strict=True)),
    )


IDS = {
    "around 2^60": ([2**60 + 1000 + i for i in range(3)], [2**60 + 7, 2**60 + 8, 2**60 + 9]),
    "the ends of int64": ([2**63 - 1, -(2**63), 2**63 - 2], [-(2**63), 2**63 - 1, 0]),
    "beyond 2^53": ([2**53 + 1, 2**53, 2**53 + 2], [2**53 + 2, 2**53 + 1, 2**53]),
    "zero and below": ([0, -1, -2], [0, -5, -1]),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("images", "categories"), IDS.values(), ids=IDS.keys())
def test_ids_of_64_bits_change_nothing(backend, images, categories):
    gt = gt_from(dataset(THREE))
    wide = renumbered(gt, images, categories)
    assert coco_ap(wide, perfect(wide), backend).AP == ONE
    shifted = perfect(wide)
    wrong = DetectionArrays((shifted.image + 1) % 3, shifted.boxes, shifted.scores, shifted.labels)
    assert coco_ap(wide, wrong, backend).AP == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_between_images_are_broken_in_order_of_their_ids(backend):
    """As COCO's own code does on the source's file, whatever the order of the rows."""
    gt = gt_from(dataset([(1, 77, 5, (0, 0, 50, 50)), (2, 3, 5, (0, 0, 50, 50)), (3, 1000, 5, (0, 0, 50, 50))]))
    box = np.array([[0.0, 0, 50, 50], [100.0, 100, 150, 150], [0.0, 0, 50, 50]])
    det = DetectionArrays(np.arange(3), box, np.full(3, 0.5), np.zeros(3, dtype=np.int64))
    # In order of the ids 3, 77, 1000 the miss comes first: precision 1/2 and 2/3, so that recall up to 2/3 has 2/3
    found = coco_ap(gt, det, backend).AP
    assert found == pytest.approx(2 / 3 * 67 / 101, abs=1e-9)
