"""Mutual Guidance against the loop oracle, every degenerate batch by name, and the properties it promises."""

from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from mgdet.assign import MaxIoU, MutualGuidance
from mgdet.structures import IGNORED, NEGATIVE, Predictions, Targets
from tests.assign.helpers import (
    INF,
    NAN,
    all_negative,
    assert_matches,
    assert_same,
    count_positives,
    grid,
    random_boxes,
    random_inputs,
    table_inputs,
)
from tests.reference.assigners import (
    amplify_quality,
    assign_mutual_guidance,
    count_at_least,
    find_owners,
    read_images,
)

STEPS = [0.0, 1.0, 4.0, 8.0]
VARIANTS = [{"amplify": a, "count": c} for a, c in product(("power", "exponential"), ("iou", "dynamic_k"))]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))


def check(inputs, **options):
    """Assigner and oracle agree; returns the assignment."""
    result = MutualGuidance(**options)(*inputs)
    assert_matches(result, assign_mutual_guidance(*inputs, **options), inputs)
    return result


@settings(max_examples=150, deadline=None, derandomize=True)
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
        }
    ),
    thresholds=st.sampled_from([(0.5, 0.4), (0.5, 0.5), (0.7, 0.2), (0.25, 0.125), (1.0, 0.0), (0.0, 0.0)]),
)
def test_equals_the_loop_oracle(seed, images, objects, anchors, step, options, thresholds):
    inputs = random_inputs(seed, images=images, objects=objects, anchors=anchors, step=step)
    options = {**options, "positive_iou": thresholds[0], "negative_iou": thresholds[1]}
    expected = assign_mutual_guidance(*inputs, **options)
    assume(not expected.close_calls)
    assert_matches(MutualGuidance(**options)(*inputs), expected, inputs)


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
        check((priors, predictions._replace(boxes=boxes), targets), **variant)


# Degenerate batches ---------------------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("padded", [0, 3])
def test_no_objects_at_all(padded, variant):
    priors, predictions, targets = random_inputs(0, objects=padded)
    result = check((priors, predictions, targets._replace(valid=torch.zeros_like(targets.valid))), **variant)
    assert all_negative(result.cls)
    assert all_negative(result.loc)


@every_variant
def test_no_objects_in_one_image(variant):
    result = check(table_inputs(grid(3, 3), [[(2.0, 2.0, 12.0, 12.0)], [], [(5.0, 5.0, 20.0, 20.0)]]), **variant)
    for labels in result:
        assert (labels.gt_index[1] == NEGATIVE).all()
        assert count_positives(labels, 0, 1)[0] > 0
        assert count_positives(labels, 2, 1)[0] > 0


@every_variant
@pytest.mark.parametrize("same_class", [True, False])
@pytest.mark.parametrize("copies", [2, 3, 20])
def test_identical_boxes_each_get_a_positive(copies, same_class, variant):
    labels = [[0 if same_class else g % 3 for g in range(copies)]]
    inputs = table_inputs(grid(5, 5), [[(8.0, 8.0, 26.0, 25.0)] * copies], labels=labels)
    for task in check(inputs, **variant):
        assert min(count_positives(task, 0, copies)) >= 1


@every_variant
def test_as_many_identical_boxes_as_anchors(variant):
    inputs = table_inputs(grid(3, 3), [[(4.0, 4.0, 20.0, 20.0)] * 9])
    for task in check(inputs, **variant):
        assert count_positives(task, 0, 9) == [1] * 9


@every_variant
@pytest.mark.parametrize(
    "box",
    [
        pytest.param((5.0, 5.0, 5.0, 15.0), id="no width"),
        pytest.param((5.0, 5.0, 15.0, 5.0), id="no height"),
        pytest.param((15.0, 15.0, 5.0, 5.0), id="inverted twice"),
        pytest.param((NAN, 5.0, 15.0, 15.0), id="one NaN"),
        pytest.param((NAN, NAN, NAN, NAN), id="all NaN"),
        pytest.param((5.0, 5.0, INF, 15.0), id="infinite corner"),
        pytest.param((-INF, -INF, INF, INF), id="infinite"),
    ],
)
def test_degenerate_objects_get_nothing_and_disturb_nobody(box, variant):
    for task in check(table_inputs(grid(4, 4), [[box]]), **variant):
        assert all_negative(task)
    good = (6.0, 6.0, 22.0, 20.0)
    together = check(table_inputs(grid(4, 4), [[box, good]], labels=[[0, 1]]), **variant)
    alone = check(table_inputs(grid(4, 4), [[good]], labels=[[1]]), **variant)
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.gt_index, torch.where(b.gt_index >= 0, b.gt_index + 1, b.gt_index))


