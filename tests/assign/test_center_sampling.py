"""FCOS's rule against the loop oracle, and its limits by hand."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from mgdet.assign import CenterSampling
from mgdet.errors import ConfigError
from mgdet.structures import PriorLayout
from tests.assign.helpers import (
    DEGENERATE,
    NAN,
    all_negative,
    assert_matches,
    assign,
    batches,
    named_inputs,
    positives_of,
    pyramid,
    table_inputs,
)
from tests.reference.assigners import assign_center_sampling

FOUR_BY_FOUR = pyramid((8.0, 4, 4), points=True)  # points at 4, 12, 20 and 28


def check(inputs, **options):
    """Assigner and oracle agree; returns the labels, which both tasks share."""
    result = assign(CenterSampling(**options), inputs)
    assert_matches(result, assign_center_sampling(*inputs, **options), inputs)
    assert torch.equal(result.cls.gt_index, result.loc.gt_index)
    return result.cls


@given(
    batch=batches("points", "anchors"),
    radius=st.sampled_from([0.5, 1.0, 1.5, 1.5, 2.5, None]),
    regress_range=st.sampled_from([(4.0, 8.0), (1.0, 2.0), (0.5, 1.0), (2.0, 8.0), (3.0, 4.0)]),
)
def test_equals_the_loop_oracle(batch, radius, regress_range):
    inputs = named_inputs(**batch)
    expected = assign_center_sampling(*inputs, radius=radius, regress_range=regress_range)
    assume(not expected.close_calls)
    assert_matches(assign(CenterSampling(radius=radius, regress_range=regress_range), inputs), expected, inputs)


@pytest.mark.parametrize("seed", range(2))
def test_equals_the_loop_oracle_in_a_crowd(seed):
    check(named_inputs(seed, "points", images=1, objects=60, step=8.0 * seed))


def test_four_points_around_the_centre():
    """Of a 16-pixel object between four points, each 4 pixels from the centre."""
    labels = check(table_inputs(FOUR_BY_FOUR, [[(8.0, 8.0, 24.0, 24.0)]]))
    assert positives_of(labels) == {0: [5, 6, 9, 10]}
    assert labels.weight.sum() == 4


def test_a_point_exactly_at_the_radius_is_outside():
    """1.5 strides are 12 pixels: points at 4 are 12 from the centre at 16."""
    inputs = table_inputs(FOUR_BY_FOUR, [[(0.0, 0.0, 32.0, 32.0)]])
    assert positives_of(check(inputs, radius=1.5)) == {0: [5, 6, 9, 10]}
    assert positives_of(check(inputs, radius=1.51)) == {0: list(range(16))}
    assert positives_of(check(inputs, radius=None)) == {0: list(range(16))}


def test_a_point_exactly_on_the_border_is_outside():
    inputs = table_inputs(FOUR_BY_FOUR, [[(4.0, 4.0, 28.0, 28.0)]])
    assert positives_of(check(inputs, radius=None)) == {0: [5, 6, 9, 10]}


def test_exact_bounds_of_the_regression_range():
    """64 pixels are exactly 8 strides of the first and 4 of the second level: the first one has them."""
    priors = pyramid((8.0, 16, 16), (16.0, 8, 8), points=True)
    labels = check(table_inputs(priors, [[(4.0, 4.0, 132.0, 132.0)]]))
    second = [256 + row * 8 + column for row in (3, 4, 5) for column in (3, 4, 5)]  # points at 56, 72 and 88
    assert positives_of(labels) == {0: [8 * 16 + 8, *second]}  # of the first level only the point at (68, 68)


def test_the_finest_level_has_no_lower_and_the_coarsest_no_upper_bound():
    priors = pyramid((8.0, 4, 4), (16.0, 2, 2), points=True)
    tiny = table_inputs(priors, [[(11.0, 11.0, 13.0, 13.0)]])
    assert positives_of(check(tiny)) == {0: [5]}
    huge = table_inputs(priors, [[(-5000.0, -5000.0, 5032.0, 5032.0)]])
    assert positives_of(check(huge)) == {0: [16, 17, 18, 19]}


def test_the_smaller_of_two_objects_has_the_shared_points():
    """All four are shared; the larger object adopts the first that is not the smaller one's first."""
    objects = [(0.0, 0.0, 32.0, 32.0), (8.0, 8.0, 24.0, 24.0)]
    assert positives_of(check(table_inputs(FOUR_BY_FOUR, [objects]))) == {0: [6], 1: [5, 9, 10]}
    assert positives_of(check(table_inputs(FOUR_BY_FOUR, [objects[::-1]]))) == {0: [5, 9, 10], 1: [6]}


