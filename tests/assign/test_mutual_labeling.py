"""Mutual labeling against the loop oracle in all its settings, and by hand."""

from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from mgdet.assign import CenterSampling, MaxIoU, MutualLabeling
from mgdet.structures import IGNORED, NEGATIVE, Assignment, PriorLayout
from tests.assign.helpers import (
    DEGENERATE,
    INF,
    LAYOUTS,
    NAN,
    STEPS,
    all_negative,
    assert_matches,
    assert_same,
    assign,
    batches,
    named_inputs,
    positives_of,
    pyramid,
    random_inputs,
    table_inputs,
    tasks,
)
from tests.reference.assigners import assign_mutual_labeling

VARIANTS = [
    {"count": count, "criterion": criterion}
    for count, criterion in product(("baseline", "mean_std", "dynamic_k"), ("score", "amplified", "regularised"))
]
IN_UNIT_TIER = [VARIANTS[i] for i in (0, 4, 8)]  # every count and every criterion once
every_variant = pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=() if v in IN_UNIT_TIER else pytest.mark.exhaustive) for v in VARIANTS],
    ids=lambda v: "-".join(v.values()),
)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
FOUR_BY_FOUR = pyramid((8.0, 4, 4), points=True)  # points at 4, 12, 20 and 28
OPTIONS = st.fixed_dictionaries(
    {
        "direction": st.sampled_from(["both", "both", "loc_to_cls", "cls_to_loc", "none"]),
        "count": st.sampled_from(["baseline", "mean_std", "dynamic_k"]),
        "criterion": st.sampled_from(["score", "amplified", "regularised"]),
    },
    optional={
        "sigma": st.sampled_from([1.0, 1.5, 10.0]),
        "alpha": st.sampled_from([0.25, 0.5, 1.0]),
        "theta": st.sampled_from([1.0, 2.0, 6.0]),
        "top_k": st.sampled_from(["auto", 1, 2, 5, 40]),
        "candidates": st.sampled_from([1, 4, 30]),
        "region": st.sampled_from(["box", "centre"]),
        "radius": st.sampled_from([0.5, 2.5, None]),
        "regress_range": st.sampled_from([(1.0, 2.0), (0.5, 1.0), (3.0, 4.0)]),
    },
)


def check(inputs, **options):
    """Assigner and oracle agree; returns the assignment."""
    options = {"direction": "both", **options}
    result = assign(MutualLabeling(**options), inputs)
    assert_matches(result, assign_mutual_labeling(*inputs, **options), inputs)
    return result


@given(batch=batches("points"), options=OPTIONS)
def test_equals_the_loop_oracle_on_points(batch, options):
    inputs = named_inputs(**batch)
    expected = assign_mutual_labeling(*inputs, **options)
    assume(not expected.close_calls)
    assert_matches(assign(MutualLabeling(**options), inputs), expected, inputs)


@given(
    batch=batches("anchors", "three anchors"),
    options=OPTIONS,
    thresholds=st.sampled_from([(0.5, 0.4), (0.5, 0.4), (0.5, 0.5), (0.25, 0.125), (1.0, 0.0), (0.0, 0.0)]),
)
def test_equals_the_loop_oracle_on_anchors(batch, options, thresholds):
    inputs = named_inputs(**batch)
    for only_for_points in ("region", "radius", "regress_range"):
        options.pop(only_for_points, None)
    options = {**options, "positive_iou": thresholds[0], "negative_iou": thresholds[1]}
    expected = assign_mutual_labeling(*inputs, **options)
    assume(not expected.close_calls)
    assert_matches(assign(MutualLabeling(**options), inputs), expected, inputs)


@given(seed=st.integers(0, 2**31), step=st.sampled_from(STEPS), variant=st.sampled_from(VARIANTS))
def test_equals_the_loop_oracle_on_scattered_anchors(seed, step, variant):
    inputs = random_inputs(seed, anchors=30, step=step)
    expected = assign_mutual_labeling(*inputs, direction="both", **variant)
    assume(not expected.close_calls)
    assert_matches(assign(MutualLabeling(direction="both", **variant), inputs), expected, inputs)


@every_variant
@pytest.mark.parametrize("layout", ["points", "anchors"])
def test_equals_the_loop_oracle_in_a_crowd(layout, variant):
    check(named_inputs(1, layout, images=1, objects=40, step=8.0), **variant)


# By hand --------------------------------------------------------------------------------------------------------------


