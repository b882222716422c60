import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgdet.errors import MgdetError
from mgdet.evaluation import DivergenceAccumulator, DivergenceConfig, match_candidates, spearman_by_group
from mgdet.evaluation.candidates import OBJECTS_PER_IMAGE, top_per_group
from mgdet.evaluation.divergence import Population
from mgdet.structures import Targets
from tests.reference import divergence as oracle

values = st.sampled_from([0.0, -0.0, 0.1, 0.25, 0.5, 0.9, 1e-30, -3.0]) | st.floats(-1, 1)
rows = st.lists(st.tuples(st.integers(-2, 4), values, values), max_size=60)


@given(rows)
def test_spearman_equals_a_scipy_loop(data):
    group = np.array([g for g, _, _ in data], dtype=np.int64)
    x, y = (np.array([row[i] for row in data], dtype=np.float64) for i in (1, 2))
    found = spearman_by_group(group, x, y)
    assert found.groups.tolist() == sorted(set(group.tolist()))
    for g, rho, size in zip(found.groups, found.rho, found.size, strict=True):
        expected = oracle.rho_of(x[group == g].tolist(), y[group == g].tolist())
        assert size == (group == g).sum()
        assert np.isnan(rho) if expected is None else rho == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=40).filter(lambda v: len(set(v)) > 1))
def test_oracle_score_has_no_divergence(iou):
    iou = np.array(iou)
    assert spearman_by_group(np.zeros(len(iou), dtype=np.int64), iou, iou).rho.tolist() == [1.0]
    assert spearman_by_group(np.zeros(len(iou), dtype=np.int64), -iou, iou).rho.tolist() == [-1.0]


def test_spearman_of_special_groups():
    group = np.array([7, 7, 7, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5])
    x = np.array([1, 2, 3, 1, 1, 2, 1, 1, 1, 1, np.nan, 3, np.inf, 1, -np.inf])
    y = np.array([1, 2, 3, 1, 1, 2, 1, 2, 3, 1, 2, 3, 9, 8, 7.0])
    found = spearman_by_group(group, x, y)
    assert found.groups.tolist() == [1, 2, 3, 4, 5, 7]
    np.testing.assert_array_equal(found.rho, [np.nan, np.nan, np.nan, np.nan, 1, 1])
    empty = spearman_by_group(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0))
    assert [len(a) for a in empty] == [0, 0, 0]


def test_top_per_group_keeps_the_earlier_of_equals():
    group, score = torch.tensor([1, 0, 1, 1, 0, 1]), torch.tensor([0.5, 0.1, 0.9, 0.5, 0.2, 0.5])
    assert sorted(top_per_group(group, score, 2).tolist()) == [0, 1, 2, 4]
    assert top_per_group(group[:0], score[:0], 2).tolist() == []


