"""Mutual Guidance against the loop oracle, every degenerate batch by name, and the properties it promises."""

from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from mgdet.assign import ATSS, MaxIoU, MutualGuidance
from mgdet.errors import ConfigError
from mgdet.structures import IGNORED, NEGATIVE, Predictions, PriorLayout
from tests.assign.helpers import (
    DEGENERATE,
    INF,
    NAN,
    STEPS,
    all_negative,
    assert_matches,
    assert_same,
    assign,
    batches,
    count_positives,
    grid,
    named_inputs,
    positives_of,
    pyramid,
    random_boxes,
    random_inputs,
    table_inputs,
    tasks,
)
from tests.reference.assigners import assign_mutual_guidance
from tests.reference.geometry import read_images
from tests.reference.ownership import count_at_least, find_owners

FOUR_BY_FOUR = pyramid((8.0, 4, 4), points=True)  # points at 4, 12, 20 and 28
VARIANTS = [{"amplify": a, "count": c} for a, c in product(("power", "exponential"), ("iou", "dynamic_k"))]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))


def check(inputs, **options):
    """Assigner and oracle agree; returns the assignment."""
    result = assign(MutualGuidance(**options), inputs)
    assert_matches(result, assign_mutual_guidance(*inputs, **options), inputs)
    return result


@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 3),
    objects=st.integers(0, 7),
    anchors=st.integers(1, 30),
    step=st.sampled_from(STEPS),
    options=st.fixed_dictionaries(
        {
            "sigma": st.sampled_from([1.0, 1.5, 2.0, 10.0]),
            "amplify": st.sampled_from(["power", "exponential"]),
            "count": st.sampled_from(["iou", "dynamic_k"]),
            "top_k": st.sampled_from([1, 2, 5, 15]),
            "direction": st.sampled_from(["both", "both", "loc_to_cls", "cls_to_loc", "none"]),
            "force_ties": st.booleans(),
            "adopt": st.booleans(),
        }
    ),
    thresholds=st.sampled_from([(0.5, 0.4), (0.5, 0.5), (0.7, 0.2), (0.25, 0.125), (1.0, 0.0), (0.0, 0.0)]),
)
def test_equals_the_loop_oracle(seed, images, objects, anchors, step, options, thresholds):
    inputs = random_inputs(seed, images=images, objects=objects, anchors=anchors, step=step)
    options = {**options, "positive_iou": thresholds[0], "negative_iou": thresholds[1]}
    expected = assign_mutual_guidance(*inputs, **options)
    assume(not expected.close_calls)
    assert_matches(assign(MutualGuidance(**options), inputs), expected, inputs)


SETTINGS = st.fixed_dictionaries(
    {
        "prior": st.sampled_from(["auto", "iou", "centre"]),
        "count": st.sampled_from(["auto", "iou", "dynamic_k", "mean_std"]),
        "direction": st.sampled_from(["both", "both", "loc_to_cls", "cls_to_loc", "none"]),
    },
    optional={
        "sigma": st.sampled_from([1.0, 1.5, 10.0]),
        "amplify": st.just("exponential"),
        "top_k": st.sampled_from([1, 2, 40]),
        "candidates": st.sampled_from([1, 4, 30]),
        "base_scale": st.sampled_from([0.5, 1.0, 8.0]),
        "positive_iou": st.sampled_from([0.4, 0.7, 1.0]),
    },
)


@given(batch=batches("points", "anchors", "three anchors"), options=SETTINGS)
def test_equals_the_loop_oracle_on_levels(batch, options):
    assume(batch["layout"] != "points" or options["count"] != "iou")
    inputs = named_inputs(**batch)
    expected = assign_mutual_guidance(*inputs, **options)
    assume(not expected.close_calls)
    assert_matches(assign(MutualGuidance(**options), inputs), expected, inputs)