def corner_inputs():
    """An object over 16 points: only the corners have scores, and only the left column predicts it."""
    box = (0.0, 0.0, 32.0, 32.0)
    logits = torch.full((1, 16, 1), -80.0)
    logits[0, [0, 3, 12, 15]] = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    decoded = [box if i % 4 == 0 else (60.0, 60.0, 70.0, 70.0) for i in range(16)]
    return table_inputs(FOUR_BY_FOUR, [[box]], decoded=decoded, logits=logits, classes=1)


def test_score_criterion_by_hand():
    """Four are due, as many as are near the centre: for localization the corners, for classification the left."""
    assert positives_of(assign(CenterSampling(), corner_inputs()).cls) == {0: [5, 6, 9, 10]}
    result = check(corner_inputs(), count="baseline", criterion="score")
    assert positives_of(result.loc) == {0: [0, 3, 12, 15]}
    assert positives_of(result.cls) == {0: [0, 4, 8, 12]}
    assert result.loc.weight.sum() == 4


def test_region_bounds_both_tasks():
    """None of the left column is near the centre: classification adopts nothing more than the most central prior."""
    result = check(corner_inputs(), count="baseline", criterion="score", region="centre")
    assert positives_of(result.loc) == {0: [5, 6, 9, 10]}  # with scores of 1e-35
    assert positives_of(result.cls) == {0: [5]}


def test_dynamic_k_by_hand():
    """Scores of 0.9, 0.8 and 0.7 sum to 2.4, overlaps of 0.6 and 0.3 to less than 1."""
    box = (8.0, 8.0, 24.0, 24.0)
    logits = torch.full((1, 16, 1), -80.0)
    logits[0, [5, 6, 10], 0] = torch.logit(torch.tensor([0.8, 0.9, 0.7]))
    decoded = [(60.0, 60.0, 70.0, 70.0)] * 16
    decoded[9], decoded[10], decoded[0] = (8.0, 8.0, 24.0, 17.6), (8.0, 8.0, 24.0, 12.8), box  # 0 lies outside
    inputs = table_inputs(FOUR_BY_FOUR, [[box]], decoded=decoded, logits=logits, classes=1)
    result = check(inputs, count="dynamic_k", criterion="score")
    assert positives_of(result.loc) == {0: [5, 6]}
    assert positives_of(result.cls) == {0: [9]}
    assert positives_of(check(inputs, count="dynamic_k", criterion="score", top_k=2).loc) == {0: [6]}


def test_the_forced_prior_adds_nothing_to_its_own_quality():
    """Raw qualities 0.6 and 0.3 sum to 0.9, though the first is worth 1 in the competition."""
    anchors = [(0.0, 0.0, 10.0, 6.0), (0.0, 0.0, 10.0, 3.0)]
    inputs = table_inputs(anchors, [[(0.0, 0.0, 10.0, 10.0)]])
    assert check(inputs, count="dynamic_k", criterion="score").cls.gt_index.tolist() == [[0, NEGATIVE]]


def test_anchors_by_hand():
    """IoUs of 1, 0.5, 0.4 and 0.3: two are due and one is ignored in classification, whichever predict best."""
    anchors = [(0.0, 0.0, 10.0, h) for h in (10.0, 5.0, 4.0, 3.0)]
    decoded = [(0.0, 0.0, 10.0, h) for h in (2.0, 4.0, 6.0, 8.0)]
    logits = torch.tensor([[[-3.0], [-1.0], [-2.0], [-4.0]]])
    inputs = table_inputs(anchors, [[(0.0, 0.0, 10.0, 10.0)]], decoded=decoded, logits=logits, classes=1)
    result = check(inputs, count="baseline", criterion="score")
    assert result.cls.gt_index.tolist() == [[NEGATIVE, IGNORED, 0, 0]]
    assert result.loc.gt_index.tolist() == [[NEGATIVE, 0, 0, NEGATIVE]]
    amplified = check(inputs, count="baseline", criterion="amplified")
    assert amplified.loc.gt_index.tolist() == [[0, 0, NEGATIVE, NEGATIVE]]


