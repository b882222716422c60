"""Intervals hold the truth as often as they say, and the numbers of a sample are those of the repeated images."""

import numpy as np
import pytest
from scipy.stats import spearmanr, t, ttest_ind

from benchmarks.intervals import detector, scenes, shares, trial
from mgdet.comparison.bootstrap import difference, image_weights
from mgdet.comparison.judged import Judged
from mgdet.comparison.statistics import statistics, weighted_spearman
from mgdet.evaluation.coco import coco_ap
from tests.reference.judging import sample


def held(trials, runs, samples, images=80, spread=0.3):
    """The share of trials without a difference in which the interval holds 0, by statistic."""
    found = [trial(number, runs, spread if runs > 1 else 0.0, images, samples) for number in range(trials)]
    return {name: np.mean([not each[name].clear for each in found]) for name in found[0]}


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "trials"), [(1, 30), (2, 10)])
def test_intervals_hold_no_difference(runs, trials):
    """What is broken is far from 95 %: the standard error is 4 % of 30 trials, and 7 % of 10."""
    shares = held(trials, runs, samples=100, images=60)
    assert len(shares) == 15
    assert all(share >= 0.8 - 0.1 * (runs > 1) for share in shares.values()), shares


@pytest.mark.exhaustive
@pytest.mark.parametrize("runs", [1, 2, 3])
def test_intervals_hold_no_difference_in_95_of_100_trials(runs):
    """At least 93 %, less three standard errors of 200 trials; costs of rare errors are held nearly always."""
    shares = held(200, runs, samples=200)
    assert all(share >= 0.88 for share in shares.values()), shares


@pytest.mark.parametrize("runs", [2, 3, 5])
@pytest.mark.parametrize("of_runs", [0.0, 2.0])
@pytest.mark.parametrize("of_groups", [0.0, 1.0])
def test_intervals_of_groups_of_normal_numbers(runs, of_runs, of_groups):
    """Whichever part of the variance is the largest: that of images, of runs, or of how a group takes the images."""
    rng = np.random.default_rng([runs, int(of_runs), int(of_groups)])
    trials, samples, images = 400, 100, 80
    hits = 0
    for _ in range(trials):
        shared, deviations = rng.normal(size=(2, 1, 1)), rng.normal(size=(2, 1, samples))
        own, noise = rng.normal(size=(2, runs, 1)), rng.normal(size=(2, runs, samples))
        seeds = of_runs * rng.normal(size=(2, runs, 1))
        whole = own + seeds + of_groups * shared
        values = np.concatenate([whole, whole + noise + of_groups * deviations], axis=2)
        hits += not difference(values[0], values[1], images).clear
    assert hits / trials == pytest.approx(0.95, abs=0.045)


def test_a_clear_difference_is_seen_and_its_sign_is_right():
    rng = np.random.default_rng(0)
    gt = scenes(rng, 40)
    weights = image_weights(40, 100, rng)
    weak, strong = (np.stack([statistics(detector(rng, gt, skill), weights)["AP"]]) for skill in (-0.7, 1.0))
    found = difference(weak, strong, 40)
    assert found.low > 0
    assert found.value == pytest.approx(strong[0, 0] - weak[0, 0])
    assert difference(strong, weak, 40).high < 0


def test_a_run_against_itself_differs_in_nothing():
    rng = np.random.default_rng(1)
    gt = scenes(rng, 20)
    values = statistics(detector(rng, gt), image_weights(20, 100, rng))
    for key, one in values.items():
        if np.isnan(one[0]):
            continue
        found = difference(one[None], one[None], 20)
        assert (found.value, found.low, found.high) == (0, 0, 0), key


def test_what_is_undefined_stays_undefined():
    nothing, something = np.full((1, 11), np.nan), np.ones((2, 11))
    found = difference(nothing, something, 20)
    assert np.isnan(found.base)
    assert found.other == 1
    assert np.isnan([found.value, found.low, found.high]).all()
    assert not found.clear
    partly = something.copy()
    partly[0, 3] = np.nan  # a sample in which a class has no object
    assert difference(partly, something, 20).value == 0


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


def test_the_interval_of_two_runs_is_the_bootstrap_standard_error_times_students_t():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 1, 201))
    found = difference(one, other, 30)
    reach = t.ppf(0.975, 29) * (other - one)[0, 1:].std(ddof=1)
    assert (found.value - found.low, found.high - found.value) == pytest.approx((reach, reach))


def test_without_a_part_of_the_images_the_interval_of_groups_is_welchs():
    """Where no image matters, what is left is the t test of the runs."""
    rng = np.random.default_rng(1)
    one, other = (np.repeat(rng.normal(size=(runs, 1)), 101, axis=1) for runs in (3, 4))
    expected = ttest_ind(other[:, 0], one[:, 0], equal_var=False).confidence_interval(0.95)
    found = difference(one, other, 50)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_table_of_coverage():
    lines = [{"a": [0.1, -0.1, 0.3], "b": [0.0, 0.0, 0.0]}, {"a": [0.5, 0.1, 0.9]}]
    assert list(shares(lines)) == [("a", 2, 1, 0), ("b", 1, 1, 1)]
