"""What every assigner promises, in all its settings, on anchors and on points."""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mgdet.assign import (
    ATSS,
    DDOD,
    DLA,
    DW,
    OTA,
    PAA,
    AutoAssign,
    CenterSampling,
    FreeAnchor,
    MaxIoU,
    MuSu,
    MutualGuidance,
    MutualLabeling,
    Permutation,
    SimOTA,
    TaskAligned,
    base,
    geometry,
    places,
)
from mgdet.structures import Assignment, PriorLayout, Targets
from tests.assign.helpers import (
    DEGENERATE,
    LAYOUTS,
    NAN,
    Inputs,
    Recorder,
    assert_matches,
    assert_same,
    assert_well_formed,
    assign,
    grid_inputs,
    named_inputs,
    random_inputs,
    tasks,
)
from tests.reference import assigners as oracle
from tests.reference import published, shelf, weighting


class Case(NamedTuple):
    """An assigner with its settings, on one kind of priors."""

    make: type
    reference: Callable
    options: dict[str, Any]
    layout: str

    @property
    def assigner(self):
        """The assigner under test."""
        return self.make(**self.options)

    @property
    def soft(self) -> bool:
        """Weights are soft targets."""
        return self.make in (TaskAligned, MuSu, AutoAssign, DW)

    def inputs(self, seed: int, **options) -> Inputs:
        """A random batch on the case's priors."""
        return named_inputs(seed, self.layout, **options)

    def orderly_inputs(self, amount: int) -> list[Inputs]:
        """Random batches in which, says the oracle, the order of the objects decides nothing."""
        found = []
        for seed in range(60):
            priors, predictions, targets = self.inputs(seed, images=1, objects=4, classes=4, clean=True)
            inputs = priors, predictions, targets.replace(labels=torch.arange(4)[None])  # scores of a class would tie
            if not self.reference(*inputs, **self.options).order_matters:
                found.append(inputs)
            if len(found) == amount:
                return found
        raise AssertionError("no seed will do: change the objects")


SEVERAL_PER_LOCATION: list[tuple[type, dict[str, Any]]] = [
    (MaxIoU, {}),
    (ATSS, {}),
    (TaskAligned, {}),
    (SimOTA, {}),
    (MutualGuidance, {"amplify": "power", "count": "iou"}),
    (MutualGuidance, {"amplify": "power", "count": "dynamic_k"}),
    (MutualGuidance, {"count": "mean_std"}),
    (MutualLabeling, {"direction": "both", "count": "baseline", "criterion": "regularised"}),
    (MutualLabeling, {"direction": "both", "count": "mean_std", "criterion": "amplified"}),
    (MutualLabeling, {"direction": "both", "count": "dynamic_k", "criterion": "score"}),
    (FreeAnchor, {"bag": 7}),
    *((make, {}) for make in (PAA, OTA, DDOD, DLA, MuSu, AutoAssign, DW, Permutation)),
]
"""What is also tried with three anchors at a place, to save time."""