@every_variant
def test_one_anchor_and_one_object(variant):
    for task in check(table_inputs([(0.0, 0.0, 8.0, 8.0)], [[(40.0, 40.0, 60.0, 60.0)]]), **variant):
        assert task.gt_index.tolist() == [[0]]


@every_variant
def test_one_anchor_and_two_objects(variant):
    objects = [(20.0, 20.0, 30.0, 30.0), (0.0, 0.0, 8.0, 8.0)]
    for task in check(table_inputs([(0.0, 0.0, 8.0, 8.0)], [objects]), **variant):
        assert task.gt_index.tolist() == [[0]]  # forced for both, the first keeps it


@pytest.mark.parametrize("anchors", [1, 2, 14])
def test_fewer_anchors_than_top_k(anchors):
    boxes = [(float(i), 0.0, float(i) + 16, 16.0) for i in range(anchors)]
    for task in check(table_inputs(boxes, [[(0.0, 0.0, 16.0, 16.0)]]), count="dynamic_k", top_k=15):
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
    best = MaxIoU(positive_iou=1.0, negative_iou=1.0)(*inputs)
    assert torch.equal(result.cls.gt_index >= 0, best.cls.gt_index >= 0)


@every_variant
def test_object_far_outside_everything_takes_the_closest_anchor(variant):
    for task in check(table_inputs(grid(3, 3), [[(500.0, 500.0, 510.0, 510.0)]]), **variant):
        assert task.gt_index.tolist() == [[NEGATIVE] * 8 + [0]]


@every_variant
def test_two_objects_far_outside_everything(variant):
    far = (500.0, 500.0, 510.0, 510.0)
    for task in check(table_inputs(grid(3, 3), [[far, far]]), **variant):
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
    """Every object keeps its due; which of several equal anchors wins is the lowest index, as in the oracle."""
    priors, _, targets = random_inputs(5, images=1, anchors=24)
    boxes = random_boxes(torch.Generator().manual_seed(6), 1, 24, step=0.0)
    logits = torch.full((1, 24, 3), logit)
    check((priors, Predictions(logits, torch.zeros(1, 24, 4), boxes), targets), **variant)


@pytest.mark.parametrize("amplify", ["power", "exponential"])
@pytest.mark.parametrize("count", ["iou", "dynamic_k"])
def test_sigma_one_with_certain_scores(amplify, count):
    """The exponent is 0: anchors without overlap stay at 0, all others tie at 1."""
    anchors = [(40.0, 40.0, 50.0, 50.0), *((0.0, 0.0, 10.0, h) for h in (3.0, 10.0, 5.0)), (60.0, 60.0, 70.0, 70.0)]
    inputs = table_inputs(anchors, [[(0.0, 0.0, 10.0, 10.0)]], logits=100.0)
    labels = check(inputs, sigma=1.0, amplify=amplify, count=count).loc.gt_index[0]
    assert labels[0] == NEGATIVE
    assert labels[4] == NEGATIVE
    if amplify == "power":
        assert labels.tolist() == [NEGATIVE, 0, 0, 0 if count == "dynamic_k" else NEGATIVE, NEGATIVE]


# Properties -----------------------------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("step", [0.0, 8.0])
@pytest.mark.parametrize("seed", range(3))
def test_no_more_positives_than_the_anchors_give(seed, step, variant):
    """Np bounds an object's positives in both tasks, and an object that may have one has one."""
    inputs = random_inputs(seed, objects=8, step=step)
    result = MutualGuidance(**variant)(*inputs)
    for b, image in enumerate(read_images(*inputs)):
        due = count_at_least(find_owners(image, image.prior_iou, enough=0.5), 0.5)
        for task in result:
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
    inputs = priors, predictions, targets._replace(boxes=targets.boxes[:, :1].expand_as(targets.boxes).clone())
    for task in MutualGuidance(**variant)(*inputs):
        for b in range(2):
            assert min(count_positives(task, b, objects)) >= 1