@every_variant
@pytest.mark.parametrize("seed", range(2))
def test_equals_the_loop_oracle_on_a_crowd_with_few_anchors(seed, variant):
    check(random_inputs(seed, images=1, objects=40, anchors=25, step=4.0), **variant)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop_oracle_with_wild_predicted_boxes(seed):
    """A third of the predicted boxes overflow or are inverted, some images have nothing else."""
    priors, predictions, targets = random_inputs(seed, images=3)
    generator = torch.Generator().manual_seed(seed)
    boxes = predictions.boxes.clone()
    broken = torch.rand(boxes.shape[:2], generator=generator) < 0.3
    broken[0] = True
    values = torch.tensor([NAN, INF, -INF, 1e30, -1e30, 3.0])
    boxes[broken] = values[torch.randint(6, boxes.shape, generator=generator)][broken]
    for variant in VARIANTS:
        check((priors, predictions.replace(boxes=boxes), targets), **variant)


# Degenerate batches ---------------------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("padded", [0, 3])
def test_no_objects_at_all(padded, variant):
    priors, predictions, targets = random_inputs(0, objects=padded)
    result = check((priors, predictions, targets.replace(valid=torch.zeros_like(targets.valid))), **variant)
    assert all_negative(result.cls)
    assert all_negative(result.loc)


@every_variant
def test_no_objects_in_one_image(variant):
    result = check(table_inputs(grid(3, 3), [[(2.0, 2.0, 12.0, 12.0)], [], [(5.0, 5.0, 20.0, 20.0)]]), **variant)
    for labels in tasks(result):
        assert (labels.gt_index[1] == NEGATIVE).all()
        assert count_positives(labels, 0, 1)[0] > 0
        assert count_positives(labels, 2, 1)[0] > 0


@every_variant
@pytest.mark.parametrize("same_class", [True, False])
@pytest.mark.parametrize("copies", [2, 3, 20])
def test_identical_boxes_each_get_a_positive(copies, same_class, variant):
    labels = [[0 if same_class else g % 3 for g in range(copies)]]
    inputs = table_inputs(grid(5, 5), [[(8.0, 8.0, 26.0, 25.0)] * copies], labels=labels)
    for task in tasks(check(inputs, **variant)):
        assert min(count_positives(task, 0, copies)) >= 1


@every_variant
def test_as_many_identical_boxes_as_anchors(variant):
    inputs = table_inputs(grid(3, 3), [[(4.0, 4.0, 20.0, 20.0)] * 9])
    for task in tasks(check(inputs, **variant)):
        assert count_positives(task, 0, 9) == [1] * 9