def make_cases() -> dict[str, Case]:
    """All combinations, by name."""
    methods: list[tuple[type, Callable, dict[str, Any]]] = [
        (MaxIoU, oracle.assign_max_iou, {}),
        (MaxIoU, oracle.assign_max_iou, {"force_match": False}),
        (MaxIoU, oracle.assign_max_iou, {"force_ties": False}),
        (CenterSampling, oracle.assign_center_sampling, {}),
        (CenterSampling, oracle.assign_center_sampling, {"radius": None, "regress_range": (1.0, 2.0)}),
        (ATSS, oracle.assign_atss, {}),
        (ATSS, oracle.assign_atss, {"adopt": False}),
        (TaskAligned, oracle.assign_task_aligned, {}),
        (SimOTA, oracle.assign_simota, {}),
        (SimOTA, published.yolox, {"version": "yolox-0.3.0", "adopt": False}),
    ]
    methods += [
        (FreeAnchor, shelf.assign_free_anchor, {"bag": 7}),
        (PAA, shelf.assign_paa, {}),
        (OTA, shelf.assign_ota, {}),
        (DDOD, shelf.assign_ddod, {}),
        (DLA, shelf.assign_dla, {}),
        (MuSu, shelf.assign_musu, {}),
        (AutoAssign, weighting.assign_auto_assign, {}),
        (DW, weighting.assign_dw, {}),
        (DW, weighting.assign_dw, {"fit": "iou", "negatives": "fixed"}),
        (Permutation, shelf.assign_permutation, {}),
        (Permutation, shelf.assign_permutation, {"of": "mutual_guidance", "redraw": "never"}),
        (Permutation, shelf.assign_permutation, {"of": "atss", "floor": 0.3}),
    ]
    guidance = [{"amplify": a, "count": c} for a, c in product(("power", "exponential"), ("iou", "dynamic_k"))]
    guidance += [
        {"count": "mean_std"},
        {"count": "mean_std", "prior": "centre"},
        {"count": "dynamic_k", "prior": "iou"},
    ]
    guidance += [{"direction": d, "count": c} for d, c in product(("loc_to_cls", "none"), ("dynamic_k", "mean_std"))]
    methods += [(MutualGuidance, oracle.assign_mutual_guidance, options) for options in guidance]
    labeling: list[dict[str, Any]] = [
        {"direction": "both", "count": count, "criterion": criterion}
        for count, criterion in product(("baseline", "mean_std", "dynamic_k"), ("score", "amplified", "regularised"))
    ]
    labeling += [
        {"direction": "cls_to_loc", "count": "dynamic_k", "criterion": "score"},
        {"direction": "both", "count": "baseline", "criterion": "regularised", "region": "centre"},
    ]
    methods += [(MutualLabeling, oracle.assign_mutual_labeling, options) for options in labeling]
    cases = {}
    for (make, reference, options), layout in product(methods, LAYOUTS):
        points, several = LAYOUTS[layout]["points"], LAYOUTS[layout]["per_location"] > 1
        undefined = (
            (points and (make is MaxIoU or options.get("count") == "iou"))
            or (several and make is CenterSampling)
            or (not points and "region" in options)
        )
        if several and (make, options) not in SEVERAL_PER_LOCATION:
            continue
        if not undefined:
            settings = " ".join(f"{key}={value}" for key, value in options.items())
            cases[f"{layout}: {make.__name__} {settings}".strip()] = Case(make, reference, options, layout)
    return cases


CASES = make_cases()
SHELF = (FreeAnchor, PAA, OTA, DDOD, DLA, MuSu, AutoAssign, DW, Permutation)


def cover() -> set[str]:
    """Few cases that together hold every assigner on every kind of priors, and every value of its options.

    The unit tier tries these, the exhaustive tier all combinations. Of the methods that stand beside the two papers and
    their controls the unit tier takes one kind of priors.
    """

    def holds(case: Case) -> set[tuple[Any, ...]]:
        layout = None if case.make in SHELF else case.layout
        return {(case.make, layout), *((case.make, *option) for option in case.options.items())}

    missing = set().union(*map(holds, CASES.values()))
    chosen = set()
    while missing:
        name = max(CASES, key=lambda name: len(holds(CASES[name]) & missing))
        chosen.add(name)
        missing -= holds(CASES[name])
    return chosen


def parametrized(cases: dict[str, Case]) -> pytest.MarkDecorator:
    """The test runs for each of the cases, in the tier that it belongs to."""
    unit = cover()
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=name, marks=() if name in unit else pytest.mark.exhaustive)
            for name, case in cases.items()
        ],
    )


every_case = parametrized(CASES)
every_step = pytest.mark.parametrize("step", [pytest.param(0.0, marks=pytest.mark.exhaustive), 8.0])


