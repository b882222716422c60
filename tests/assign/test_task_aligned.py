"""Task alignment against the loop oracle, and its labels and soft targets by hand."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from mgdet.assign import ATSS, TaskAligned
from mgdet.structures import NEGATIVE
from tests.assign.helpers import (
    DEGENERATE,
    INF,
    LAYOUTS,
    NAN,
    all_negative,
    assert_matches,
    assert_same,
    assign,
    batches,
    canvas_priors,
    named_inputs,
    positives_of,
    pyramid,
    random_inputs,
    table_inputs,
)
from tests.reference.assigners import assign_task_aligned

OBJECT = (0.0, 0.0, 10.0, 10.0)


def slices(*tenths: float) -> list[tuple[float, ...]]:
    """Boxes whose IoU with OBJECT is so many tenths, and whose centre is inside."""
    return [(0.0, 0.0, 10.0, h) for h in tenths]


def logits_of(*scores: float) -> torch.Tensor:
    """Of one image with one class."""
    return torch.logit(torch.tensor(scores)).reshape(1, -1, 1)


def check(inputs, **options):
    """Assigner and oracle agree; returns the labels, which both tasks share."""
    result = assign(TaskAligned(**options), inputs)
    assert_matches(result, assign_task_aligned(*inputs, **options), inputs)
    assert torch.equal(result.cls.gt_index, result.loc.gt_index)
    assert torch.equal(result.cls.weight, result.loc.weight)
    return result.cls


@given(
    batch=batches("points", "anchors", "three anchors"),
    alpha=st.sampled_from([0.5, 1.0, 1.0, 2.0]),
    beta=st.sampled_from([1.0, 2.0, 6.0, 6.0]),
    top_k=st.sampled_from([1, 3, 13, 13, 1000]),
)
def test_equals_the_loop_oracle(batch, alpha, beta, top_k):
    inputs = named_inputs(**batch)
    expected = assign_task_aligned(*inputs, alpha=alpha, beta=beta, top_k=top_k)
    assume(not expected.close_calls)
    assert_matches(assign(TaskAligned(alpha=alpha, beta=beta, top_k=top_k), inputs), expected, inputs)


@pytest.mark.parametrize("step", [0.0, 8.0])
def test_equals_the_loop_oracle_in_a_crowd(step):
    check(named_inputs(1, "points", images=1, objects=60, step=step))


def test_labels_and_weights_by_hand():
    """Scores 1/2; t = p u: 0.4, 0.25, 0.2; the best two, with 0.4 -> 0.8 (the best IoU) and 0.25 -> 0.5."""
    inputs = table_inputs(slices(5.0, 8.0, 4.0), [[OBJECT]], logits=0.0, classes=1)
    labels = check(inputs, alpha=1.0, beta=1.0, top_k=2)
    assert labels.gt_index.tolist() == [[0, 0, NEGATIVE]]
    torch.testing.assert_close(labels.weight, torch.tensor([[0.5, 0.8, 0.0]]))


def test_the_best_aligned_has_the_weight_of_the_best_overlap():
    """p u^2: 0.9*0.25 = 0.225 and 0.1*0.64 = 0.064: weights 0.8 and 0.8*0.064/0.225."""
    inputs = table_inputs(slices(5.0, 8.0), [[OBJECT]], logits=logits_of(0.9, 0.1), classes=1)
    labels = check(inputs, beta=2.0)
    torch.testing.assert_close(labels.weight, torch.tensor([[0.8, 0.8 * 0.064 / 0.225]]))


def test_only_the_score_of_the_objects_class_counts():
    logits = torch.tensor([[[9.0, -3.0], [-9.0, 0.0]]])
    inputs = table_inputs(slices(5.0, 5.0), [[OBJECT]], labels=[[1]], logits=logits, classes=2)
    assert positives_of(check(inputs, top_k=1)) == {0: [1]}


def test_among_equals_the_first_are_chosen():
    inputs = table_inputs(slices(*[5.0] * 20), [[OBJECT]], logits=1.0)
    labels = check(inputs)
    assert positives_of(labels) == {0: list(range(13))}
    torch.testing.assert_close(labels.weight[0, :13], torch.full((13,), 0.5))


def test_a_prior_of_two_objects_goes_to_the_larger_overlap():
    """Though it is better aligned with the other one, whose weights come from what it is left with."""
    objects = [[OBJECT, (0.0, 0.0, 10.0, 9.0)]]
    logits = torch.tensor([[[0.0, 4.0], [0.0, 4.0]]])
    inputs = table_inputs(slices(10.0, 4.5), objects, labels=[[0, 1]], logits=logits, classes=2)
    labels = check(inputs)
    assert labels.gt_index.tolist() == [[0, 1]]
    torch.testing.assert_close(labels.weight, torch.tensor([[1.0, 0.5]]))


def test_a_centre_outside_is_no_candidate_but_may_be_adopted():
    """Its soft target is then that of any positive: here its own IoU, 0.9."""
    anchors = [(30.0, 0.0, 40.0, 10.0), (100.0, 0.0, 110.0, 10.0)]
    decoded = [(0.0, 0.0, 10.0, 9.0), (0.0, 0.0, 10.0, 10.0)]
    labels = check(table_inputs(anchors, [[OBJECT]], decoded=decoded, logits=0.0))
    assert labels.gt_index.tolist() == [[0, NEGATIVE]]  # by distance of the anchors
    torch.testing.assert_close(labels.weight, torch.tensor([[0.9, 0.0]]))


@pytest.mark.parametrize("logit", [NAN, -INF, -200.0])
def test_scores_of_zero(logit):
    """Nothing is aligned: the object adopts one, with weight 1."""
    labels = check(table_inputs(slices(5.0, 8.0), [[OBJECT]], logits=logit))
    assert labels.gt_index.tolist() == [[NEGATIVE, 0]]
    assert labels.weight.tolist() == [[0, 1]]


@pytest.mark.parametrize("logit", [-80.0, 80.0, INF])
def test_extreme_scores(logit):
    """Even 1e-35 to the power of one is more than nothing."""
    check(table_inputs(slices(5.0, 8.0, 9.0), [[OBJECT, OBJECT]], logits=logit), beta=1.0)


@pytest.mark.parametrize("value", [INF, -INF, NAN, 1e38])
def test_overflowing_predicted_boxes(value):
    priors = pyramid((8.0, 4, 4), points=True)
    objects = [[(8.0, 8.0, 24.0, 24.0), (1.0, 1.0, 6.0, 6.0)]]
    labels = check(table_inputs(priors, objects, decoded=[(-value, -value, value, value)] * 16))
    assert positives_of(labels) == {0: [5], 1: [0]}
    assert labels.weight.sum() == 2


def test_alignment_too_small_for_float32():
    """The sixth power of an IoU of 1e-9 is 1e-54: nothing is left of it."""
    decoded = [(0.0, 0.0, 1e5, 1e6), (0.0, 0.0, 1e5, 1e6)]
    labels = check(table_inputs(slices(5.0, 8.0), [[OBJECT]], decoded=decoded, logits=0.0))
    assert labels.gt_index.tolist() == [[NEGATIVE, 0]]
    assert labels.weight.tolist() == [[0, 1]]


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


@pytest.mark.parametrize("box", [(9.0, 9.0, 11.0, 11.0), (500.0, 500.0, 510.0, 510.0)])
def test_objects_without_a_prior_inside_have_one(box):
    labels = check(table_inputs(pyramid((8.0, 4, 4), points=True), [[box]]))
    assert [len(mine) for mine in positives_of(labels).values()] == [1]


def test_one_prior():
    one = pyramid((8.0, 1, 1), points=True)
    objects = [(20.0, 20.0, 30.0, 30.0), (0.0, 0.0, 8.0, 8.0)]
    assert check(table_inputs(one, [objects[:1]])).gt_index.tolist() == [[0]]
    assert check(table_inputs(one, [objects])).gt_index.tolist() == [[1]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_warms_up_with_atss(layout):
    inputs = named_inputs(5, layout)
    kind = inputs[0].layout
    assigner = TaskAligned(warmup_epochs=4)
    for epoch in (0.0, 1.5, 3.999):
        assert isinstance(assigner.at(epoch, kind), ATSS)
        assert_same(assign(assigner.at(epoch, kind), inputs), assign(ATSS(), inputs))
    for epoch in (4.0, 4.001, 100.0):
        assert isinstance(assigner.at(epoch, kind), TaskAligned)
        assert_same(assign(assigner.at(epoch, kind), inputs), assign(assigner, inputs))
    assert isinstance(TaskAligned(warmup_epochs=0).at(0.0, kind), TaskAligned)


def test_single_level_anchors():
    check(random_inputs(3))
    assert TaskAligned().resolved_for(canvas_priors(False, 3).layout) == TaskAligned()


@pytest.mark.parametrize(
    "options",
    [{"top_k": 0}, {"alpha": -1.0}, {"beta": -1.0}, {"alpha": NAN}, {"warmup_epochs": -1}, {"chunk_elements": 0}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        TaskAligned(**options)
