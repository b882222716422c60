"""The adaptive threshold against the loop oracle, and by hand."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from mgdet.assign import ATSS
from mgdet.structures import Priors
from tests.assign.helpers import (
    DEGENERATE,
    all_negative,
    assert_matches,
    assign,
    batches,
    make_priors,
    named_inputs,
    positives_of,
    pyramid,
    random_inputs,
    table_inputs,
)
from tests.reference.assigners import assign_atss

FAR = [(100.0 + 20 * i, 0.0, 110.0 + 20 * i, 10.0) for i in range(7)]
OBJECT = (0.0, 0.0, 10.0, 10.0)


def check(inputs, **options):
    """Assigner and oracle agree; returns the labels, which both tasks share."""
    result = assign(ATSS(**options), inputs)
    assert_matches(result, assign_atss(*inputs, **options), inputs)
    assert torch.equal(result.cls.gt_index, result.loc.gt_index)
    return result.cls


@given(batch=batches("points", "anchors", "three anchors"), top_k=st.sampled_from([1, 2, 4, 9, 9, 30]))
def test_equals_the_loop_oracle(batch, top_k):
    inputs = named_inputs(**batch)
    expected = assign_atss(*inputs, top_k=top_k)
    assume(not expected.close_calls)
    assert_matches(assign(ATSS(top_k=top_k), inputs), expected, inputs)


@given(seed=st.integers(0, 2**31), step=st.sampled_from([0.0, 4.0, 8.0]), anchors=st.integers(1, 30))
def test_equals_the_loop_oracle_on_scattered_anchors(seed, step, anchors):
    inputs = random_inputs(seed, anchors=anchors, step=step)
    expected = assign_atss(*inputs)
    assume(not expected.close_calls)
    assert_matches(assign(ATSS(), inputs), expected, inputs)


@pytest.mark.parametrize("layout", ["points", "three anchors"])
def test_equals_the_loop_oracle_in_a_crowd(layout):
    check(named_inputs(1, layout, images=1, objects=60, step=8.0))


@pytest.mark.parametrize(
    ("heights", "positive"),
    [
        ((10.0,), [0]),  # IoU 1 of one candidate: the threshold is 1
        ((4.0,), [0]),  # whatever it is
        ((10.0, 5.0, 0.1), [0]),  # mean 0.503, deviation 0.495
        ((6.0, 6.0, 6.0), [0, 1, 2]),  # no deviation: all reach the mean
        ((10.0, 9.0, 1.0, 1.0), [0]),  # mean 0.525, deviation 0.492: 0.9 is not enough
        ((10.0, 10.0, 1.0, 1.0, 1.0), [0, 1]),  # mean 0.46, deviation 0.493: both of 1.0
    ],
)
def test_threshold_by_hand(heights, positive):
    """Slices of the object, whose IoU is a tenth of their height and whose centres lie inside."""
    anchors = [(0.0, 0.0, 10.0, h) for h in heights]
    assert positives_of(check(table_inputs(anchors, [[OBJECT]]))) == {0: positive}


def test_zeros_count_in_the_threshold():
    """Two of 0.5 and seven of 0: mean 0.111, deviation 0.220, so both are positive."""
    halves = [(0.0, 0.0, 10.0, 5.0), (0.0, 5.0, 10.0, 10.0)]
    assert positives_of(check(table_inputs([*halves, *FAR], [[OBJECT]]))) == {0: [0, 1]}


def test_two_different_candidates_never_reach_the_threshold():
    """The mean of 1 and 0.5 plus their deviation is 1.1: the object adopts its best."""
    anchors = [(0.0, 0.0, 10.0, 5.0), (0.0, 0.0, 10.0, 10.0)]
    assert positives_of(check(table_inputs(anchors, [[OBJECT]]))) == {0: [1]}


def test_only_the_nearest_are_candidates():
    """The best anchor of all is not among the two nearest; of equally near ones the first are taken."""
    anchors = [(0.0, 0.0, 9.0, 9.0), (3.0, 3.0, 7.0, 7.0), (3.0, 3.0, 7.0, 7.0), (4.0, 4.0, 6.0, 6.0)]
    assert positives_of(check(table_inputs(anchors, [[OBJECT]]), top_k=2)) == {0: [1, 2]}


def test_every_level_has_candidates():
    """One candidate of each level: IoU 0.16 and 0.64, whose threshold of 0.74 neither reaches."""
    boxes = torch.tensor([(3.0, 3.0, 7.0, 7.0), (3.0, 3.0, 7.0, 7.0), (1.0, 1.0, 9.0, 9.0), (1.0, 1.0, 9.0, 9.0)])
    priors = make_priors(boxes).replace(strides=torch.tensor([8.0, 8.0, 16.0, 16.0]), level_counts=(2, 2))
    assert positives_of(check(table_inputs(priors, [[OBJECT]]), top_k=1)) == {0: [2]}  # adopted
    assert positives_of(check(table_inputs(priors, [[OBJECT]]), top_k=2)) == {0: [2]}  # mean 0.4, deviation 0.277
    # of three at the same distance the one whose DIoU is the largest stands for the first level: 0.64 and 0.64
    labels = check(table_inputs(priors.replace(level_counts=(3, 1)), [[OBJECT]]), top_k=1)
    assert positives_of(labels) == {0: [2, 3]}


def test_all_priors_of_a_location_are_candidates():
    """With one of three locations, three anchors of IoU 1, 1 and 0.16 compete: mean 0.72, deviation 0.485."""
    anchors = [OBJECT, OBJECT, (3.0, 3.0, 7.0, 7.0), *FAR[:6]]
    priors = make_priors(torch.tensor(anchors))
    three = Priors(priors.boxes, priors.strides, priors.level_counts, priors.layout._replace(per_location=3))
    assert positives_of(check(table_inputs(three, [[OBJECT]]), top_k=1)) == {0: [0]}
    assert positives_of(check(table_inputs(three, [[OBJECT]]), top_k=2)) == {0: [0, 1]}
    assert positives_of(check(table_inputs(priors, [[OBJECT]]), top_k=1)) == {0: [0]}


@pytest.mark.parametrize(("width", "positive"), [(19.96, [0, 1]), (19.99, [0]), (20.0, [0]), (20.5, [0])])
def test_the_centre_must_be_inside(width, positive):
    """By more than 0.01 pixels. IoUs of 0.5, about 0.4 and seven times 0: the threshold is 0.3."""
    anchors = [(0.0, 0.0, 10.0, 5.0), (0.0, 0.0, width, 20 / 3), *FAR]
    assert positives_of(check(table_inputs(anchors, [[OBJECT]]))) == {0: positive}


def test_the_better_of_two_objects_has_the_shared_prior():
    objects = [(0.0, 0.0, 10.0, 8.0), (0.0, 0.0, 10.0, 10.0)]
    anchors = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 9.9), *FAR]
    # the first object would take both with 0.8 and 0.81, but they are the second's with 1 and 0.99: it adopts
    assert positives_of(check(table_inputs(anchors, [objects]))) == {0: [1], 1: [0]}


def test_identical_objects_each_have_one():
    priors = pyramid((8.0, 4, 4), points=True)
    positives = positives_of(check(table_inputs(priors, [[(8.0, 8.0, 24.0, 24.0)] * 12])))
    assert set(positives) == set(range(12))


def test_footprint_of_a_point_is_eight_strides():
    """An object of 64 pixels around a point of stride 8 is exactly its footprint, and wins against stride 16."""
    priors = pyramid((8.0, 9, 9), (16.0, 4, 4), points=True)
    labels = check(table_inputs(priors, [[(4.0, 4.0, 68.0, 68.0)]]), top_k=1)
    assert positives_of(labels) == {0: [4 * 9 + 4]}  # the point at (36, 36): IoU 1 against 0.2


@pytest.mark.parametrize("box", [(8.5, 8.5, 10.5, 10.5), (500.0, 500.0, 510.0, 510.0), (-1e30, -1e30, 1e30, 1e30)])
def test_objects_that_fit_nothing_have_one(box):
    for points in (True, False):
        priors = pyramid((8.0, 4, 4), (16.0, 2, 2), points=points)
        assert set(positives_of(check(table_inputs(priors, [[box]])))) == {0}


@pytest.mark.parametrize("padded", [0, 3])
def test_no_objects_at_all(padded):
    priors, predictions, targets = named_inputs(0, "points", objects=padded)
    assert all_negative(check((priors, predictions, targets.replace(valid=torch.zeros_like(targets.valid)))))


@pytest.mark.parametrize("box", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_objects_get_nothing(box):
    priors = pyramid((8.0, 4, 4), points=False)
    assert all_negative(check(table_inputs(priors, [[box]])))
    assert set(positives_of(check(table_inputs(priors, [[box, (8.0, 8.0, 24.0, 24.0)]])))) == {1}


def test_one_prior():
    one = pyramid((8.0, 1, 1), points=True)
    assert check(table_inputs(one, [[(40.0, 40.0, 60.0, 60.0)]])).gt_index.tolist() == [[0]]
    objects = [(20.0, 20.0, 30.0, 30.0), (0.0, 0.0, 8.0, 8.0)]
    assert check(table_inputs(one, [objects])).gt_index.tolist() == [[1]]


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": 1.5}, {"chunk_elements": 0}, {"candidates": 9}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        ATSS(**options)