def insert_objects(targets: Targets, boxes: Tensor, valid: bool) -> tuple[Targets, Tensor]:
    """Targets with `boxes` `[n, 4]` between those of every image, and the new index of each old object."""
    images, objects = targets.valid.shape
    total = objects + len(boxes)
    new = torch.tensor([min(2 * i, objects + i) for i in range(len(boxes))])
    old = torch.tensor([g for g in range(total) if g not in new.tolist()])
    wider = Targets(
        torch.zeros(images, total, 4), torch.zeros(images, total, dtype=torch.int64), torch.zeros(images, total).bool()
    )
    for name in ("boxes", "labels", "valid"):
        getattr(wider, name)[:, old] = getattr(targets, name)
    wider.boxes[:, new] = boxes
    wider.valid[:, new] = valid
    return wider, old


def renumber(result: Assignment, index: Tensor) -> Assignment:
    """Object `g` of the assignment becomes `index[g]`."""
    return result.map(lambda t: t if t.is_floating_point() else torch.where(t >= 0, index[t.clamp(min=0)], t))


@every_case
def test_order_of_objects_does_not_matter(case):
    for priors, predictions, targets in case.orderly_inputs(2):
        order = torch.tensor([2, 0, 3, 1])
        objects = {name: getattr(targets, name)[:, order] for name in ("boxes", "labels", "valid")}
        shuffled = assign(case.assigner, (priors, predictions, targets.replace(**objects)))
        assert_same(renumber(shuffled, order), assign(case.assigner, (priors, predictions, targets)))


@every_case
def test_images_are_independent(case):
    for step in (0.0, 8.0):
        priors, predictions, targets = case.inputs(3, images=4, step=step)
        result = assign(case.assigner, (priors, predictions, targets))
        for chosen in (torch.tensor([2, 0, 3, 1]), torch.tensor([1])):
            part = assign(case.assigner, (priors, predictions[chosen], targets[chosen]))
            assert_same(part, result[chosen])


@every_case
def test_extra_padding_changes_nothing(case):
    for step in (0.0, 8.0):
        priors, predictions, targets = case.inputs(4, step=step)
        result = assign(case.assigner, (priors, predictions, targets))
        for filling in (0.0, NAN, 20.0):
            boxes = torch.full((4, 4), filling)
            boxes[:, 2:] += 8
            padded, index = insert_objects(targets, boxes, valid=False)
            assert_same(assign(case.assigner, (priors, predictions, padded)), renumber(result, index))


@every_case
def test_degenerate_objects_get_nothing_and_disturb_nobody(case):
    for step in (0.0, 8.0):
        priors, predictions, targets = case.inputs(5, step=step, clean=True)
        result = assign(case.assigner, (priors, predictions, targets))
        more, index = insert_objects(targets, torch.tensor(list(DEGENERATE.values())), valid=True)
        assert_same(assign(case.assigner, (priors, predictions, more)), renumber(result, index))
        alone = more.replace(valid=more.valid.index_fill(1, index, False))
        for labels in tasks(assign(case.assigner, (priors, predictions, alone))):
            assert (labels.gt_index == -1).all()
            assert (labels.weight == 0).all()


@every_case
@every_step
def test_chunks_change_nothing(step, case):
    inputs = case.inputs(6, images=1, objects=9, canvas=32, step=step)  # 21 or 63 priors
    expected = assign(case.assigner, inputs)
    for chunk_elements in (1, 100, 2**40):
        assert_same(assign(case.make(**case.options, chunk_elements=chunk_elements), inputs), expected)