def world(seed, b=3, g=4, a=120, c=3, tied=False):
    """Boxes scattered around objects, some of which are padding or degenerate. float64, to meet a float64 oracle."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 80, (b, g, 2))
    objects = np.concatenate([corner, corner + rng.uniform(20, 60, (b, g, 2))], axis=-1)
    valid = rng.random((b, g)) < 0.8
    labels = rng.integers(0, c, (b, g))
    if g > 1:
        objects[0, 1] = objects[0, 0]  # identical boxes: the lower index wins
    if g > 2:
        objects[-1, 2, 2] = objects[-1, 2, 0]  # no area
    boxes = rng.uniform(0, 100, (b, a, 4))
    boxes[..., 2:] = boxes[..., :2] + rng.uniform(5, 60, (b, a, 2))
    if g:
        source = rng.integers(0, g, (b, a))
        near = np.take_along_axis(objects, source[..., None], axis=1) + rng.normal(0, 6, (b, a, 4))
        boxes = np.where(rng.random((b, a, 1)) < 0.8, near, boxes)
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    scores = rng.integers(0, 6, (b, a, c)) / 5 if tied else rng.random((b, a, c))
    targets = Targets(torch.from_numpy(objects), torch.from_numpy(labels), torch.from_numpy(valid))
    return torch.from_numpy(boxes), torch.from_numpy(scores), targets


def accumulated(seed, config=None, **kwargs):
    boxes, scores, targets = world(seed, **kwargs)
    accumulator = DivergenceAccumulator(config or DivergenceConfig())
    accumulator.update(torch.arange(len(boxes)), boxes, {"raw": scores}, targets)
    return accumulator.compute()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("shape", [{}, {"tied": True}, {"g": 0}, {"g": 1}, {"a": 1}, {"b": 1}, {"a": 400, "c": 1}])
def test_populations_equal_the_loop_oracle(seed, shape):
    boxes, scores, targets = world(seed, **shape)
    config = DivergenceConfig(top_k=11)
    found = accumulated(seed, config, **shape)
    nested = (boxes.tolist(), scores.tolist(), targets.boxes.tolist(), targets.labels.tolist(), targets.valid.tolist())
    for name, (rho, n) in oracle.pre_nms(*nested, top_k=11).items():
        population = found.populations["raw"][name]
        assert population.n == n, name
        assert population.rho == (None if rho is None else pytest.approx(rho, abs=1e-12)), name
    if "pre_nms_top11" in found.populations["raw"] and shape == {}:
        assert found.metrics()["val/divergence_pre_nms"] == 1 - found.populations["raw"]["pre_nms"].rho


@pytest.mark.parametrize("chunk", [1, 300, 1000, 10**9])
def test_candidates_do_not_depend_on_chunks(chunk):
    boxes, scores, targets = world(5, g=9)
    whole = match_candidates(boxes, scores, targets, 0.3)
    part = match_candidates(boxes, scores, targets, 0.3, chunk_elements=chunk)
    for a, b in zip(whole[:-1], part[:-1], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole.scores["raw"], part.scores["raw"])


@pytest.mark.parametrize("kind", ["anywhere", "anchors", "broken", "all the same"])
@pytest.mark.parametrize("count", [1, 64, 500])
def test_candidates_equal_those_of_all_pairs(kind, count):
    """However the predictions lie, and whatever the network says about a box or its neighbours."""
    for seed in range(2):
        boxes, scores, targets = world(seed, g=7, a=count)
        boxes, scores = boxes.float(), scores.float()
        if kind == "anchors":  # row by row, as priors lie
            place = torch.arange(count)
            centre = torch.stack([place % 30, place // 30], 1).repeat_interleave(2, 1)[:, [0, 2, 1, 3]].float() * 4
            boxes = boxes * 0.1 + centre[:, [0, 2, 0, 2]]
        elif kind == "broken":
            generator = torch.Generator().manual_seed(seed)
            bad = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1e30])
            hit = torch.rand(boxes.shape, generator=generator) < 0.1
            boxes = torch.where(hit, bad[torch.randint(5, boxes.shape, generator=generator)], boxes)
        elif kind == "all the same":
            boxes, targets = boxes[:, :1].expand_as(boxes), targets.replace(boxes=boxes[:, :1].expand(-1, 7, -1))
        for floor, chunk in ((0.5, 1 << 24), (0.1, 2000), (0.0, 500)):
            value, index = oracle.best_objects(boxes, targets, floor)
            found = match_candidates(boxes, scores, targets, floor, chunk_elements=chunk)
            image, prior = torch.nonzero(value, as_tuple=True)
            assert (found.image.tolist(), found.prior.tolist()) == (image.tolist(), prior.tolist())
            assert found.iou.tolist() == value[image, prior].tolist()
            assert (found.object % OBJECTS_PER_IMAGE).tolist() == index[image, prior].tolist()


def test_candidates_by_hand():
    nan = float("nan")
    objects = torch.tensor([[[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 50, 90], [nan, 0, 5, 5], [20, 20, 30, 30]]])
    targets = Targets(objects, torch.tensor([[1, 0, 0, 0, 2]]), torch.tensor([[True, True, True, True, False]]))
    boxes = torch.tensor([[[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 5], [0, 0, 10, 4.9], [20, 20, 30, 30], [nan] * 4]])
    scores = torch.arange(18.0).reshape(1, 6, 3)
    found = match_candidates(boxes, {"a": scores, "b": scores.sum(-1)}, targets, positions=torch.tensor([41]))
    assert found.prior.tolist() == [0, 1, 2]  # an IoU of exactly 0.5 is in
    assert found.iou.tolist() == pytest.approx([1.0, 0.6, 0.5])
    assert found.image.tolist() == [41] * 3
    assert found.object.tolist() == [41 * OBJECTS_PER_IMAGE] * 3  # of equal objects the first
    assert found.label.tolist() == [1] * 3
    assert found.scores["a"].tolist() == [1, 4, 7]
    assert found.scores["b"].tolist() == [3, 12, 21]  # a score that knows no class


def test_nothing_to_match():
    boxes, scores, _ = world(0)
    none = Targets(torch.zeros(3, 0, 4), torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, 0, dtype=torch.bool))
    assert len(match_candidates(boxes, scores, none, iou_floor=0.0).iou) == 0
    assert len(match_candidates(boxes[:, :0], scores[:, :0], world(0)[2]).iou) == 0
    assert DivergenceAccumulator(DivergenceConfig()).compute().metrics() == {}
    assert accumulated(0, g=0).metrics() == {}
    assert accumulated(0, g=0).n_candidates == 0


def test_half_precision_is_ranked_in_float32():
    boxes, scores, targets = world(3)
    found = match_candidates(boxes.bfloat16(), scores.bfloat16(), targets)
    assert found.iou.dtype == found.scores["raw"].dtype == np.float32


def test_rescored_is_final_and_raw_stands_beside():
    boxes, scores, targets = world(1)
    best = match_candidates(boxes, scores, targets, 0.01)
    quality = torch.zeros(boxes.shape[:2], dtype=torch.float64)
    quality[best.image, best.prior] = torch.from_numpy(best.iou)
    accumulator = DivergenceAccumulator(DivergenceConfig())
    accumulator.update(torch.arange(3), boxes, {"raw": scores, "rescored": quality}, targets)
    metrics = accumulator.compute().metrics()
    assert metrics["val/divergence_pre_nms"] == 0.0
    assert metrics["val/divergence_pre_nms_raw"] == 1 - metrics["val/spearman/raw/pre_nms"]
    assert not {"val/divergence", "val/divergence_raw"} & metrics.keys(), "no final detections were given"
    assert metrics["val/spearman/pre_nms"] == metrics["val/spearman/pre_nms_top50"] == 1.0
    alone = accumulated(1).metrics()
    for name in ("pre_nms", "pre_nms_n", "pre_nms_top50", "pre_nms_top50_n", "per_image", "per_image_n"):
        assert metrics[f"val/spearman/raw/{name}"] == alone[f"val/spearman/{name}"]
    assert {type(v) for k, v in metrics.items() if k.endswith("_n")} == {int}
    assert {type(v) for k, v in metrics.items() if not k.endswith("_n")} == {float}
    with pytest.raises(MgdetError, match="same names"):
        accumulator.update(torch.arange(3), boxes, {"raw": scores}, targets)


def test_constant_scores_are_absent_not_zero():
    boxes, scores, targets = world(1)
    accumulator = DivergenceAccumulator(DivergenceConfig())
    accumulator.update(torch.arange(3), boxes, {"raw": torch.full_like(scores, 0.01)}, targets)
    metrics = accumulator.compute().metrics()
    assert [k for k in metrics if "oracle" not in k] == []
    assert metrics["val/divergence_pre_nms_oracle"] == pytest.approx(0.0), "constant times IoU ranks as the IoU does"
    assert accumulator.compute().n_candidates > 0


def of_matches(labels, scores, ious, objects=10, config=None):
    """The result for matched detections, beside predictions of `world(1)` under the same names."""
    accumulator = DivergenceAccumulator(config or DivergenceConfig())
    boxes, raw, targets = world(1)
    accumulator.update(torch.arange(3), boxes, dict.fromkeys(scores, raw), targets)
    for part in (slice(0, 5), slice(5, None)):
        accumulator.update_matches(
            np.array(labels, dtype=np.int64)[part],
            {name: np.array(score, dtype=np.float32)[part] for name, score in scores.items()},
            np.array(ious, dtype=np.float64)[part],
            objects if part.start == 0 else 0,
        )
    return accumulator.compute()


def test_headline_is_the_mean_over_classes():
    label = [0, 0, 0, 0, 1, 1, 1, 2, 2]
    score = [0.9, 0.8, 0.7, 0.6, 0.9, 0.5, 0.1, 0.3, 0.2]
    iou = [0.9, 0.95, 0.6, 0.5, 0.5, 0.7, 0.9, 0.8, 0.6]
    found = of_matches(label, {"raw": score}, iou, objects=12)
    metrics = found.metrics()
    assert metrics["val/spearman/post_nms"] == pytest.approx(oracle.rho_of(score, iou), abs=1e-12)
    assert metrics["val/spearman/post_nms_n"] == 9
    assert metrics["val/spearman/per_class"] == pytest.approx((0.8 - 1.0) / 2, abs=1e-12)
    assert metrics["val/spearman/per_class_n"] == 2, "two matches have no rho"
    assert metrics["val/divergence"] == 1 - metrics["val/spearman/per_class"] == found.divergence()
    assert metrics["val/divergence_n"] == 7, "those of the two classes"
    assert metrics["val/divergence_recall"] == 9 / 12
    assert metrics["val/divergence_pre_nms"] == accumulated(1).metrics()["val/divergence_pre_nms"]


matches = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.1, 0.5, 0.7, 0.9]), st.floats(0.5, 1)), max_size=30)


@given(matches, st.integers(3, 5))
def test_populations_of_matches_equal_the_loop_oracle(rows, least):
    labels, scores, ious = ([row[i] for row in rows] for i in range(3))
    scores = np.array(scores, dtype=np.float32).tolist()
    found = of_matches(labels, {"raw": scores}, ious, len(rows) + 1, DivergenceConfig(min_candidates=least))
    expected = oracle.of_matches(labels, scores, ious, least)
    for name in ("per_class", "post_nms"):
        rho, n = expected[name]
        assert found.populations["raw"][name][:2] == (None if rho is None else pytest.approx(rho, abs=1e-12), n)
    assert found.populations["raw"]["per_class"].boxes == expected["boxes"]
    assert found.recall == len(rows) / (len(rows) + 1)


@pytest.mark.parametrize(
    ("label", "score", "iou"),
    [
        ([], [], []),
        ([0, 0], [0.9, 0.8], [0.9, 0.8]),
        ([0, 0, 0], [0.5, 0.5, 0.5], [0.9, 0.8, 0.7]),
        ([0, 0, 0], [0.9, 0.8, 0.7], [0.75, 0.75, 0.75]),
        ([0, 0, 1, 1, 2], [0.9, 0.8, 0.7, 0.6, 0.5], [0.9, 0.8, 0.7, 0.6, 0.5]),
    ],
)
def test_headline_without_a_rho_is_absent_and_the_recall_is_not(label, score, iou):
    metrics = of_matches(label, {"raw": score}, iou).metrics()
    assert not {"val/divergence", "val/divergence_n", "val/spearman/per_class"} & metrics.keys()
    assert metrics["val/divergence_recall"] == len(label) / 10


def test_recall_without_objects_is_absent():
    assert "val/divergence_recall" not in of_matches([], {"raw": []}, [], objects=0).metrics()


def test_one_class_is_its_own_mean():
    found = of_matches([2] * 4, {"raw": [0.9, 0.8, 0.7, 0.6]}, [0.9, 0.95, 0.6, 0.5]).populations["raw"]
    assert found["per_class"] == Population(found["post_nms"].rho, 1, 4)


def test_raw_and_oracle_take_the_detections_of_the_final_score():
    raw, final, iou = [0.95, 0.8, 0.7, 0.55], [0.6, 0.7, 0.8, 0.9], [0.5, 0.6, 0.7, 0.8]
    metrics = of_matches([0] * 4, {"raw": raw, "rescored": final}, iou).metrics()
    assert metrics["val/divergence"] == 0.0
    assert metrics["val/divergence_raw"] == 2.0
    product = [r * u for r, u in zip(raw, iou, strict=True)]
    assert metrics["val/divergence_oracle"] == pytest.approx(1 - oracle.rho_of(product, iou), abs=1e-12)
    assert {name for name in metrics if name.startswith("val/divergence")} == {
        *("val/divergence", "val/divergence_raw", "val/divergence_oracle", "val/divergence_n", "val/divergence_recall"),
        *("val/divergence_pre_nms", "val/divergence_pre_nms_raw", "val/divergence_pre_nms_oracle"),
    }


def test_ranks_join_to_the_same_result_in_any_order():
    boxes, scores, targets = world(2, b=8, a=300)
    config = DivergenceConfig(scatter_points=37)

    def seen(*shards):
        out = []
        for shard in shards:
            accumulator = DivergenceAccumulator(config)
            for i in shard:
                one = targets[i : i + 1]
                accumulator.update(torch.tensor([i]), boxes[i : i + 1], {"raw": scores[i : i + 1]}, one)
            out.append(pickle.loads(pickle.dumps(accumulator.state())))
        return DivergenceAccumulator(config).merge(out).compute()

    whole = accumulated(2, config, b=8, a=300)
    for split in (seen(range(8)), seen([5, 1, 2], [], [0, 7], [6, 3, 4])):
        assert split.metrics() == whole.metrics()
        assert split.n_candidates == whole.n_candidates
        assert len(split.sample_iou) == 37
        np.testing.assert_array_equal(split.sample_iou, whole.sample_iou)
        np.testing.assert_array_equal(split.sample_scores["raw"], whole.sample_scores["raw"])