@pytest.mark.parametrize("assigner", [MaxIoU(), MutualGuidance()], ids=["max_iou", "mutual_guidance"])
def test_object_that_keeps_only_a_weak_anchor_has_a_positive(assigner):
    """Both objects are closest to anchor 0; the second is also the best, with IoU 0.26, of anchor 1."""
    anchors = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 5.0, 5.0)]
    objects = [[(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 9.5)]]
    for task in assigner(*table_inputs(anchors, objects)):
        assert min(count_positives(task, 0, 2)) >= 1


@pytest.mark.parametrize("options", [{"direction": "none"}, {"direction": "none", "count": "dynamic_k"}])
@pytest.mark.parametrize("thresholds", [(0.5, 0.4), (0.7, 0.3), (0.4, 0.4)])
@pytest.mark.parametrize("step", STEPS)
def test_no_direction_is_the_baseline(step, thresholds, options):
    inputs = random_inputs(21, images=3, objects=9, step=step)
    shared = {"positive_iou": thresholds[0], "negative_iou": thresholds[1]}
    assert_same(MutualGuidance(**options, **shared)(*inputs), MaxIoU(**shared)(*inputs))


@every_variant
@pytest.mark.parametrize(("direction", "static"), [("loc_to_cls", "loc"), ("cls_to_loc", "cls")])
def test_the_unguided_task_is_the_baseline(direction, static, variant):
    inputs = random_inputs(22, images=3, objects=9)
    result = MutualGuidance(direction=direction, **variant)(*inputs)
    both = MutualGuidance(**variant)(*inputs)
    guided = "cls" if static == "loc" else "loc"
    assert torch.equal(getattr(result, static).gt_index, getattr(MaxIoU()(*inputs), static).gt_index)
    assert torch.equal(getattr(result, guided).gt_index, getattr(both, guided).gt_index)