@every_case
def test_chunks_change_nothing_for_identical_objects(case):
    """Equal boxes of one class tie at every prior, and the first one has to keep them whatever the memory layout."""
    for seed, copies in ((0, 2), (1, 5)):
        priors, predictions, targets = case.inputs(seed, images=1, objects=2, canvas=[32, 64][seed], clean=True)
        inputs = priors, predictions, targets.map(lambda t, n=copies: t.repeat_interleave(n, dim=1))
        assert_same(assign(case.make(**case.options, chunk_elements=1), inputs), assign(case.assigner, inputs))


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_assigned_in_float32(dtype, case):
    priors, predictions, targets = case.inputs(7)
    boxes = predictions.boxes.clamp(-60000, 60000)
    half = predictions.replace(logits=predictions.logits.to(dtype), boxes=boxes.to(dtype))
    full = half.replace(logits=half.logits.float(), boxes=half.boxes.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = assign(case.assigner, (priors, half, targets))
    assert_same(result, assign(case.assigner, (priors, full, targets)))
    assert_well_formed(result, (priors, full, targets), soft=case.soft)


@every_case
def test_inputs_are_left_alone_and_no_gradient_flows(case):
    priors, predictions, targets = case.inputs(8)
    expected = assign(case.assigner, (priors, predictions, targets))
    predictions = predictions.replace(
        logits=predictions.logits.clone().requires_grad_(), boxes=predictions.boxes.clone().requires_grad_()
    )
    tensors = [priors.boxes, priors.strides, predictions.logits, predictions.deltas, predictions.boxes]
    tensors += targets.fields().values()
    before = [t.detach().clone() for t in tensors]
    result = assign(case.assigner, (priors, predictions, targets))
    assert_same(result, expected)
    for labels in tasks(result):
        assert not labels.weight.requires_grad
        assert labels.weight.grad_fn is None
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor.detach().nan_to_num(), copy.nan_to_num())


def assert_each_has_one(case: Case, inputs: Inputs) -> None:
    """Every usable object has a positive in each task, and no other object has one."""
    boxes = inputs[2].boxes
    usable = inputs[2].valid & torch.isfinite(boxes).all(dim=-1) & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    for labels in tasks(assign(case.assigner, inputs)):
        for b, wanted in enumerate(usable.tolist()):
            have = set(labels.gt_index[b].tolist())
            assert [g in have for g in range(len(wanted))] == wanted


CASES_THAT_PROVIDE = {
    name: case
    for name, case in CASES.items()
    if case.options.get("force_match", True) and case.options.get("adopt", True)
}


@parametrized(CASES_THAT_PROVIDE)
@every_step
def test_every_object_has_a_positive(step, case):
    """In a crowd and all at one place; at most 32 objects, so at most 32 orphans."""
    assert_each_has_one(case, case.inputs(1, objects=32, step=step))
    priors, predictions, targets = case.inputs(3, images=1, canvas=32, objects=21, step=step, clean=True)
    same = targets.replace(boxes=targets.boxes[:, :1].expand_as(targets.boxes).clone())
    assert_each_has_one(case, (priors, predictions, same))  # without several per location as many as priors
    assert_each_has_one(case, (priors, predictions, same.replace(labels=torch.zeros_like(same.labels))))
    far = same.replace(boxes=same.boxes + 1000)
    assert_each_has_one(case, (priors, predictions, far))


@parametrized(CASES_THAT_PROVIDE)
def test_at_most_32_orphans_are_helped(case):
    """Of 40 identical objects the first may have a prior anyway, and the first 32 of the others are given one."""
    priors, predictions, targets = case.inputs(1, images=1, objects=1, canvas=64, clean=True)
    same = targets.map(lambda t: t.repeat_interleave(40, dim=1))
    for labels in tasks(assign(case.assigner, (priors, predictions, same))):
        owners = sorted(set(labels.gt_index[0].tolist()) - {-1, -2})
        assert owners in (list(range(32)), list(range(33)))


@every_case
@pytest.mark.parametrize("objects", [0, 4])
def test_host_never_waits_for_the_values(objects, case, monkeypatch):
    """Where it may not look. On the CPU that is free, and the labels are equal."""
    inputs = case.inputs(9, images=3, objects=objects, step=8.0)
    monkeypatch.setattr(places, "SMALL", 0)
    expected = assign(case.assigner, inputs)
    for module in (base, geometry, places):
        monkeypatch.setattr(module, "host_may_look", lambda tensor: False)
    with Recorder() as recorder:
        result = assign(case.make(**case.options, chunk_elements=1), inputs)
    assert recorder.waits == []
    assert_same(result, expected)


