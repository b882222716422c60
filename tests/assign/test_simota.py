"""SimOTA against the loop oracle, and by hand."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from mgdet.assign import SimOTA
from tests.assign.helpers import (
    DEGENERATE,
    INF,
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
from tests.reference.assigners import assign_simota

OBJECT = (0.0, 0.0, 10.0, 10.0)
QUARTER = -math.log(3)
"""Logit of a score of 1/4, whose root is 1/2."""


def slices(*tenths: float) -> list[tuple[float, ...]]:
    """Boxes whose IoU with OBJECT is so many tenths, and whose centre is inside and near."""
    return [(0.0, 0.0, 10.0, h) for h in tenths]


def check(inputs, **options):
    """Assigner and oracle agree; returns the labels, which both tasks share."""
    result = assign(SimOTA(**options), inputs)
    assert_matches(result, assign_simota(*inputs, **options), inputs)
    assert torch.equal(result.cls.gt_index, result.loc.gt_index)
    return result.cls


@given(
    batch=batches("points", "anchors", "three anchors"),
    radius=st.sampled_from([0.5, 1.5, 2.5, 2.5, 5.0]),
    top_k=st.sampled_from([1, 3, 10, 10, 1000]),
    weights=st.sampled_from([(3.0, 1.0), (3.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 4.0)]),
)
def test_equals_the_loop_oracle(batch, radius, top_k, weights):
    inputs = named_inputs(**batch)
    options = {"radius": radius, "top_k": top_k, "iou_weight": weights[0], "cls_weight": weights[1]}
    expected = assign_simota(*inputs, **options)
    assume(not expected.close_calls)
    assert_matches(assign(SimOTA(**options), inputs), expected, inputs)


@pytest.mark.parametrize("layout", ["points", "anchors"])
def test_equals_the_loop_oracle_in_a_crowd(layout):
    check(named_inputs(2, layout, images=1, objects=60, step=8.0))


def test_number_of_positives_by_hand():
    """The best overlaps add up to 1.9, 2.3 and 0.7."""
    for tenths, positive in (((4.0, 10.0, 5.0), [1]), ((4.0, 10.0, 9.0), [1, 2]), ((4.0, 1.0, 2.0), [0])):
        inputs = table_inputs(slices(*tenths), [[OBJECT]], logits=QUARTER, classes=1)
        assert positives_of(check(inputs)) == {0: positive}


def test_top_k_bounds_the_sum():
    inputs = table_inputs(slices(*[10.0] * 12), [[OBJECT]], logits=QUARTER, classes=1)
    assert positives_of(check(inputs)) == {0: list(range(10))}
    assert positives_of(check(inputs, top_k=4)) == {0: list(range(4))}
    assert positives_of(check(inputs, top_k=1000)) == {0: list(range(12))}


def test_score_against_overlap():
    """Scores 1/4 and 1: -3 log 0.6 = 1.53 and log 2 = 0.69 against -3 log 0.5 = 2.08 (and nothing for the score)."""
    inputs = table_inputs(slices(6.0, 5.0), [[OBJECT]], logits=torch.tensor([[[QUARTER], [80.0]]]), classes=1)
    assert positives_of(check(inputs)) == {0: [1]}  # 2.08 < 2.23
    assert positives_of(check(inputs, cls_weight=0.5)) == {0: [0]}  # 1.88 < 2.08
    assert positives_of(check(inputs, iou_weight=4.0)) == {0: [0]}  # 2.74 < 2.77


def test_scores_of_the_other_classes_count():
    """Both priors score 1/4 for the object's class; the first one as much for another."""
    logits = torch.tensor([[[QUARTER, QUARTER], [QUARTER, -80.0]]])
    assert positives_of(check(table_inputs(slices(5.0, 5.0), [[OBJECT]], logits=logits, classes=2))) == {0: [1]}


def test_inside_and_near_come_first():
    """Points (40, 40) and (8, 8) of an object of 80 pixels; the far one predicts it exactly, the near one badly."""
    anchors = [(32.0, 32.0, 48.0, 48.0), (0.0, 0.0, 16.0, 16.0)]
    decoded = [(0.0, 0.0, 80.0, 8.0), (0.0, 0.0, 80.0, 80.0)]
    inputs = table_inputs(anchors, [[(0.0, 0.0, 80.0, 80.0)]], decoded=decoded, logits=QUARTER, classes=1)
    assert positives_of(check(inputs)) == {0: [0]}  # 2.5 strides are 20 pixels
    assert positives_of(check(inputs, radius=5.0)) == {0: [1]}


