"""What is left out on a CPU, where only the priors that an object can reach are looked at, changes nothing."""

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
    FreeAnchor,
    MaxIoU,
    MuSu,
    MutualGuidance,
    MutualLabeling,
    Permutation,
    SimOTA,
    TaskAligned,
    criteria,
    places,
)
from mgdet.assign.base import Assigner
from mgdet.assign.geometry import Sides, around, near_centre
from mgdet.assign.ownership import find_owners
from mgdet.assign.pieces import Criterion
from mgdet.assign.places import ALL, Places
from mgdet.boxes import pairwise_iou
from mgdet.structures import Predictions, Priors
from tests.assign.helpers import DEGENERATE, Inputs, assert_same, assign, named_inputs, table_inputs
from tests.assign.test_ties import DEFAULT_ANCHORS, small_objects


def touching(boxes: Tensor, box: Tensor) -> list[int]:
    """The definition, one box after the other."""
    x1, y1, x2, y2 = box.tolist()
    rows = enumerate(boxes.tolist())
    return [i for i, (left, top, right, bottom) in rows if left <= x2 and right >= x1 and top <= y2 and bottom >= y1]


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 300])
@pytest.mark.parametrize("step", [0.0, 8.0])
def test_touching_finds_all_that_overlap(count, step):
    """Also boxes that are no boxes, and what only touches; at the borders of the blocks too."""
    boxes = named_inputs(count, "points", images=1, objects=1, canvas=128, step=step)[1].boxes[0, :count]
    found = Places(boxes)
    for box in torch.cat([torch.tensor([[0.0, 0, 128, 128]]), boxes[:4].nan_to_num(1.0), torch.full((1, 4), 500.0)]):
        assert found.touching(box).tolist() == touching(boxes, box)
        overlap = pairwise_iou(box[None], found.at(ALL))[0]
        assert set(overlap.nonzero().flatten().tolist()) <= set(touching(boxes, box))


