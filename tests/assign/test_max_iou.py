"""The static baseline against the loop oracle, and every degenerate batch by name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mgdet.assign import MaxIoU
from mgdet.errors import ConfigError
from mgdet.structures import IGNORED, NEGATIVE, PriorLayout
from tests.assign.helpers import (
    DEGENERATE,
    NAN,
    STEPS,
    all_negative,
    assert_matches,
    assign,
    batches,
    count_positives,
    grid,
    named_inputs,
    pyramid,
    random_inputs,
    table_inputs,
)
from tests.reference.assigners import assign_max_iou

FORCE = st.fixed_dictionaries({key: st.booleans() for key in ("force_match", "force_ties", "adopt")})


def check(inputs, **options):
    """Assigner and oracle agree; returns the assignment."""
    result = assign(MaxIoU(**options), inputs)
    assert_matches(result, assign_max_iou(*inputs, **options), inputs)
    return result


@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 3),
    objects=st.integers(0, 8),
    anchors=st.integers(1, 40),
    step=st.sampled_from(STEPS),
    thresholds=st.sampled_from([(0.5, 0.4), (0.5, 0.5), (0.7, 0.3), (0.25, 0.125), (1.0, 0.0), (1.0, 1.0), (0.0, 0.0)]),
    options=FORCE,
)
def test_equals_the_loop_oracle(seed, images, objects, anchors, step, thresholds, options):
    inputs = random_inputs(seed, images=images, objects=objects, anchors=anchors, step=step)
    check(inputs, positive_iou=thresholds[0], negative_iou=thresholds[1], **options)


@given(batch=batches("anchors", "three anchors"), options=FORCE)
def test_equals_the_loop_oracle_on_levels(batch, options):
    check(named_inputs(**batch), **options)


@pytest.mark.parametrize("force_match", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop_oracle_on_a_crowd_with_few_anchors(seed, force_match):
    check(random_inputs(seed, objects=40, anchors=25, step=8.0), force_match=force_match)


def test_both_tasks_share_one_labels_object():
    result = assign(MaxIoU(), random_inputs(0))
    assert result.cls is result.loc


def test_textbook_case():
    anchors = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 6.0), (0.0, 0.0, 10.0, 4.5), (0.0, 0.0, 10.0, 2.0)]
    result = check(table_inputs(anchors, [[(0.0, 0.0, 10.0, 10.0)]]))
    assert result.cls.gt_index.tolist() == [[0, 0, IGNORED, NEGATIVE]]
    assert result.cls.weight.tolist() == [[1, 1, 0, 0]]


def test_exact_thresholds_count_as_reached():
    """IoU exactly 0.5 is positive, exactly 0.4 is ignored."""
    anchors = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 5.0), (0.0, 0.0, 10.0, 4.0), (0.0, 0.0, 10.0, 3.9)]
    result = check(table_inputs(anchors, [[(0.0, 0.0, 10.0, 10.0)]]))
    assert result.cls.gt_index.tolist() == [[0, 0, IGNORED, NEGATIVE]]


def test_no_band_between_equal_thresholds():
    result = check(random_inputs(3), positive_iou=0.4, negative_iou=0.4)
    assert not (result.cls.gt_index == IGNORED).any()


def test_force_match_gives_a_small_object_its_best_anchors():
    """It lies in four anchors whose IoU is the same; the centre of the first is nearest."""
    inputs = table_inputs(grid(4, 4), [[(9.0, 9.0, 11.0, 11.0)]])
    assert count_positives(check(inputs).cls, 0, 1) == [4]
    assert check(inputs, force_ties=False).cls.gt_index.tolist() == [[NEGATIVE] * 5 + [0] + [NEGATIVE] * 10]
    assert all_negative(check(inputs, force_match=False).cls)


def test_object_far_outside_all_anchors_takes_the_closest():
    anchors = grid(3, 3)
    result = check(table_inputs(anchors, [[(500.0, 500.0, 510.0, 510.0)]]))
    assert result.cls.gt_index.tolist() == [[NEGATIVE] * 8 + [0]]


@pytest.mark.parametrize("padded", [0, 3])
def test_no_objects_at_all(padded):
    priors, predictions, targets = random_inputs(0, objects=padded)
    inputs = priors, predictions, targets.replace(valid=torch.zeros_like(targets.valid))
    for force_match in (True, False):
        assert all_negative(check(inputs, force_match=force_match).cls)


def test_no_objects_in_one_image():
    result = check(table_inputs(grid(3, 3), [[(2.0, 2.0, 12.0, 12.0)], [], [(5.0, 5.0, 20.0, 20.0)]]))
    assert (result.cls.gt_index[1] == NEGATIVE).all()
    assert count_positives(result.cls, 0, 1)[0] > 0
    assert count_positives(result.cls, 2, 1)[0] > 0


@pytest.mark.parametrize("same_class", [True, False])
@pytest.mark.parametrize("copies", [2, 3, 20])
def test_identical_boxes_each_get_a_positive(copies, same_class):
    labels = [[0 if same_class else g % 3 for g in range(copies)]]
    inputs = table_inputs(grid(5, 5), [[(8.0, 8.0, 26.0, 25.0)] * copies], labels=labels)
    assert min(count_positives(check(inputs).cls, 0, copies)) >= 1


def test_identical_boxes_without_force_belong_to_the_first():
    inputs = table_inputs(grid(5, 5), [[(8.0, 8.0, 24.0, 24.0)] * 3])
    assert count_positives(check(inputs, force_match=False).cls, 0, 3)[1:] == [0, 0]


@pytest.mark.parametrize("box", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_objects_get_nothing_and_disturb_nobody(box):
    alone = table_inputs(grid(4, 4), [[box]])
    assert all_negative(check(alone).cls)
    good = (6.0, 6.0, 22.0, 20.0)
    together = check(table_inputs(grid(4, 4), [[box, good]]))
    expected = check(table_inputs(grid(4, 4), [[good]])).cls.gt_index
    assert torch.equal(together.cls.gt_index, torch.where(expected >= 0, expected + 1, expected))


def test_one_anchor_and_one_object():
    assert check(table_inputs([(0.0, 0.0, 8.0, 8.0)], [[(6.0, 6.0, 30.0, 30.0)]])).cls.gt_index.tolist() == [[0]]


def test_one_anchor_and_two_objects():
    objects = [(20.0, 20.0, 30.0, 30.0), (0.0, 0.0, 8.0, 8.0)]
    result = check(table_inputs([(0.0, 0.0, 8.0, 8.0)], [objects]))
    assert result.cls.gt_index.tolist() == [[1]]  # the best of both, and only the second overlaps it


def test_more_orphans_than_are_helped():
    result = check(table_inputs(grid(7, 7), [[(8.0, 8.0, 24.0, 24.0)] * 40]))
    positives = count_positives(result.cls, 0, 40)
    assert min(positives[:33]) >= 1
    assert positives[33:] == [0] * 7


@pytest.mark.parametrize("per_location", [1, 9])
def test_points_are_refused(per_location):
    with pytest.raises(ConfigError):
        MaxIoU().resolved_for(PriorLayout(True, per_location))
    assert MaxIoU().resolved_for(PriorLayout(False, per_location)) == MaxIoU()
    with pytest.raises(ConfigError):
        assign(MaxIoU(), table_inputs(pyramid((8.0, 2, 2), points=True), [[(0.0, 0.0, 8.0, 8.0)]]))


@pytest.mark.parametrize(
    "options",
    [
        {"positive_iou": 0.3},
        {"positive_iou": 0.5, "negative_iou": 0.6},
        {"positive_iou": 1.1},
        {"negative_iou": -0.1},
        {"positive_iou": NAN},
        {"chunk_elements": 0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        MaxIoU(**options)


def test_is_frozen():
    with pytest.raises(ValidationError):
        MaxIoU().positive_iou = 0.6
