import pickle

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mgdet.errors import DataError
from mgdet.evaluation import DetectionArrays, EvaluationConfig, Evaluator, coco_ap
from mgdet.evaluation.coco import CocoAP
from mgdet.evaluation.evaluator import info_of
from mgdet.evaluation.task_divergence import Divergence, greedy_match
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Batch, Category, Detections, Predictions, Priors, pad_targets
from tests.evaluation.test_divergence import world
from tests.reference import divergence as oracle

NO_PRIORS = Priors(torch.zeros(0, 4), torch.zeros(0), ())  # evaluation does not look at them


def split(n=7, seed=0):
    """A split whose images hold 0..3 objects (one of them a crowd) and detections that jitter around them."""
    rng = np.random.default_rng(seed)
    counts = np.array([0, 3, 1, 2, 0, 3, 2])[:n]
    m = int(counts.sum())
    corner = rng.uniform(0, 60, (m, 2)).round(1)
    size = rng.uniform(15, 60, (m, 2)).round(1)
    order = rng.permutation(m)  # objects of an image do not stand together
    gt = GroundTruth(
        image_ids=rng.permutation(500)[:n],
        heights=np.full(n, 128),
        widths=np.full(n, 128),
        box_image=np.repeat(np.arange(n), counts)[order],
        boxes=np.concatenate([corner, corner + size], axis=1)[order],
        labels=rng.integers(0, 3, m)[order],
        iscrowd=(np.arange(m) == 4)[order],
        area=size.prod(axis=1)[order],
        categories=(Category(10, "a"), Category(3, "b"), Category(7, "c")),
    )
    d = 6
    boxes, scores, labels = np.zeros((n, d, 4)), np.sort(rng.random((n, d)))[:, ::-1].copy(), rng.integers(0, 3, (n, d))
    boxes[..., 2:] = 20
    for i in range(n):
        mine = np.flatnonzero(gt.box_image == i)
        for k, j in enumerate(mine):
            boxes[i, 2 * k : 2 * k + 2] = gt.boxes[j] + rng.normal(0, 3, (2, 4))
            labels[i, 2 * k : 2 * k + 2] = gt.labels[j]
    valid = np.arange(d) < rng.integers(3, d + 1, (n, 1))
    columns = boxes.astype(np.float32), scores.astype(np.float32), labels, valid, np.tile(np.arange(d), (n, 1))
    det = Detections(*(torch.from_numpy(x) for x in columns))
    return gt, det


def feed(evaluator, gt, det, positions, scale=2.0):
    """Gives the images at `positions` to an evaluator, as a network of twice the resolution would."""
    at = torch.tensor(positions, dtype=torch.int64)
    keep = [np.flatnonzero((gt.box_image == p) & ~gt.iscrowd) for p in positions]
    targets = pad_targets(
        [torch.from_numpy(gt.boxes[k]).float() * scale for k in keep], [torch.from_numpy(gt.labels[k]) for k in keep]
    )
    sizes = torch.full((len(at), 2), 128)
    batch = Batch(
        torch.zeros(len(at), 3, 8, 8, dtype=torch.uint8),
        sizes * 2,
        sizes,
        targets,
        torch.from_numpy(gt.image_ids)[at],
        at,
    )
    boxes = torch.cat([det.boxes[at], det.boxes[at] + 1.5], dim=1) * scale
    raw = torch.rand(len(det.boxes), boxes.shape[1], 3, generator=torch.Generator().manual_seed(1))[at]
    rescored = raw.sqrt() * 0.5 + raw.flip(1) * 0.1
    rescored.scatter_(2, det.labels[at].repeat(1, 2)[..., None], det.scores[at].repeat(1, 2)[..., None])
    predictions = Predictions(NO_PRIORS, torch.logit(raw), torch.zeros_like(boxes), boxes)
    evaluator.update(batch, predictions, det[at], {"raw": raw, "rescored": rescored})


def evaluated(gt, det, *shards, config=None):
    states = []
    for shard in shards:
        evaluator = Evaluator(gt, config)
        for positions in shard:
            feed(evaluator, gt, det, positions)
        states.append(pickle.loads(pickle.dumps(evaluator.state())))
    return Evaluator(gt, config).merge(states)


def test_ranks_and_batches_do_not_change_the_result():
    gt, det = split()
    alone = Evaluator(gt)
    feed(alone, gt, det, list(range(7)))
    whole = alone.compute()
    merged = evaluated(gt, det, [[6, 0], [2]], [], [[4, 1, 3], [5]]).compute()
    assert merged.metrics() == whole.metrics()
    found = {"val/AP", "val/AP/a", "val/divergence", "val/divergence_raw", "val/divergence_oracle", "val/divergence_n"}
    found |= {"val/divergence_recall", "val/divergence_pre_nms", "val/spearman/raw/pre_nms", "val/spearman/post_nms"}
    assert found <= whole.metrics().keys()
    assert all(info_of(name) for name in whole.metrics())
    assert all(type(v) in (float, int) for v in whole.metrics().values())


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_ap_is_that_of_the_original_ground_truth(backend):
    gt, det = split()
    found = evaluated(gt, det, [[3, 1]], [[0, 2, 4, 5, 6]], config=EvaluationConfig(backend=backend)).compute()
    image = np.repeat(np.arange(7), 6).reshape(7, 6)[det.valid.numpy()]
    arrays = [t[det.valid].numpy() for t in (det.boxes, det.scores, det.labels)]
    expected = coco_ap(gt, DetectionArrays(image, *arrays))
    assert found.of(CocoAP).metrics() == pytest.approx(expected.metrics(), abs=1e-12)
    assert 0 < found.of(CocoAP).AP < 1
    assert found.of(CocoAP).backend == backend