def test_anchors_without_overlap_are_no_candidates():
    """However well they predict: only the object's own best is positive."""
    anchors = [(0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (0.0, 0.0, 10.0, 6.0)]
    box = (0.0, 0.0, 10.0, 10.0)
    inputs = table_inputs(anchors, [[box]], decoded=[(0.0, 0.0, 1.0, 1.0), box, (50.0, 50.0, 51.0, 51.0)], logits=0.0)
    for criterion in ("score", "amplified", "regularised"):
        assert check(inputs, count="baseline", criterion=criterion).cls.gt_index.tolist() == [[0, NEGATIVE, NEGATIVE]]


def test_regularised_criteria_by_hand():
    """u^4 p^(1/3): 0.5^4 * 1 < 0.9^4 * 0.125^(1/3); p u^(4/3): 1 * 0.5^(4/3) > 0.125 * 0.9^(4/3)."""
    anchors = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 4.0)]
    decoded = [(0.0, 0.0, 10.0, 5.0), (0.0, 0.0, 10.0, 9.0)]
    logits = torch.stack([torch.tensor([80.0]), torch.logit(torch.tensor([0.125]))])[None]
    inputs = table_inputs(anchors, [[(0.0, 0.0, 10.0, 10.0)]], decoded=decoded, logits=logits, classes=1)
    result = check(inputs, count="dynamic_k", criterion="regularised")
    assert result.cls.gt_index.tolist() == [[NEGATIVE, 0]]
    assert result.loc.gt_index.tolist() == [[0, NEGATIVE]]


def test_amplified_centerness_by_hand():
    """Equal scores of 0: the four around the centre, with 0.6, before all others, with 0.29 and 0.14."""
    inputs = table_inputs(FOUR_BY_FOUR, [[(0.0, 0.0, 32.0, 32.0)]], logits=-80.0)
    result = check(inputs, count="dynamic_k", criterion="amplified")
    assert positives_of(result.loc) == {0: [5, 6]}  # 4 * 0.6 + 0.29: two
    assert positives_of(check(inputs, count="mean_std", criterion="amplified", candidates=16).loc) == {0: [5, 6, 9, 10]}


def test_object_between_the_ranges_of_two_levels_has_one():
    priors = pyramid((8.0, 12, 12), (32.0, 3, 3), points=True)
    inputs = table_inputs(priors, [[(-22.0, -22.0, 118.0, 118.0)]])
    for variant in VARIANTS:
        for task in tasks(check(inputs, **variant)):
            assert [len(mine) for mine in positives_of(task).values()] == [1]


# Degenerate batches ---------------------------------------------------------------------------------------------------


@every_variant
@every_layout
@pytest.mark.parametrize("padded", [0, 3])
def test_no_objects_at_all(padded, layout, variant):
    priors, predictions, targets = named_inputs(0, layout, objects=padded)
    empty = targets.replace(valid=torch.zeros_like(targets.valid))
    for task in tasks(check((priors, predictions, empty), **variant)):
        assert all_negative(task)


