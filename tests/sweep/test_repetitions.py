"""Repetitions that are left out because their choice cannot win any more."""

import random
import statistics

import pytest

from mgdet.errors import ConfigError
from mgdet.sweep.config import load_sweep
from mgdet.sweep.repetitions import best_mean, cannot_win
from mgdet.sweep.trials import definition
from tests.sweep.test_config import write
from tests.sweep.test_trials import trial

LEADER = [trial(0, AP=0.50), trial(1, AP=0.52), trial(2, AP=0.54)]


@pytest.fixture
def sweep(tmp_path):
    return load_sweep(write(tmp_path), ["trials=4", "repeat=3", "repeat_until=0.95"])


def test_the_bound_is_that_of_a_prediction_interval_by_hand():
    """Deviation 0.02 with 2 degrees of freedom, Student's quantile 2.920, one value of three."""
    bound = best_mean([0.4], 3, 0.95, [[0.50, 0.52, 0.54], [0.4]])
    assert bound == pytest.approx(0.4 + 2.920 * 0.02 * (1 - 1 / 3) ** 0.5, abs=1e-4)
    assert best_mean([0.4], 3, 0.95, [[0.50, 0.52, 0.54], [0.4]], sign=-1) == pytest.approx(0.8 - bound)
    assert best_mean([0.4, 0.4, 0.4], 3, 0.95, [[0.4, 0.5]]) == pytest.approx(0.4), "nothing is open any more"
    assert best_mean([0.4], 3, 0.95, [[0.5], [0.4]]) is None, "no deviation is known"
    assert best_mean([], 3, 0.95, [[0.5, 0.6]]) is None


@pytest.mark.parametrize("k", [1, 2])
def test_a_mean_passes_its_bound_as_seldom_as_it_says(k):
    draw = random.Random(k)
    passed, rounds = 0, 1500
    for _ in range(rounds):
        others = [[draw.gauss(0, 1) for _ in range(3)] for _ in range(3)]
        mine = [draw.gauss(0, 1) for _ in range(3)]
        passed += statistics.fmean(mine) > best_mean(mine[:k], 3, 0.9, [*others, mine[:k]])
    assert passed / rounds == pytest.approx(0.1, abs=0.025)


@pytest.mark.parametrize(
    ("mine", "left_out"),
    [
        ([trial(3, AP=0.30)], True),
        ([trial(3, AP=0.49)], False),  # 0.49 + 0.048
        ([trial(3, AP=0.47)], True),
        ([trial(3, "running")], False),
        ([trial(3, "failed")], False),
        ([trial(3, "stopped", 2, AP=0.9)], True),  # it counts as stopped, whatever the others reach
        ([trial(3, AP=0.6), trial(4, AP=0.6)], False),
    ],
)
def test_what_is_left_out(sweep, mine, left_out):
    assert bool(cannot_win(sweep, [*LEADER, *mine], 1)) == left_out


def test_without_a_leader_or_without_the_key_nothing_is_left_out(sweep, tmp_path):
    mine = [*LEADER, trial(3, AP=0.1)]
    assert "would reach 0.1477 at best" in cannot_win(sweep, mine, 1)
    assert not cannot_win(sweep, [*LEADER[:2], trial(2, "running"), trial(3, AP=0.1)], 1)
    assert not cannot_win(sweep, LEADER, 0), "the leader itself"
    assert not cannot_win(load_sweep(write(tmp_path), ["trials=4", "repeat=3"]), mine, 1)


def test_a_metric_that_falls(tmp_path):
    sweep = load_sweep(write(tmp_path, metric="val/divergence"), ["trials=4", "repeat=2", "repeat_until=0.9"])
    leader = [trial(0, divergence=0.20), trial(1, divergence=0.22)]
    assert cannot_win(sweep, [*leader, trial(2, divergence=0.4)], 1)
    assert not cannot_win(sweep, [*leader, trial(2, divergence=0.19)], 1)


def test_the_key_needs_repetitions_and_is_not_in_records_that_do_not_use_it(tmp_path):
    with pytest.raises(ConfigError, match="repeat_until needs repeat: 2 or more"):
        load_sweep(write(tmp_path), ["repeat_until=0.9"])
    assert "repeat_until" not in definition(load_sweep(write(tmp_path), ["repeat=2"]))