@every_case
def test_resolved_settings_give_the_same_labels(case):
    inputs = case.inputs(10)
    fixed = case.assigner.resolved_for(inputs[0].layout)
    assert type(fixed) is case.make
    assert "auto" not in fixed.model_dump().values()
    assert fixed.resolved_for(inputs[0].layout) == fixed
    assert_same(assign(fixed, inputs), assign(case.assigner, inputs))
    assert case.make.model_validate(fixed.model_dump()) == fixed


@every_case
def test_after_the_warmup_an_assigner_is_itself(case):
    inputs = case.inputs(11)
    late = case.assigner.at(1e6, inputs[0].layout)
    assert type(late) is case.make
    assert_same(assign(late, inputs), assign(case.assigner, inputs))


@pytest.mark.parametrize("make", [ATSS, SimOTA, CenterSampling, MutualGuidance, FreeAnchor, PAA, OTA, DDOD, DLA, MuSu])
def test_methods_without_warmup_start_at_once(make):
    for points in (True, False):
        assert type(make().at(0.0, PriorLayout(points, 1))) is make
    assert type(MaxIoU().at(0.0, PriorLayout(False, 9))) is MaxIoU


@pytest.mark.parametrize("make", sorted({case.make for case in CASES.values()}, key=lambda make: make.__name__))
def test_is_frozen_and_refuses_unknown_options(make):
    with pytest.raises(ValueError, match="frozen"):
        make().chunk_elements = 5
    with pytest.raises(ValueError, match="Extra inputs"):
        make(unheard_of=1)


STATIC = [name for name, case in CASES.items() if case.make in (MaxIoU, CenterSampling, ATSS)]


@pytest.mark.parametrize("name", STATIC)
def test_static_methods_do_not_look_at_the_predictions(name):
    case = CASES[name]
    priors, predictions, targets = case.inputs(12)
    result = assign(case.assigner, (priors, predictions, targets))
    broken = predictions.map(lambda t: torch.full_like(t, NAN))
    assert_same(assign(case.assigner, (priors, broken, targets)), result)
    assert_same(Assignment(result.cls, result.cls), Assignment(result.loc, result.loc))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.layout == "anchors"])
def test_equals_the_loop_oracle_on_scattered_anchors(name):
    """Anchors of all sizes at all places, of one level."""
    case = CASES[name]
    for seed, step in ((0, 0.0), (1, 4.0)):
        inputs = random_inputs(seed, step=step)
        expected = case.reference(*inputs, **case.options)
        if not expected.close_calls:
            assert_matches(assign(case.assigner, inputs), expected, inputs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_case
@every_step
def test_gpu_agrees_with_the_oracle_without_waiting(step, case):
    compared = 0
    for seed in range(3):
        inputs = case.inputs(seed, images=3, objects=9, step=step)
        there = tuple(part.to("cuda") for part in inputs)
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = assign(case.assigner, there)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = case.reference(*inputs, **case.options)
        if not expected.close_calls:
            assert_matches(result.cpu(), expected, inputs)
            compared += 1
    assert compared


def test_grids_have_what_they_promise():
    """The random batches hold repeated, degenerate and padding objects, wild boxes and exact ties."""
    priors, predictions, targets = grid_inputs(0, points=True, images=8, objects=12, step=8.0)
    assert priors.level_counts == (64, 16, 4)
    assert not targets.valid.all()
    assert not torch.isfinite(targets.boxes).all()
    assert not torch.isfinite(predictions.boxes).all()
    assert (targets.boxes[:, 1:] == targets.boxes[:, :1]).all(dim=-1).any()
    clean = grid_inputs(0, points=True, images=8, objects=12, clean=True)
    sizes = clean[2].boxes[..., 2:] - clean[2].boxes[..., :2]
    assert sizes.min() < 4
    assert sizes.max() > 50
