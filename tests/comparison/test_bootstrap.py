"""Intervals hold the truth as often as they say, and the numbers of a sample are those of the repeated images."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from mgdet.comparison.bootstrap import difference, image_weights
from mgdet.comparison.judged import Judged
from mgdet.comparison.statistics import statistics, weighted_spearman
from mgdet.evaluation.coco import coco_ap
from tests.comparison.simulated import detector, scenes
from tests.reference.judging import sample

KEYS = ("AP", "AP50", "divergence", "AP/c0", "AP50 lost to location")


def holds(trials, runs, samples, images=80, spread=0.0):
    """How often the interval of no difference holds 0, by statistic. Runs of a group differ by `spread` in skill."""
    held = dict.fromkeys(KEYS, 0)
    for trial in range(trials):
        rng = np.random.default_rng([trial, runs])
        gt = scenes(rng, images)
        weights = image_weights(images, samples, rng)
        sides = [[statistics(detector(rng, gt, spread * rng.normal()), weights) for _ in range(runs)] for _ in range(2)]
        for key in KEYS:
            base, other = (np.stack([run[key] for run in side]) for side in sides)
            held[key] += not difference(base, other, rng).clear
    return {key: n / trials for key, n in held.items()}


@pytest.mark.slow
def test_intervals_hold_no_difference():
    """What is broken is far from 95 %: the standard error is 4 % of 30 trials, and 7 % of 10."""
    shares = holds(30, runs=1, samples=150, images=60)
    assert all(share >= 0.8 for share in shares.values()), shares
    shares = holds(10, runs=2, samples=150, images=60, spread=0.5)
    assert all(share >= 0.7 for share in shares.values()), shares


@pytest.mark.exhaustive
def test_intervals_hold_no_difference_in_95_of_100_trials():
    """The cost of a type of errors, which is never negative and often 0, and one class have less than their share."""
    shares = holds(500, runs=1, samples=500)
    for key in ("AP", "AP50", "divergence"):
        assert shares[key] == pytest.approx(0.95, abs=0.02), shares
    assert all(0.89 <= share <= 0.98 for share in shares.values()), shares


@pytest.mark.exhaustive
@pytest.mark.parametrize("runs", [2, 3, 5])
def test_intervals_of_groups_hold_no_difference(runs):
    """Not less often than they say; with two runs Student's t is wide, and more often does no harm."""
    shares = holds(300, runs, samples=400, spread=0.3)
    assert all(share >= 0.9 for share in shares.values()), shares


def test_a_clear_difference_is_seen_and_its_sign_is_right():
    rng = np.random.default_rng(0)
    gt = scenes(rng, 40)
    weights = image_weights(40, 100, rng)
    weak, strong = (np.stack([statistics(detector(rng, gt, skill), weights)["AP"]]) for skill in (-0.7, 1.0))
    found = difference(weak, strong, rng)
    assert found.low > 0
    assert found.value == pytest.approx(strong[0, 0] - weak[0, 0])
    assert difference(strong, weak, rng).high < 0


def test_a_run_against_itself_differs_in_nothing():
    rng = np.random.default_rng(1)
    gt = scenes(rng, 20)
    values = statistics(detector(rng, gt), image_weights(20, 100, rng))
    for key, one in values.items():
        if np.isnan(one[0]):
            continue
        found = difference(one[None], one[None], rng)
        assert (found.value, found.low, found.high) == (0, 0, 0), key


def test_what_is_undefined_stays_undefined():
    rng = np.random.default_rng(0)
    nothing, something = np.full((1, 11), np.nan), np.ones((2, 11))
    found = difference(nothing, something, rng)
    assert np.isnan(found.base)
    assert found.other == 1
    assert np.isnan([found.value, found.low, found.high]).all()
    assert not found.clear
    partly = something.copy()
    partly[0, 3] = np.nan  # a sample in which a class has no object
    assert difference(partly, something, rng).value == 0


def test_numbers_of_a_sample_are_those_of_the_repeated_images():
    rng = np.random.default_rng(3)
    gt = scenes(rng, 8)
    run = detector(rng, gt)
    weights = image_weights(8, 3, rng)
    found = statistics(run, weights)
    for s, weight in enumerate(weights):
        drawn, det = sample(gt, run.det, weight)
        one = statistics(Judged("a", drawn, (), det, {}), np.ones((1, len(drawn.image_ids))))
        expected = coco_ap(drawn, det, "pycocotools")
        assert found["AP"][s] == pytest.approx(expected.AP)
        assert found["AP75"][s] == pytest.approx(expected.AP75)
        for key, values in found.items():
            assert values[s] == pytest.approx(one[key][0], nan_ok=True), key


def test_weighted_rank_correlation_is_that_of_the_repeated_pairs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 5, 9) / 4, rng.integers(0, 6, 9) / 5
        weights = rng.integers(0, 3, (1, 9)).astype(float)
        found = weighted_spearman(x, y, weights)[0]
        often = weights[0].astype(int)
        one, other = x.repeat(often), y.repeat(often)
        if len(one) < 3 or len(set(one)) < 2 or len(set(other)) < 2:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(spearmanr(one, other).statistic)