def test_final_detections_equal_the_loop_oracle():
    gt, det = split()
    metrics = evaluated(gt, det, [[0, 1, 2], [3, 4, 5, 6]]).compute().metrics()
    raw = torch.rand(7, 12, 3, generator=torch.Generator().manual_seed(1))  # as `feed` makes it
    rows = []
    for i in range(7):
        v, mine = det.valid[i], (gt.box_image == i) & ~gt.iscrowd
        args = (det.boxes[i][v].tolist(), det.scores[i][v].tolist(), det.labels[i][v].tolist())
        found = oracle.match(*args, gt.boxes[mine].tolist(), gt.labels[mine].tolist())
        for d, (score, label, u) in enumerate(zip(*args[1:], found, strict=True)):
            rows += [(label, score, float(raw[i, d, label]), u)] if u else []
    labels, final, plain, ious = (list(column) for column in zip(*rows, strict=True))
    weighted = [float(np.float32(s)) * u for s, u in zip(plain, ious, strict=True)]
    for below, suffix, scores in (("", "", final), ("raw/", "_raw", plain), ("oracle/", "_oracle", weighted)):
        expected = oracle.of_matches(labels, scores, ious)
        assert metrics[f"val/spearman/{below}post_nms"] == pytest.approx(expected["post_nms"][0], abs=1e-12)
        assert metrics[f"val/spearman/{below}post_nms_n"] == len(ious)
        assert metrics[f"val/divergence{suffix}"] == pytest.approx(1 - expected["per_class"][0], abs=1e-12)
    assert metrics["val/divergence_n"] == expected["boxes"]
    assert metrics["val/divergence_recall"] == len(ious) / (~gt.iscrowd).sum()


@pytest.mark.parametrize("seed", range(20))
def test_greedy_match_equals_the_loop_oracle(seed):
    boxes, scores, targets = world(seed, a=40, tied=False)
    order = scores[..., 0].argsort(dim=1, descending=True)
    score = scores[..., 0].gather(1, order)
    boxes = boxes.gather(1, order[..., None].expand_as(boxes))
    labels = torch.randint(0, 3, order.shape, generator=torch.Generator().manual_seed(seed))
    valid = torch.rand(order.shape, generator=torch.Generator().manual_seed(seed)) < 0.9
    found = greedy_match(Detections(boxes, score, labels, valid, order), targets, 0.5)
    assert (found[~valid] == 0).all()
    for i in range(len(boxes)):
        ok, v = targets.valid[i] & (targets.boxes[i, :, 2] > targets.boxes[i, :, 0]), valid[i]
        expected = oracle.match(
            boxes[i][v].tolist(), score[i][v].tolist(), labels[i][v].tolist(),
            targets.boxes[i][ok].tolist(), targets.labels[i][ok].tolist(),
        )  # fmt: skip
        assert found[i][v].tolist() == pytest.approx(expected, abs=1e-12)


def test_missing_and_repeated_images_are_refused():
    gt, det = split()
    with pytest.raises(DataError, match=r"8 images were evaluated, but the split has 7 .* 1 missing .* 2 duplicate"):
        evaluated(gt, det, [[0, 1, 2, 3]], [[3, 4, 5, 4]]).compute()
    with pytest.raises(DataError, match=f"1 missing \\(first image ids {gt.image_ids[6]}\\), 0 duplicate;"):
        evaluated(gt, det, [[0, 1, 2, 3, 4, 5]]).compute()
    with pytest.raises(DataError, match="0 images were evaluated"):
        Evaluator(gt).compute()
    short, _ = split(5)
    evaluator = Evaluator(short)
    evaluator._positions = [np.array([0, 9])]
    with pytest.raises(DataError, match="another split"):
        evaluator.compute()


def test_split_without_any_object():
    gt, det = split()
    none = np.zeros(7, dtype=bool)[:0]
    bare = GroundTruth(
        gt.image_ids,
        gt.heights,
        gt.widths,
        gt.box_image[:0],
        gt.boxes[:0],
        gt.labels[:0],
        none,
        gt.area[:0],
        gt.categories,
    )
    found = evaluated(bare, det, [[0, 1, 2, 3, 4, 5, 6]]).compute()
    assert found.of(CocoAP).metrics() == found.of(Divergence).metrics() == {}


def test_no_detections():
    gt, det = split()
    empty = det.replace(valid=torch.zeros_like(det.valid))
    metrics = evaluated(gt, empty, [[0, 1, 2, 3, 4, 5, 6]]).compute().metrics()
    assert metrics["val/AP"] == 0.0
    assert not {"val/spearman/post_nms", "val/divergence", "val/divergence_n"} & metrics.keys()
    assert metrics["val/divergence_recall"] == 0.0
    assert "val/divergence_pre_nms" in metrics


def test_config_refuses_what_it_does_not_know():
    for wrong in ({"iou_flor": 0.5}, {"backend": "fast"}, {"iou_floor": 0.0}, {"min_candidates": 1}):
        with pytest.raises(ValidationError):
            EvaluationConfig(**wrong)
