"""Post-processing equals the one that scores every pair of a prior and a class."""

import pytest
import torch

from mgdet.models.postprocess import PostProcess
from mgdet.models.rescoring import Rescoring
from mgdet.structures import Predictions, Priors, Scores
from tests.reference.postprocess import detections_of

RESCORING = [
    None,
    Rescoring(),
    Rescoring(combine="product"),
    Rescoring(combine="power", exponent=0.3),
    Rescoring(combine="power", exponent=1.0),
]
LEVELS = (512, 0, 160, 64, 32)
"""Of one image with 4 classes multiples of 64 values: elsewhere PyTorch itself rounds the last scores otherwise."""


def predictions(seed, images=2, levels=LEVELS, classes=4, quality=False, decimals=None):
    generator = torch.Generator().manual_seed(seed)
    count = sum(levels)
    corner = torch.rand(images, count, 2, generator=generator) * 90 - 5
    boxes = torch.cat([corner, corner + torch.rand(images, count, 2, generator=generator) * 40], 2)
    logits = 2 * torch.randn(images, count, classes, generator=generator) - 3
    if decimals is not None:
        logits = logits.round(decimals=decimals)
    branch = torch.randn(images, count, generator=generator) if quality else None
    return Predictions(Priors(boxes[0], torch.ones(count), levels), logits, torch.zeros_like(boxes), boxes, branch)


def check(found, rescoring=None, **settings):
    """That the detections of `found` are the oracle's to the bit, in the same order; returns how many there are."""
    post, rescoring = PostProcess(**settings), rescoring or Rescoring()
    sizes = torch.tensor([[80, 96], [70, 50], [33, 96]])[: len(found.boxes)]
    original = sizes * 3 + 1
    out, expected = post(found, rescoring, sizes, original), detections_of(post, found, rescoring, sizes, original)
    assert out.valid.sum(1).tolist() == [len(scores) for _, scores, _, _ in expected]
    for i, (boxes, scores, labels, priors) in enumerate(expected):
        n = len(scores)
        assert out.valid[i, :n].all()
        for ours, theirs in ((out.boxes, boxes), (out.scores, scores), (out.labels, labels), (out.priors, priors)):
            assert torch.equal(ours[i, :n], theirs)
            assert not ours[i, n:].any()
    return int(out.valid.sum())


@pytest.mark.parametrize("rescoring", RESCORING)
@pytest.mark.parametrize("k", [3, 40, 1000])
@pytest.mark.parametrize("most", [5, 100])
def test_random_predictions(rescoring, k, most):
    for seed in range(2):
        found = predictions(seed, quality=rescoring is not None)
        assert check(found, rescoring, pre_nms_top_k=k, max_detections=most) > 5


@pytest.mark.parametrize("decimals", [0, 1])
@pytest.mark.parametrize("k", [1, 7, 60, 300])
def test_scores_that_tie(decimals, k):
    """Also where `torch.topk` decides which of the equal ones are taken, and in which order they come."""
    for seed, rescoring in enumerate(RESCORING):
        found = predictions(seed, quality=rescoring is not None, decimals=decimals)
        assert check(found, rescoring, pre_nms_top_k=k, max_detections=30)
        assert check(found, rescoring, pre_nms_top_k=k, max_detections=1000)


@pytest.mark.parametrize("logit", [-1.0, 30.0, float("inf")])
def test_all_scores_equal(logit):
    found = predictions(0, levels=(640, 64), images=3)
    found = found.replace(logits=torch.full_like(found.logits, logit))
    for k in (5, 100, 1000):
        assert check(found, pre_nms_top_k=k, max_detections=50)


@pytest.mark.parametrize("rescoring", RESCORING)
def test_nothing_passes(rescoring):
    found = predictions(0, quality=rescoring is not None)
    for low in (-50.0, float("-inf")):
        assert check(found.map(lambda t, low=low: torch.full_like(t, low)), rescoring) == 0
    assert check(predictions(0, levels=(0, 0)), rescoring) == 0
    assert check(found, rescoring, score_threshold=0.0, pre_nms_top_k=50) > 0


@pytest.mark.parametrize("rescoring", RESCORING)
def test_values_that_are_not_finite(rescoring):
    """A score that is NaN passes no threshold, and its prior's other classes count as ever."""
    nan = float("nan")
    for seed in range(2):
        found = predictions(seed, quality=rescoring is not None)
        found.logits[0, ::3, 1], found.logits[0, 1::9, 2], found.logits[1, 5] = nan, float("inf"), nan
        if found.quality is not None:
            found.quality[1, ::7], found.quality[0, 10] = nan, float("-inf")
        assert check(found, rescoring, pre_nms_top_k=30)
        assert check(found, rescoring, pre_nms_top_k=400)


def test_the_best_pairs_of_few_priors():
    """One prior may have several of the best pairs of its level."""
    found = predictions(0, levels=(64,), images=1)
    found = found.replace(logits=found.logits - 10 * (torch.arange(64) > 2)[None, :, None] + 3)
    assert check(found, pre_nms_top_k=5, nms_iou=1.0) == 5


@pytest.mark.parametrize("rescoring", RESCORING)
def test_scores_of_some_are_those_of_all(rescoring):
    """Of any number of them, to the bit."""
    found = predictions(0, quality=rescoring is not None)
    rescoring = rescoring or Rescoring()
    scores = Scores(found, rescoring.scores, rescoring.scores_of_some)
    assert list(scores) == (["raw"] if found.quality is None else ["raw", "rescored"])
    for n in (0, 1, 7, 100, 333):
        image, prior, label = torch.arange(n) % 2, torch.arange(n) * 5 % 768, torch.arange(n) % 4
        some = scores.at(image, prior, label)
        assert list(some) == list(scores)
        for name, score in some.items():
            assert torch.equal(score, scores[name][image, prior, label])