@pytest.mark.parametrize("amplify", ["power", "exponential"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("seed", range(2))
def test_an_endless_sigma_is_the_baseline_in_localization(seed, step, amplify):
    inputs = random_inputs(seed, images=3, objects=9, step=step)
    loc = MutualGuidance(sigma=1e12, amplify=amplify)(*inputs).loc.gt_index
    baseline = MaxIoU()(*inputs).loc.gt_index
    assert torch.equal(loc.clamp(min=NEGATIVE), baseline.clamp(min=NEGATIVE))


@every_variant
@pytest.mark.parametrize("seed", [0, 1, 4, 5, 8])
def test_order_of_objects_does_not_matter(seed, variant):
    """For objects in general position: no two closest to the same anchor under any criterion."""
    priors, predictions, targets = random_inputs(seed, images=1, objects=4, anchors=60)
    image = read_images(priors, predictions, targets)[0]
    for quality in (image.prior_iou, image.regressed, amplify_quality(image, 2.0, variant["amplify"])):
        forced = list(find_owners(image, quality).forced.values())
        assert len(set(forced)) == len(forced), "choose another seed"
    assigner = MutualGuidance(**variant)
    result = assigner(priors, predictions, targets)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    shuffled = assigner(priors, predictions, Targets(*(t[:, order] for t in targets)))
    for a, b in zip(result, shuffled, strict=True):
        assert torch.equal(a.gt_index, torch.where(b.gt_index >= 0, order[b.gt_index.clamp(min=0)], b.gt_index))


@every_variant
def test_images_are_independent(variant):
    priors, predictions, targets = random_inputs(31, images=4)
    order = torch.tensor([2, 0, 3, 1])
    result = MutualGuidance(**variant)(priors, predictions, targets)
    shuffled = MutualGuidance(**variant)(
        priors, Predictions(*(t[order] for t in predictions[:3])), Targets(*(t[order] for t in targets))
    )
    for a, b in zip(result, shuffled, strict=True):
        assert torch.equal(a.gt_index[order], b.gt_index)


@every_variant
def test_extra_padding_changes_nothing(variant):
    priors, predictions, targets = random_inputs(32)
    images = targets.boxes.shape[0]
    padded = Targets(
        boxes=torch.cat([targets.boxes, torch.full((images, 7, 4), NAN)], dim=1),
        labels=torch.cat([targets.labels, torch.zeros(images, 7, dtype=torch.int64)], dim=1),
        valid=torch.cat([targets.valid, torch.zeros(images, 7, dtype=torch.bool)], dim=1),
    )
    assigner = MutualGuidance(**variant)
    assert_same(assigner(priors, predictions, targets), assigner(priors, predictions, padded))


@every_variant
@pytest.mark.parametrize("chunk_elements", [1, 7, 1000, 2**40])
def test_chunks_change_nothing(chunk_elements, variant):
    inputs = random_inputs(33, images=3, objects=9)
    assert_same(MutualGuidance(chunk_elements=chunk_elements, **variant)(*inputs), MutualGuidance(**variant)(*inputs))


@pytest.mark.parametrize("amplify", ["power", "exponential"])
def test_chunks_change_nothing_for_identical_objects(amplify):
    """Equal boxes of one class tie at every anchor, and the first one has to keep them whatever the memory layout."""
    for anchors, copies in product(range(3, 240, 4), (2, 3, 5, 9)):
        inputs = random_inputs(anchors, images=1, objects=1, anchors=anchors, classes=1, all_valid=True)
        priors, predictions, targets = inputs
        inputs = priors, predictions, Targets(*(t.repeat_interleave(copies, dim=1) for t in targets))
        together = MutualGuidance(amplify=amplify, count="dynamic_k")(*inputs)
        one_by_one = MutualGuidance(amplify=amplify, count="dynamic_k", chunk_elements=1)(*inputs)
        assert_same(together, one_by_one)


@every_variant
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_assigned_in_float32(dtype, variant):
    priors, predictions, targets = random_inputs(34)
    half = predictions._replace(logits=predictions.logits.to(dtype), boxes=predictions.boxes.to(dtype))
    full = half._replace(logits=half.logits.float(), boxes=half.boxes.float())
    assigner = MutualGuidance(**variant)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = assigner(priors, half, targets)
    assert_same(result, assigner(priors, full, targets))
    assert result.cls.weight.dtype == torch.float32


@every_variant
def test_inputs_are_left_alone_and_no_gradient_flows(variant):
    priors, predictions, targets = random_inputs(35)
    predictions = predictions._replace(
        logits=predictions.logits.requires_grad_(), boxes=predictions.boxes.requires_grad_()
    )
    tensors = [priors.boxes, priors.strides, *predictions[:3], *targets]
    before = [t.detach().clone() for t in tensors]
    for labels in MutualGuidance(**variant)(priors, predictions, targets):
        assert not labels.weight.requires_grad
        assert labels.weight.grad_fn is None
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor.detach(), copy)


class Recorder(TorchDispatchMode):
    """Counts the operators whose result the host must wait for."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if by_mask or any(name == w or name.startswith(w + "_") for w in self.WAITING):
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


@every_variant
@pytest.mark.parametrize("objects", [0, 1, 9])
def test_host_never_waits_for_the_values(objects, variant):
    """But for the look for orphans, once per criterion, which is free on the CPU and not done elsewhere."""
    inputs = random_inputs(36, images=4, objects=objects)
    with Recorder() as recorder:
        MutualGuidance(chunk_elements=1, **variant)(*inputs)
    assert set(recorder.waits) <= {"_local_scalar_dense", "is_nonzero"}
    assert len(recorder.waits) <= 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_variant
@pytest.mark.parametrize("step", [0.0, 8.0])
def test_gpu_agrees_with_the_oracle_without_waiting(step, variant):
    inputs = random_inputs(38, images=3, objects=9, step=step)
    expected = assign_mutual_guidance(*inputs, **variant)
    priors, predictions, targets = inputs
    there = (
        priors._replace(boxes=priors.boxes.cuda(), strides=priors.strides.cuda()),
        Predictions(*(t.cuda() for t in predictions[:3])),
        Targets(*(t.cuda() for t in targets)),
    )
    assigner = MutualGuidance(**variant)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = assigner(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_matches(type(result)(*(type(t)(*(v.cpu() for v in t)) for t in result)), expected, inputs)


@pytest.mark.parametrize(
    "options",
    [
        {"sigma": 0.9},
        {"sigma": NAN},
        {"positive_iou": 0.3},
        {"positive_iou": 1.5},
        {"negative_iou": -0.1},
        {"top_k": 0},
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