@pytest.mark.parametrize("radius", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("step", [0.0, 1.0, 4.0])
def test_around_a_centre_lies_what_contains_it_or_has_its_own_centre_near(radius, step):
    priors, _, targets = named_inputs(5, "three anchors", images=1, objects=12, step=step, clean=True)
    sizes = []
    for box in targets.boxes[0]:
        reached = torch.zeros(len(priors.boxes), dtype=torch.bool)
        reached[around(priors, radius).touching(box)] = True
        boxes = box[None, None]
        wanted = (Sides.of(boxes, priors).nearest() > 0) | near_centre(boxes, priors, radius)
        assert not (wanted[0, 0] & ~reached).any()
        sizes.append(int(reached.sum()))
    assert max(sizes) > 0
    assert min(sizes) < len(priors.boxes)


def all_criteria(priors: Priors, predictions: Predictions) -> list[Criterion]:
    """One of each, and their combinations as assigners make them."""
    anchor, u, p = criteria.prior_iou(priors), criteria.regressed_iou(predictions), criteria.class_score(predictions)
    simple = [anchor, u, p, criteria.centre_prior(priors, 3.0), criteria.centerness(priors)]
    raised = [criteria.amplified(anchor, predictions, 2.0, form) for form in ("power", "exponential")]
    products = [criteria.product(p, u, powers, predictions.logits) for powers in ((1.0, 6.0), (0.0, 1.0), (1.0, 0.0))]
    adaptive = [criteria.adaptive(anchor, priors, 2, of) for of in ("locations", "anchors")]
    adaptive += [criteria.adaptive(u, priors, 1), criteria.adaptive(u, priors, 2, "locations", anchor)]
    return [*simple, *raised, *products, *adaptive, criteria.within(p, anchor)]


@pytest.mark.parametrize("layout", ["anchors", "three anchors", "points"])
@pytest.mark.parametrize("step", [0.0, 8.0])
def test_criteria_are_0_out_of_reach_and_the_same_within(layout, step):
    priors, predictions, targets = named_inputs(2, layout, images=1, objects=7, step=step, clean=True)
    left_out = 0
    for criterion in all_criteria(priors, predictions):
        for g in range(7):
            boxes, labels = targets.boxes[:, g : g + 1], targets.labels[:, g : g + 1]
            whole = criterion.quality(boxes, labels, ALL)
            at = torch.arange(len(priors.boxes)) if criterion.reach is None else criterion.reach(boxes[0, 0])
            assert torch.equal(criterion.quality(boxes, labels, at), whole[..., at])
            assert (whole != 0).sum() == (whole[..., at] != 0).sum()
            left_out += whole.shape[-1] - len(at)
    assert left_out > 0


def test_a_sigmoid_is_the_same_wherever_it_stands():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 5
    expected = criteria.sigmoid(values)
    torch.testing.assert_close(expected, values.sigmoid())
    for first in (1, 7, 993):
        assert torch.equal(criteria.sigmoid(values[first:]), expected[first:])
    assert torch.equal(criteria.sigmoid(values.view(10, 100).T), expected.view(10, 100).T)


def crowd(seed: int, objects: int = 12) -> Inputs:
    """Small and large objects, one of them twice, one far away and one degenerate, on RetinaNet's anchors."""
    boxes = small_objects(seed, objects, 3.0, 90.0)
    inputs = table_inputs(DEFAULT_ANCHORS, [[*boxes, boxes[0], (900.0, 900.0, 950.0, 930.0), DEGENERATE["no width"]]])
    priors, predictions, targets = inputs
    noise = torch.randn(predictions.boxes.shape, generator=torch.Generator().manual_seed(seed)) * 3
    return priors, predictions.replace(boxes=predictions.boxes + noise), targets


@pytest.mark.parametrize(
    "assigner",
    [
        *(MaxIoU(), ATSS(), TaskAligned(), SimOTA(), SimOTA(version="yolox-0.3.0"), MutualGuidance(), MutualLabeling()),
        *(FreeAnchor(), PAA(), OTA(), DDOD(), DLA(), MuSu(), AutoAssign(), DW(), Permutation()),
    ],
    ids=lambda a: f"{a.name} {getattr(a, 'version', '')}".strip(),
)
def test_labels_are_those_of_all_priors_at_once(assigner: Assigner, monkeypatch):
    inputs = crowd(3)
    monkeypatch.setattr(places, "SMALL", 2**40)
    expected = assign(assigner, inputs)
    monkeypatch.setattr(places, "SMALL", 0)
    assert_same(assign(assigner, inputs), expected)


@pytest.mark.parametrize("step", [0.0, 8.0])
def test_the_best_of_an_owner_are_those_of_the_first_ranks(step, monkeypatch):
    monkeypatch.setattr(places, "SMALL", 0)
    priors, _, targets = named_inputs(1, "three anchors", images=1, objects=9, step=step)
    limit = torch.tensor([[0, 1, 2, 3, 5, 8, 13, 21, 34]])
    for force in ("none", "best", "ties"):
        owners = find_owners(criteria.prior_iou(priors), priors, targets, chunk_elements=2**25, force=force)
        assert torch.equal(owners.best(limit), (owners.owner >= 0) & (owners.rank < owners.of_owner(limit)))
        assert owners.best(limit).any()


def test_priors_that_are_taken_keep_their_levels():
    priors = named_inputs(0, "three anchors")[0]
    index = torch.tensor([0, 5, 47, 48, 59, 62])
    some = priors.take(index)
    assert priors.level_counts == (48, 12, 3)
    assert some.level_counts == (3, 2, 1)
    assert torch.equal(some.boxes, priors.boxes[index])
    assert torch.equal(some.strides, priors.strides[index])
    assert some.layout == priors.layout
    assert priors.take(index[:0]).level_counts == (0, 0, 0)
    assert priors.take(ALL) is priors