@every_variant
@pytest.mark.parametrize("box", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_objects_get_nothing(box, variant):
    for points in (True, False):
        priors = pyramid((8.0, 4, 4), points=points)
        for task in tasks(check(table_inputs(priors, [[box, (8.0, 8.0, 24.0, 24.0)]]), **variant)):
            assert set(positives_of(task)) == {1}


@every_variant
@pytest.mark.parametrize("logit", [NAN, -INF, -80.0, 0.0, 80.0, INF])
def test_all_logits_equal(logit, variant):
    for points in (True, False):
        priors = pyramid((8.0, 4, 4), (16.0, 2, 2), points=points)
        objects = [[(1.0, 1.0, 30.0, 30.0), (8.0, 8.0, 24.0, 24.0), (8.0, 8.0, 24.0, 24.0)]]
        for task in tasks(check(table_inputs(priors, objects, logits=logit), **variant)):
            assert set(positives_of(task)) == {0, 1, 2}


@every_variant
@pytest.mark.parametrize("value", [INF, -INF, NAN, 1e38])
def test_overflowing_predicted_boxes(value, variant):
    """Nothing overlaps: classification learns one prior of each object."""
    for points in (True, False):
        priors = pyramid((8.0, 4, 4), points=points)
        objects = [[(8.0, 8.0, 24.0, 24.0), (1.0, 1.0, 6.0, 6.0)]]
        result = check(table_inputs(priors, objects, decoded=[(-value, -value, value, value)] * 16), **variant)
        assert positives_of(result.cls) == {0: [5], 1: [0]}


@every_variant
@pytest.mark.parametrize("box", [(8.5, 8.5, 10.5, 10.5), (500.0, 500.0, 510.0, 510.0), (-1e30, -1e30, 1e30, 1e30)])
def test_objects_that_fit_nothing_have_one(box, variant):
    for points in (True, False):
        priors = pyramid((8.0, 4, 4), (16.0, 2, 2), points=points)
        for task in tasks(check(table_inputs(priors, [[box]]), **variant)):
            assert set(positives_of(task)) == {0}


@every_variant
@pytest.mark.parametrize("copies", [2, 3, 16])
def test_identical_objects_each_have_one(copies, variant):
    inputs = table_inputs(FOUR_BY_FOUR, [[(8.0, 8.0, 24.0, 24.0)] * copies], logits=0.0)
    for task in tasks(check(inputs, **variant)):
        assert set(positives_of(task)) == set(range(copies))


@every_variant
def test_one_prior(variant):
    for points in (True, False):
        one = pyramid((8.0, 1, 1), points=points)
        for task in tasks(check(table_inputs(one, [[(40.0, 40.0, 60.0, 60.0)]]), **variant)):
            assert task.gt_index.tolist() == [[0]]
        check(table_inputs(one, [[(20.0, 20.0, 30.0, 30.0), (0.0, 0.0, 8.0, 8.0)]]), **variant)  # who gets it depends


# Baseline and warmup --------------------------------------------------------------------------------------------------


def baseline_of(kind: PriorLayout):
    """What the unguided tasks learn."""
    return CenterSampling() if kind.points else MaxIoU()


@every_variant
@every_layout
def test_the_unguided_task_is_the_baseline(layout, variant):
    inputs = named_inputs(7, layout, objects=7)
    baseline = assign(baseline_of(inputs[0].layout), inputs)
    both = assign(MutualLabeling(direction="both", **variant), inputs)
    assert_same(assign(MutualLabeling(direction="none", **variant), inputs), baseline)
    towards_cls = assign(MutualLabeling(direction="loc_to_cls", **variant), inputs)
    assert_same(towards_cls, Assignment(both.cls, baseline.loc))
    towards_loc = assign(MutualLabeling(direction="cls_to_loc", **variant), inputs)
    assert_same(towards_loc, Assignment(baseline.cls, both.loc))


@every_layout
def test_warms_up_with_the_baseline(layout):
    inputs = named_inputs(7, layout)
    kind = inputs[0].layout
    assigner = MutualLabeling(direction="both", count="baseline", criterion="regularised", warmup_epochs=2)
    for epoch in (0.0, 1.999):
        assert isinstance(assigner.at(epoch, kind), CenterSampling if kind.points else MaxIoU)
        assert_same(assign(assigner.at(epoch, kind), inputs), assign(baseline_of(kind), inputs))
    for epoch in (2.0, 30.0):
        assert isinstance(assigner.at(epoch, kind), MutualLabeling)
        assert_same(assign(assigner.at(epoch, kind), inputs), assign(assigner, inputs))


def test_the_baseline_has_the_same_settings():
    points, anchors = named_inputs(7, "points"), named_inputs(7, "anchors")
    assigner = MutualLabeling(radius=0.7, regress_range=(1.0, 2.0), positive_iou=0.3, negative_iou=0.2, warmup_epochs=2)
    expected = assign(CenterSampling(radius=0.7, regress_range=(1.0, 2.0)), points)
    assert_same(assign(assigner.at(0.0, points[0].layout), points), expected)
    expected = assign(MaxIoU(positive_iou=0.3, negative_iou=0.2), anchors)
    assert_same(assign(assigner.at(0.0, anchors[0].layout), anchors), expected)


@every_variant
@pytest.mark.parametrize("seed", range(3))
def test_points_learn_at_most_what_is_due(seed, variant):
    """With count=baseline as many priors of each object as center sampling gives it, in both tasks."""
    inputs = named_inputs(seed, "points", objects=7)
    due = positives_of(assign(CenterSampling(), inputs).cls)
    for task in tasks(assign(MutualLabeling(direction="both", **variant), inputs)):
        assert set(positives_of(task)) == set(due)
        if variant["count"] == "baseline":
            assert all(len(mine) <= len(due[g]) for g, mine in positives_of(task).items())


@pytest.mark.parametrize(("per_location", "expected"), [(1, 5), (3, 15)])
def test_auto_top_k(per_location, expected):
    assert MutualLabeling().resolved_for(PriorLayout(False, per_location)).top_k == expected
    assert MutualLabeling(top_k=7).resolved_for(PriorLayout(False, per_location)).top_k == 7


@pytest.mark.parametrize(
    "options",
    [
        {"sigma": 0.5},
        {"sigma": NAN},
        {"alpha": -1.0},
        {"theta": -1.0},
        {"top_k": 0},
        {"top_k": "all"},
        {"candidates": 0},
        {"region": "all"},
        {"count": "iou"},
        {"criterion": "power"},
        {"direction": "up"},
        {"positive_iou": 0.3, "negative_iou": 0.4},
        {"positive_iou": 1.5},
        {"radius": 0.0},
        {"regress_range": (8.0, 4.0)},
        {"warmup_epochs": -1},
        {"chunk_elements": 0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        MutualLabeling(**options)