@every_variant
@pytest.mark.parametrize("box", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_objects_get_nothing_and_disturb_nobody(box, variant):
    for task in tasks(check(table_inputs(grid(4, 4), [[box]]), **variant)):
        assert all_negative(task)
    good = (6.0, 6.0, 22.0, 20.0)
    together = check(table_inputs(grid(4, 4), [[box, good]], labels=[[0, 1]]), **variant)
    alone = check(table_inputs(grid(4, 4), [[good]], labels=[[1]]), **variant)
    for a, b in zip(tasks(together), tasks(alone), strict=True):
        assert torch.equal(a.gt_index, torch.where(b.gt_index >= 0, b.gt_index + 1, b.gt_index))


@every_variant
def test_one_anchor_and_one_object(variant):
    for task in tasks(check(table_inputs([(0.0, 0.0, 8.0, 8.0)], [[(40.0, 40.0, 60.0, 60.0)]]), **variant)):
        assert task.gt_index.tolist() == [[0]]


@every_variant
def test_one_anchor_and_two_objects(variant):
    objects = [(20.0, 20.0, 30.0, 30.0), (0.0, 0.0, 8.0, 8.0)]
    for task in tasks(check(table_inputs([(0.0, 0.0, 8.0, 8.0)], [objects]), **variant)):
        assert task.gt_index.tolist() == [[1]]  # forced for both, the one that overlaps it keeps it


@pytest.mark.parametrize("anchors", [1, 2, 14])
def test_fewer_anchors_than_top_k(anchors):
    boxes = [(float(i), 0.0, float(i) + 16, 16.0) for i in range(anchors)]
    for task in tasks(check(table_inputs(boxes, [[(0.0, 0.0, 16.0, 16.0)]]), count="dynamic_k", top_k=15)):
        assert 1 <= count_positives(task, 0, 1)[0] <= anchors


@every_variant
@pytest.mark.parametrize("value", [INF, -INF, NAN, 1e38])
def test_overflowing_predicted_boxes(value, variant):
    """No predicted box overlaps anything: classification falls back to the anchors."""
    anchors = grid(5, 5)
    objects = [[(4.0, 4.0, 20.0, 20.0), (22.0, 20.0, 38.0, 39.0)]]
    inputs = table_inputs(anchors, objects, decoded=[(-value, -value, value, value)] * len(anchors))
    result = check(inputs, **variant)
    assert count_positives(result.cls, 0, 2) == [1, 1]
    best = assign(MaxIoU(positive_iou=1.0, negative_iou=1.0, force_ties=False), inputs)
    assert torch.equal(result.cls.gt_index >= 0, best.cls.gt_index >= 0)


@every_variant
def test_object_far_outside_everything_takes_the_closest_anchor(variant):
    for task in tasks(check(table_inputs(grid(3, 3), [[(500.0, 500.0, 510.0, 510.0)]]), **variant)):
        assert task.gt_index.tolist() == [[NEGATIVE] * 8 + [0]]


@every_variant
def test_two_objects_far_outside_everything(variant):
    far = (500.0, 500.0, 510.0, 510.0)
    for task in tasks(check(table_inputs(grid(3, 3), [[far, far]]), **variant)):
        assert count_positives(task, 0, 2) == [1, 1]
        assert task.gt_index[0, 8] == 0


def test_exact_thresholds_are_counted_as_reached():
    """Anchor IoUs 1, 0.5, 0.4 and 0.3: two positives and one ignored, whichever anchors predict best."""
    anchors = [(0.0, 0.0, 10.0, h) for h in (10.0, 5.0, 4.0, 3.0)]
    decoded = [(0.0, 0.0, 10.0, h) for h in (2.0, 4.0, 6.0, 8.0)]
    result = check(table_inputs(anchors, [[(0.0, 0.0, 10.0, 10.0)]], decoded=decoded, logits=-9.0))
    assert result.cls.gt_index.tolist() == [[NEGATIVE, IGNORED, 0, 0]]
    assert result.loc.gt_index.tolist() == [[0, 0, NEGATIVE, NEGATIVE]]


def test_a_confident_anchor_overtakes_a_closer_one():
    """With p = 1 and sigma = 2, IoU 0.4 counts as its root 0.63 and passes 0.5."""
    anchors = [(0.0, 0.0, 10.0, h) for h in (10.0, 5.0, 4.0)]
    logits = torch.tensor([[[-50.0], [-50.0], [50.0]]])
    inputs = table_inputs(anchors, [[(0.0, 0.0, 10.0, 10.0)]], logits=logits, classes=1)
    for amplify in ("power", "exponential"):
        assert check(inputs, amplify=amplify).loc.gt_index.tolist() == [[0, NEGATIVE, 0]]
    assert check(inputs, sigma=1e6).loc.gt_index.tolist() == [[0, 0, NEGATIVE]]


@every_variant
@pytest.mark.parametrize("logit", [-80.0, 0.0, 80.0])
def test_all_logits_equal(logit, variant):
    """Every object keeps its due; which of several equal anchors wins is decided as in the oracle."""
    priors, _, targets = random_inputs(5, images=1, anchors=24)
    boxes = random_boxes(torch.Generator().manual_seed(6), 1, 24, step=0.0)
    logits = torch.full((1, 24, 3), logit)
    check((priors, Predictions(priors, logits, torch.zeros(1, 24, 4), boxes), targets), **variant)


@pytest.mark.parametrize("amplify", ["power", "exponential"])
@pytest.mark.parametrize("count", ["iou", "dynamic_k"])
def test_sigma_one_with_certain_scores(amplify, count):
    """The exponent is 0: anchors without overlap stay at 0, all others tie at 1, and the nearest of them are chosen."""
    anchors = [(40.0, 40.0, 50.0, 50.0), *((0.0, 0.0, 10.0, h) for h in (3.0, 10.0, 5.0)), (60.0, 60.0, 70.0, 70.0)]
    inputs = table_inputs(anchors, [[(0.0, 0.0, 10.0, 10.0)]], logits=100.0)
    labels = check(inputs, sigma=1.0, amplify=amplify, count=count).loc.gt_index[0]
    assert labels[0] == NEGATIVE
    assert labels[4] == NEGATIVE
    if amplify == "power":
        assert labels.tolist() == [NEGATIVE, 0 if count == "dynamic_k" else NEGATIVE, 0, 0, NEGATIVE]


# Properties -----------------------------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("step", [0.0, 8.0])
@pytest.mark.parametrize("seed", range(3))
def test_no_more_positives_than_the_anchors_give(seed, step, variant):
    """Np bounds an object's positives in both tasks, and an object that may have one has one."""
    inputs = random_inputs(seed, objects=8, step=step)
    result = assign(MutualGuidance(**variant), inputs)
    for b, image in enumerate(read_images(*inputs)):
        due = count_at_least(find_owners(image, image.prior_iou, enough=0.5), 0.5)
        for task in tasks(result):
            positives = count_positives(task, b, 8)
            for g in range(8):
                if g not in image.objects:
                    assert positives[g] == 0
                elif variant["count"] == "iou":
                    assert min(1, due[g]) <= positives[g] <= due[g]
                else:
                    assert positives[g] >= 1


@every_variant
@pytest.mark.parametrize("objects", [10, 32])
@pytest.mark.parametrize("seed", range(3))
def test_every_object_has_a_positive_as_long_as_there_are_anchors(seed, objects, variant):
    """Identical boxes, the worst case: as many anchors as objects."""
    priors, predictions, targets = random_inputs(seed, objects=objects, anchors=objects, all_valid=True)
    inputs = priors, predictions, targets.replace(boxes=targets.boxes[:, :1].expand_as(targets.boxes).clone())
    for task in tasks(assign(MutualGuidance(**variant), inputs)):
        for b in range(2):
            assert min(count_positives(task, b, objects)) >= 1


@pytest.mark.parametrize("assigner", [MaxIoU(), MutualGuidance()], ids=["max_iou", "mutual_guidance"])
def test_object_that_keeps_only_a_weak_anchor_has_a_positive(assigner):
    """Both objects are closest to anchor 0; the second is also the best, with IoU 0.26, of anchor 1."""
    anchors = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 5.0, 5.0)]
    objects = [[(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 9.5)]]
    for task in tasks(assign(assigner, table_inputs(anchors, objects))):
        assert min(count_positives(task, 0, 2)) >= 1


