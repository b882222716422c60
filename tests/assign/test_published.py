"""Each assigner as published equals the rule of its reference, restated in loops in tests/reference/published.py."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torchvision.models.detection import FCOS

from mgdet.assign import ATSS, CenterSampling, MaxIoU, MutualGuidance, SimOTA, TaskAligned
from tests.assign.helpers import STEPS, assert_matches, assign, named_inputs
from tests.reference import published


def problems(*layouts: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of 2 to 60 pixels, some repeated or degenerate, up to a crowd; many equal overlaps where `step` > 0."""
    return st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**31),
            "layout": st.sampled_from(layouts),
            "images": st.just(1),
            "objects": st.sampled_from([0, 1, 2, 3, 5, 8, 16]),
            "step": st.sampled_from(STEPS),
        }
    )


ANCHORS, ALL = problems("anchors", "three anchors"), problems("points", "anchors", "three anchors")


def check(assigner, inputs, expected) -> None:
    """Equal, unless the outcome hinges on the last bit of a power or a logarithm."""
    assume(not expected.close_calls)
    assert_matches(assign(assigner, inputs), expected, inputs)


@given(problem=ANCHORS)
def test_max_iou_is_torchvisions_matcher(problem):
    """An object that overlaps no anchor gets none here; torchvision then labels all anchors that it misses."""
    inputs = named_inputs(**problem)
    check(MaxIoU(adopt=False), inputs, published.matcher(*inputs))


@given(problem=ANCHORS)
def test_max_iou_is_the_baseline_of_mutual_guidance(problem):
    """But for an anchor that is the best of several objects: the last one's there, the closest one's here."""
    inputs = named_inputs(**problem)
    result = MaxIoU(adopt=False, force_ties=False)
    check(result, inputs, published.match(*inputs, shared="larger"))
    literal = published.match(*inputs, shared="last")
    if not literal.order_matters:
        check(result, inputs, literal)


@pytest.mark.slow
@given(problem=ANCHORS)
def test_mutual_guidance_is_the_code_of_2020(problem):
    """But for an anchor that is worth as much to several objects, as the best of each for instance: one owns it."""
    inputs = named_inputs(**problem)
    check(MutualGuidance(adopt=False), inputs, published.mutual_match(*inputs, shared="one"))
    literal = published.mutual_match(*inputs, shared="both")
    if not literal.order_matters:
        check(MutualGuidance(adopt=False), inputs, literal)


@given(problem=problems("points", "anchors"), radius=st.sampled_from([1.5, None]))
def test_center_sampling_is_fcos(problem, radius):
    inputs = named_inputs(**problem)
    check(CenterSampling(adopt=False, radius=radius), inputs, published.fcos(*inputs, radius=radius))


@given(seed=st.integers(0, 2**31), objects=st.integers(1, 12))
def test_center_sampling_is_torchvisions_fcos(seed, objects):
    """Its own code, which ties areas that differ by less than 8 square pixels."""
    inputs = named_inputs(seed, "points", images=1, objects=objects, clean=True)
    priors, _, targets = inputs
    areas = sorted(((targets.boxes[..., 2:] - targets.boxes[..., :2]).prod(dim=-1)).flatten().tolist())
    assume(all(large - small > 16 for small, large in pairwise(areas)))
    head = SimpleNamespace(compute_loss=lambda targets, outputs, anchors, matched: matched)
    matched = FCOS.compute_loss(
        SimpleNamespace(center_sampling_radius=1.5, head=head),
        [{"boxes": targets.boxes[0]}],
        {},
        [priors.boxes],
        list(priors.level_counts),
    )
    assert assign(CenterSampling(adopt=False), inputs).cls.gt_index[0].tolist() == matched[0].tolist()


@given(problem=ALL, k=st.sampled_from([1, 3, 9]), of=st.sampled_from(["locations", "anchors"]))
def test_atss_counts_locations_or_anchors(problem, k, of):
    inputs = named_inputs(**problem)
    check(ATSS(adopt=False, top_k=k, top_k_of=of), inputs, published.atss(*inputs, k=k, of=of))


@given(problem=ALL, k=st.sampled_from([3, 13]))
def test_task_aligned_is_tood(problem, k):
    inputs = named_inputs(**problem)
    check(TaskAligned(adopt=False, inside="after", top_k=k), inputs, published.tood(*inputs, k=k))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["yolox-0.3.0", "yolox-2023"])
@given(problem=ALL)
def test_simota_is_yolox(version, problem):
    inputs = named_inputs(**problem)
    check(SimOTA(adopt=False, version=version), inputs, published.yolox(*inputs, version=version))


def test_the_literal_rules_differ_where_an_anchor_is_shared():
    """So the comparisons above say something about them."""
    differing = 0
    for seed in range(5):
        inputs = named_inputs(seed, "anchors", images=1, objects=16)
        both, one = (published.mutual_match(*inputs, shared=shared) for shared in ("both", "one"))
        differing += (both.cls, both.loc) != (one.cls, one.loc)
        assert published.match(*inputs, shared="last").order_matters
    assert differing