def test_near_but_outside_is_a_candidate():
    """An object of 2 pixels between the points, all of which predict it exactly; the radius is exclusive.

    Ten of sixteen equally good ones are chosen: the four around it, then of those as far away as each other the first.
    """
    priors = pyramid((8.0, 4, 4), points=True)
    box = (15.0, 15.0, 17.0, 17.0)
    inputs = table_inputs(priors, [[box]], decoded=[box] * 16, logits=QUARTER)
    assert positives_of(check(inputs, radius=1.5)) == {0: [5, 6, 9, 10]}
    assert positives_of(check(inputs, radius=1.51)) == {0: [1, 2, 4, 5, 6, 7, 8, 9, 10, 11]}
    assert positives_of(check(inputs, radius=0.5)) == {0: [5]}  # none: adopted


def test_the_cheaper_of_two_objects_has_the_shared_prior():
    objects = [[OBJECT, (0.0, 0.0, 10.0, 9.0)]]
    inputs = table_inputs(slices(9.0, 2.0), objects, labels=[[0, 0]], logits=QUARTER, classes=1)
    assert check(inputs).gt_index.tolist() == [[1, 0]]


@pytest.mark.parametrize("logit", [NAN, -INF, -200.0, -80.0, 80.0, 200.0, INF])
def test_extreme_scores(logit):
    """Logarithms are bounded by -100."""
    priors = pyramid((8.0, 4, 4), (16.0, 2, 2), points=True)
    objects = [[(1.0, 1.0, 30.0, 30.0), (8.0, 8.0, 24.0, 24.0), (8.0, 8.0, 24.0, 24.0)]]
    decoded = [(8.0, 8.0, 24.0, 8.0 + i) for i in range(20)]
    labels = check(table_inputs(priors, objects, decoded=decoded, logits=logit))
    assert set(positives_of(labels)) == {0, 1, 2}


def test_scores_that_are_not_numbers_count_as_zero():
    priors, predictions, targets = named_inputs(3, "points", step=4.0)
    broken = predictions.logits.clone()
    broken[:, ::3] = NAN
    zeros = torch.where(broken.isnan(), -INF, broken)
    first = check((priors, predictions.replace(logits=broken), targets))
    assert torch.equal(first.gt_index, check((priors, predictions.replace(logits=zeros), targets)).gt_index)


@pytest.mark.parametrize("value", [INF, -INF, NAN, 1e38])
def test_overflowing_predicted_boxes(value):
    """No predicted box overlaps: one positive each, by the scores, here all equal."""
    priors = pyramid((8.0, 4, 4), points=True)
    objects = [[(8.0, 8.0, 24.0, 24.0), (1.0, 1.0, 6.0, 6.0)]]
    decoded = [(-value, -value, value, value)] * 16
    assert positives_of(check(table_inputs(priors, objects, decoded=decoded, logits=0.0))) == {0: [5], 1: [0]}


@pytest.mark.parametrize("copies", [2, 3, 16])
def test_identical_objects_each_have_one(copies):
    priors = pyramid((8.0, 4, 4), points=True)
    inputs = table_inputs(priors, [[(8.0, 8.0, 24.0, 24.0)] * copies], logits=0.0)
    assert set(positives_of(check(inputs))) == set(range(copies))


@pytest.mark.parametrize("padded", [0, 3])
def test_no_objects_at_all(padded):
    priors, predictions, targets = named_inputs(0, "points", objects=padded)
    assert all_negative(check((priors, predictions, targets.replace(valid=torch.zeros_like(targets.valid)))))


@pytest.mark.parametrize("box", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_objects_get_nothing(box):
    priors = pyramid((8.0, 4, 4), points=False)
    assert all_negative(check(table_inputs(priors, [[box]])))
    assert set(positives_of(check(table_inputs(priors, [[box, (8.0, 8.0, 24.0, 24.0)]])))) == {1}


def test_object_far_outside_everything_takes_the_closest():
    inputs = table_inputs(pyramid((8.0, 4, 4), points=True), [[(500.0, 500.0, 510.0, 510.0)]])
    assert positives_of(check(inputs)) == {0: [15]}


def test_one_prior():
    one = pyramid((8.0, 1, 1), points=True)
    objects = [(60.0, 60.0, 70.0, 70.0), (0.0, 0.0, 8.0, 8.0)]
    assert check(table_inputs(one, [objects[:1]])).gt_index.tolist() == [[0]]
    assert check(table_inputs(one, [objects])).gt_index.tolist() == [[1]]


@pytest.mark.parametrize(
    "options",
    [{"top_k": 0}, {"radius": 0.0}, {"radius": -1.0}, {"iou_weight": -1.0}, {"cls_weight": NAN}, {"chunk_elements": 0}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        SimOTA(**options)