@pytest.mark.parametrize("options", [{"direction": "none"}, {"direction": "none", "count": "dynamic_k"}])
@pytest.mark.parametrize("thresholds", [(0.5, 0.4), (0.7, 0.3), (0.4, 0.4)])
@pytest.mark.parametrize("step", STEPS)
def test_no_direction_is_the_baseline(step, thresholds, options):
    inputs = random_inputs(21, images=3, objects=9, step=step)
    shared = {"positive_iou": thresholds[0], "negative_iou": thresholds[1]}
    assert_same(assign(MutualGuidance(**options, **shared), inputs), assign(MaxIoU(force_ties=False, **shared), inputs))


@every_variant
@pytest.mark.parametrize(("direction", "static"), [("loc_to_cls", "loc"), ("cls_to_loc", "cls")])
def test_the_unguided_task_is_the_baseline(direction, static, variant):
    inputs = random_inputs(22, images=3, objects=9)
    result = assign(MutualGuidance(direction=direction, **variant), inputs)
    both = assign(MutualGuidance(**variant), inputs)
    guided = "cls" if static == "loc" else "loc"
    assert torch.equal(
        getattr(result, static).gt_index, getattr(assign(MaxIoU(force_ties=False), inputs), static).gt_index
    )
    assert torch.equal(getattr(result, guided).gt_index, getattr(both, guided).gt_index)