def test_the_first_of_two_objects_of_one_size_has_the_shared_points():
    labels = check(table_inputs(FOUR_BY_FOUR, [[(8.0, 8.0, 24.0, 24.0)] * 3]))
    assert positives_of(labels) == {0: [5, 10], 1: [6], 2: [9]}


def test_object_smaller_than_a_cell_adopts_the_nearest_point():
    assert positives_of(check(table_inputs(FOUR_BY_FOUR, [[(8.5, 8.5, 10.5, 10.5)]]))) == {0: [5]}
    assert positives_of(check(table_inputs(FOUR_BY_FOUR, [[(7.0, 7.0, 9.0, 9.0)]]))) == {0: [0]}  # four are as near


def test_object_between_the_ranges_of_two_levels_adopts():
    """Half of 140 pixels is too much for strides of 8 (up to 64), and with 48 to the side too little for 32 (128)."""
    priors = pyramid((8.0, 24, 24), (32.0, 6, 6), points=True)
    labels = check(table_inputs(priors, [[(46.0, 46.0, 186.0, 186.0)], [(46.0, 46.0, 246.0, 246.0)]]))
    assert [len(mine) for mine in positives_of(labels).values()] == [1]
    assert positives_of(labels)[0][0] >= 24 * 24  # the larger footprint suits it
    assert len(positives_of(labels, 1)[0]) > 1


def test_object_far_outside_all_points_takes_the_closest():
    assert positives_of(check(table_inputs(FOUR_BY_FOUR, [[(500.0, 500.0, 510.0, 510.0)]]))) == {0: [15]}


@pytest.mark.parametrize("size", [1e18, 1e19, 1e25, 1e38])
def test_areas_that_overflow(size):
    objects = [(-size, -size, size, size), (0.0, 0.0, size, size), (8.0, 8.0, 24.0, 24.0)]
    positives = positives_of(check(table_inputs(FOUR_BY_FOUR, [objects]), radius=None))
    assert set(positives) == {0, 1, 2}
    assert positives[2] == [5, 6, 9, 10]


@pytest.mark.parametrize("padded", [0, 3])
def test_no_objects_at_all(padded):
    priors, predictions, targets = named_inputs(0, "points", objects=padded)
    assert all_negative(check((priors, predictions, targets.replace(valid=torch.zeros_like(targets.valid)))))


def test_no_objects_in_one_image():
    labels = check(table_inputs(FOUR_BY_FOUR, [[(2.0, 2.0, 12.0, 12.0)], [], [(5.0, 5.0, 20.0, 20.0)]]))
    assert [bool(positives_of(labels, b)) for b in range(3)] == [True, False, True]


@pytest.mark.parametrize("box", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_objects_get_nothing(box):
    assert all_negative(check(table_inputs(FOUR_BY_FOUR, [[box]])))
    assert set(positives_of(check(table_inputs(FOUR_BY_FOUR, [[box, (8.0, 8.0, 24.0, 24.0)]])))) == {1}


def test_one_point():
    one = pyramid((8.0, 1, 1), points=True)
    assert check(table_inputs(one, [[(40.0, 40.0, 60.0, 60.0)]])).gt_index.tolist() == [[0]]
    objects = [(20.0, 20.0, 30.0, 30.0), (0.0, 0.0, 8.0, 8.0)]
    assert check(table_inputs(one, [objects])).gt_index.tolist() == [[1]]  # nothing is left for the first


def test_anchors_count_by_their_centres():
    points = check(table_inputs(FOUR_BY_FOUR, [[(8.0, 8.0, 24.0, 24.0)]]))
    anchors = check(table_inputs(pyramid((8.0, 4, 4), points=False), [[(8.0, 8.0, 24.0, 24.0)]]))
    assert torch.equal(points.gt_index, anchors.gt_index)


@pytest.mark.parametrize("points", [True, False])
def test_several_priors_at_a_location_are_refused(points):
    with pytest.raises(ConfigError):
        CenterSampling().resolved_for(PriorLayout(points, 3))
    inputs = table_inputs(pyramid((8.0, 2, 2), points=points, per_location=3), [[(0.0, 0.0, 8.0, 8.0)]])
    with pytest.raises(ConfigError):
        assign(CenterSampling(), inputs)
    assert isinstance(CenterSampling().resolved_for(PriorLayout(points, 1)), CenterSampling)


@pytest.mark.parametrize(
    "options",
    [{"radius": 0.0}, {"radius": -1.0}, {"radius": NAN}, {"regress_range": (8.0, 4.0)}, {"chunk_elements": 0}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        CenterSampling(**options)