@pytest.mark.parametrize("amplify", ["power", "exponential"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("seed", range(2))
def test_an_endless_sigma_is_the_baseline_in_localization(seed, step, amplify):
    inputs = random_inputs(seed, images=3, objects=9, step=step)
    loc = assign(MutualGuidance(sigma=1e12, amplify=amplify), inputs).loc.gt_index
    baseline = assign(MaxIoU(force_ties=False), inputs).loc.gt_index
    assert torch.equal(loc.clamp(min=NEGATIVE), baseline.clamp(min=NEGATIVE))


@pytest.mark.slow
@pytest.mark.parametrize("amplify", ["power", "exponential"])
def test_chunks_change_nothing_for_identical_objects(amplify):
    """Equal boxes of one class tie at every anchor, and the first one has to keep them whatever the memory layout."""
    for anchors, copies in product(range(3, 240, 16), (2, 5, 9)):
        inputs = random_inputs(anchors, images=1, objects=1, anchors=anchors, classes=1, all_valid=True)
        priors, predictions, targets = inputs
        inputs = priors, predictions, targets.map(lambda t, n=copies: t.repeat_interleave(n, dim=1))
        together = assign(MutualGuidance(amplify=amplify, count="dynamic_k"), inputs)
        one_by_one = assign(MutualGuidance(amplify=amplify, count="dynamic_k", chunk_elements=1), inputs)
        assert_same(together, one_by_one)


# Points, and the other settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "count", "expected"),
    [
        (PriorLayout(False, 9), "auto", ("iou", "iou", 15)),
        (PriorLayout(False, 1), "auto", ("iou", "iou", 5)),
        (PriorLayout(False, 2), "mean_std", ("iou", "mean_std", 15)),
        (PriorLayout(False, 1), "dynamic_k", ("iou", "dynamic_k", 5)),
        (PriorLayout(True, 1), "auto", ("centre", "dynamic_k", 5)),
        (PriorLayout(True, 1), "mean_std", ("iou", "mean_std", 5)),
        (PriorLayout(True, 2), "dynamic_k", ("centre", "dynamic_k", 15)),
    ],
)
def test_auto_is_resolved_by_the_layout(layout, count, expected):
    fixed = MutualGuidance(count=count, sigma=3.0).resolved_for(layout)
    assert (fixed.prior, fixed.count, fixed.top_k) == expected
    assert fixed.sigma == 3.0
    assert fixed.resolved_for(layout) == fixed
    chosen = MutualGuidance(prior="centre", count="mean_std", top_k=3)
    assert chosen.resolved_for(layout) == chosen


def test_counting_by_anchor_iou_is_refused_on_points():
    with pytest.raises(ConfigError):
        MutualGuidance(count="iou").resolved_for(PriorLayout(True, 1))
    with pytest.raises(ConfigError):
        assign(MutualGuidance(count="iou"), table_inputs(FOUR_BY_FOUR, [[(0.0, 0.0, 8.0, 8.0)]]))


def test_there_is_no_warmup():
    for layout in (PriorLayout(True, 1), PriorLayout(False, 9)):
        assert isinstance(MutualGuidance().at(0.0, layout), MutualGuidance)


def test_centre_prior_by_hand():
    """Of 32 pixels, points at 4, 12, 20 and 28: 12/20 in the middle, 4/28 elsewhere. Four times 0.6 and once 0.14."""
    inputs = table_inputs(FOUR_BY_FOUR, [[(0.0, 0.0, 32.0, 32.0)]], logits=-80.0)
    assert positives_of(check(inputs).loc) == {0: [5, 6]}
    assert positives_of(check(inputs, top_k=16).loc) == {0: [5, 6, 9, 10]}  # 2.4 and 12 times 0.14: 4.1
    assert positives_of(check(inputs, direction="none").cls) == {0: [5, 6]}


def test_scores_amplify_the_centre_prior():
    """4/28 becomes its root, 0.38, or its 1.65-fold, 0.24; neither is 0.6. With sigma 1 it becomes 1, and is one."""
    logits = torch.full((1, 16, 3), -80.0)
    logits[0, 0] = 80.0
    inputs = table_inputs(FOUR_BY_FOUR, [[(0.0, 0.0, 32.0, 32.0)]], logits=logits)
    assert positives_of(check(inputs).loc) == {0: [5, 6]}
    assert positives_of(check(inputs, amplify="exponential").loc) == {0: [5, 6]}
    assert positives_of(check(inputs, sigma=1.0).loc) == {0: [0, 5, 6]}  # 1 and four times 0.6


@pytest.mark.parametrize(
    ("size", "levels"),
    [(8.0, {0}), (23.9, {0}), (24.0, {0, 1}), (48.0, {0, 1}), (48.1, {1}), (200.0, {1})],
)
def test_scale_decides_on_the_level(size, levels):
    """Bases of 24 and 48 pixels: the first level to 48, the last from 24, both bounds included."""
    priors = pyramid((8.0, 25, 25), (16.0, 13, 13), points=True)
    box = (100.0 - size / 2, 100.0 - size / 2, 100.0 + size / 2, 100.0 + size / 2)
    result = check(table_inputs(priors, [[box]], logits=-80.0), top_k=10000)
    assert {int(a >= 625) for a in positives_of(result.loc)[0]} == levels


def test_scale_between_the_levels():
    """Up to 48 pixels on the first and from 96 on the last level: in between one is adopted."""
    priors = pyramid((8.0, 16, 16), (64.0, 2, 2), points=True)
    result = check(table_inputs(priors, [[(20.0, 20.0, 100.0, 100.0)]], logits=0.0))
    assert [len(mine) for mine in positives_of(result.loc).values()] == [1]


@pytest.mark.parametrize("layout", ["points", "anchors", "three anchors"])
@pytest.mark.parametrize("step", STEPS)
def test_no_direction_with_an_adaptive_threshold_is_atss(layout, step):
    inputs = named_inputs(9, layout, step=step)
    assert_same(assign(MutualGuidance(count="mean_std", direction="none"), inputs), assign(ATSS(), inputs))
    fewer = MutualGuidance(count="mean_std", direction="none", candidates=3)
    assert_same(assign(fewer, inputs), assign(ATSS(top_k=3), inputs))


@pytest.mark.parametrize("layout", ["points", "anchors", "three anchors"])
def test_adaptive_threshold_without_scores_is_atss_in_localization(layout):
    priors, predictions, targets = named_inputs(9, layout)
    inputs = priors, predictions.replace(logits=torch.full_like(predictions.logits, -200.0)), targets
    assert torch.equal(
        assign(MutualGuidance(count="mean_std"), inputs).loc.gt_index, assign(ATSS(), inputs).loc.gt_index
    )


@pytest.mark.parametrize("count", ["dynamic_k", "mean_std"])
@pytest.mark.parametrize("logit", [NAN, -INF, -80.0, 80.0, INF])
@pytest.mark.parametrize("value", [NAN, INF, 1e38, 30.0])
def test_extreme_predictions_on_points(value, logit, count):
    priors = pyramid((8.0, 4, 4), (16.0, 2, 2), points=True)
    objects = [[(1.0, 1.0, 30.0, 30.0), (8.0, 8.0, 24.0, 24.0), (8.0, 8.0, 24.0, 24.0)]]
    inputs = table_inputs(priors, objects, decoded=[(-value, -value, value, value)] * 20, logits=logit)
    for task in tasks(check(inputs, count=count)):
        assert set(positives_of(task)) == {0, 1, 2}


@pytest.mark.parametrize("count", ["dynamic_k", "mean_std"])
@pytest.mark.parametrize("box", [(8.5, 8.5, 10.5, 10.5), (500.0, 500.0, 510.0, 510.0), (-1e30, -1e30, 1e30, 1e30)])
def test_objects_that_fit_no_point_have_one(box, count):
    for task in tasks(check(table_inputs(FOUR_BY_FOUR, [[box]]), count=count)):
        assert set(positives_of(task)) == {0}


def test_one_point():
    one = pyramid((8.0, 1, 1), points=True)
    for count in ("dynamic_k", "mean_std"):
        for task in tasks(check(table_inputs(one, [[(40.0, 40.0, 60.0, 60.0)]]), count=count)):
            assert task.gt_index.tolist() == [[0]]


@pytest.mark.parametrize(
    "options",
    [
        {"sigma": 0.9},
        {"sigma": NAN},
        {"positive_iou": 0.3},
        {"positive_iou": 1.5},
        {"negative_iou": -0.1},
        {"top_k": 0},
        {"top_k": "all"},
        {"candidates": 0},
        {"base_scale": 0.0},
        {"base_scale": NAN},
        {"prior": "box"},
        {"amplify": "root"},
        {"count": "all"},
        {"direction": "up"},
        {"chunk_elements": 0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        MutualGuidance(**options)


def test_is_frozen():
    with pytest.raises(ValidationError):
        MutualGuidance().sigma = 3.0
