"""The assigners of other papers against their loop oracles, and what is particular to each by hand."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

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
    Permutation,
)
from mgdet.assign.paa import better_part
from mgdet.assign.places import ALL
from mgdet.errors import ConfigError
from mgdet.structures import IGNORED, NEGATIVE, PriorLayout
from tests.assign.helpers import (
    assert_matches,
    assert_same,
    assign,
    batches,
    count_positives,
    grid,
    named_inputs,
    positives_of,
    pyramid,
    table_inputs,
)
from tests.reference import shelf, weighting

OBJECT = (0.0, 0.0, 10.0, 10.0)
METHODS = {
    FreeAnchor: shelf.assign_free_anchor,
    DDOD: shelf.assign_ddod,
    DLA: shelf.assign_dla,
    MuSu: shelf.assign_musu,
    PAA: shelf.assign_paa,
    OTA: shelf.assign_ota,
    AutoAssign: weighting.assign_auto_assign,
    DW: weighting.assign_dw,
    Permutation: shelf.assign_permutation,
}


def slices(*tenths: float) -> list[tuple[float, ...]]:
    """Boxes whose IoU with OBJECT is so many tenths, and whose centre is inside."""
    return [(0.0, 0.0, 10.0, h) for h in tenths]


every_method = pytest.mark.parametrize("make", METHODS, ids=lambda make: make.__name__)


@every_method
@pytest.mark.parametrize("layout", ["points", "anchors", "three anchors"])
def test_equals_the_loop_oracle_on_a_few_batches(make, layout):
    compared = 0
    for seed, step in ((0, 0.0), (1, 8.0), (2, 0.0)):
        inputs = named_inputs(seed, layout, images=1, step=step)
        expected = METHODS[make](*inputs)
        if not expected.close_calls:
            assert_matches(assign(make(), inputs), expected, inputs)
            compared += 1
    assert compared or make is OTA


@pytest.mark.exhaustive
@every_method
@given(batch=batches("points", "anchors", "three anchors"), adopt=st.booleans())
def test_equals_the_loop_oracle(make, batch, adopt):
    assume(batch["layout"] != "three anchors" or batch["objects"])
    inputs = named_inputs(**batch)
    expected = METHODS[make](*inputs, adopt=adopt)
    assume(not expected.close_calls)
    assert_matches(assign(make(adopt=adopt), inputs), expected, inputs)


def test_free_anchor_fills_no_bag_with_what_does_not_overlap():
    """Two of four anchors overlap; of two objects the nearer one has the shared anchor."""
    anchors = [*slices(5.0, 8.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0)]
    labels = assign(FreeAnchor(bag=4), table_inputs(anchors, [[OBJECT]])).cls
    assert positives_of(labels) == {0: [0, 1]}
    both = assign(FreeAnchor(bag=4), table_inputs(anchors, [[OBJECT, (0.0, 0.0, 10.0, 5.0)]])).cls
    assert positives_of(both) == {0: [1], 1: [0]}


def test_ddod_has_one_set_for_each_task():
    """Scores favour the first anchors, overlaps the last: with alpha 1 and 0 the tasks see one of them alone."""
    anchors = [(x, 0.0, x + 10.0, 10.0) for x in (-4.0, -2.0, 0.0, 2.0, 4.0)]
    logits = torch.tensor([4.0, -4.0, -4.0, -4.0, -4.0]).reshape(1, -1, 1)
    decoded = [(50.0, 50.0, 60.0, 60.0)] * 4 + [OBJECT]
    inputs = table_inputs(anchors, [[OBJECT]], decoded=decoded, logits=logits, classes=1)
    result = assign(DDOD(alpha_cls=1.0, alpha_loc=0.0), inputs)
    assert positives_of(result.cls) == {0: [4]}
    assert positives_of(result.loc) == {0: [0]}


def test_dla_is_atss_where_boxes_are_their_anchors():
    """Both overlaps are the same, so are sum and threshold but for a factor of 2."""
    priors, predictions, targets = named_inputs(3, "anchors", clean=True)
    predictions = predictions.replace(boxes=priors.boxes.expand_as(predictions.boxes).clone())
    assert_same(assign(DLA(), (priors, predictions, targets)), assign(ATSS(), (priors, predictions, targets)))


def test_musus_weights_by_hand():
    """Three priors of a bag: tau is sqrt(3) for localization and twice that for classification."""
    anchors = slices(9.0, 9.5, 10.0)
    logits = torch.tensor([2.0, 1.0, 0.0]).reshape(1, -1, 1)
    result = assign(MuSu(), table_inputs(anchors, [[OBJECT]], logits=logits, classes=1))
    p, q = logits.flatten().sigmoid(), torch.tensor([0.9, 0.95, 1.0]) ** 4
    for labels, value, factor in ((result.cls, q * p ** (1 / 3), 2.0), (result.loc, p * q ** (1 / 3), 1.0)):
        rank = value.argsort(descending=True).argsort()
        torch.testing.assert_close(labels.weight[0], torch.exp(-rank / (factor * 3**0.5)))


def test_paa_keeps_the_better_of_two_groups():
    """Four boxes fit and four do not; the best four are the first distribution."""
    anchors = slices(*[8.0 + 0.2 * i for i in range(8)])
    decoded = [*slices(9.9, 9.8, 9.7, 9.6), *[(0.0, 0.0, 10.0, 1.0 + 0.1 * i) for i in range(4)]]
    logits = torch.tensor([3.0] * 4 + [-3.0] * 4).reshape(1, -1, 1)
    labels = assign(PAA(), table_inputs(anchors, [[OBJECT]], decoded=decoded, logits=logits, classes=1)).cls
    found = set(positives_of(labels)[0])
    assert found
    assert found <= {0, 1, 2, 3}


@pytest.mark.slow
def test_paa_splits_as_scikit_learn_does():
    mixture = pytest.importorskip("sklearn.mixture")
    lots = np.random.default_rng(0)
    compared = 0
    for _ in range(200):
        n = int(lots.integers(2, 46))
        losses = np.sort(np.where(lots.random(n) < 0.4, lots.normal(1, 0.3, n), lots.normal(3, 0.8, n)) ** 2)
        fit = mixture.GaussianMixture(
            2,
            weights_init=[0.5, 0.5],
            means_init=[[losses[0]], [losses[-1]]],
            precisions_init=[[1.0], [1.0]],
            covariance_type="diag",
        ).fit(losses[:, None])
        own = fit.predict_proba(losses[:, None])[:, 0]
        density = fit.score_samples(losses[:, None])
        if np.any(np.abs(own - 0.5) < 1e-4):
            continue
        foreground = own > 0.5
        expected = losses[foreground][density[foreground].argmax()] if foreground.any() else -np.inf
        table = torch.full((1, 1, 50), torch.inf, dtype=torch.float64)
        table[0, 0, :n] = torch.from_numpy(losses)
        assert better_part(table).item() == pytest.approx(expected)
        compared += 1
    assert compared > 150


def test_ota_gives_each_object_its_units():
    """Two objects far apart, whose candidates all fit: k is the sum of the overlaps, and so many they get."""
    priors = pyramid((8.0, 8, 8), points=True)
    objects = [(0.0, 0.0, 24.0, 24.0), (40.0, 40.0, 64.0, 64.0)]
    middles = 0.5 * (priors.boxes[:, :2] + priors.boxes[:, 2:])
    decoded = [objects[0] if x + y < 64 else objects[1] for x, y in middles.tolist()]
    labels = assign(OTA(), table_inputs(priors, [objects], decoded=decoded, logits=0.0)).cls
    assert count_positives(labels, 0, 2) == [9, 9]


@pytest.mark.parametrize("of", ["max_iou", "atss", "mutual_guidance", "simota"])
def test_a_permutation_has_as_many_positives(of):
    """Objects that do not overlap get exactly as many; which ones is another matter."""
    anchors = [(x - s, y - s, x + s, y + s) for x, y, _, _ in grid(8, 8) for s in (8.0, 16.0)]
    objects = [[(2.0, 2.0, 26.0, 26.0), (36.0, 34.0, 62.0, 62.0)]]
    inputs = table_inputs(anchors, objects)
    other = assign(Permutation(of=of).other(inputs[0].layout), inputs)
    drawn = assign(Permutation(of=of), inputs)
    for mine, theirs in ((drawn.cls, other.cls), (drawn.loc, other.loc)):
        assert count_positives(mine, 0, 2) == count_positives(theirs, 0, 2)
        assert not torch.equal(mine.gt_index, theirs.gt_index)
    ignored = other.cls.gt_index == IGNORED
    assert (drawn.cls.gt_index[ignored] != NEGATIVE).all()


def test_lots_depend_on_the_step_only_where_they_are_to():
    priors, predictions, targets = named_inputs(0, "points", clean=True)
    later = predictions.replace(logits=predictions.logits + 0.25)
    for redraw, same in (("step", False), ("never", True)):
        assigner = Permutation(redraw=redraw)
        labels = [assign(assigner, (priors, each, targets)).cls.gt_index for each in (predictions, predictions, later)]
        assert torch.equal(labels[0], labels[1])
        assert torch.equal(labels[0], labels[2]) == same
    one, two = (assign(Permutation(seed=seed), (priors, predictions, targets)).cls.gt_index for seed in (0, 1))
    assert not torch.equal(one, two)


def test_lots_are_spread_evenly():
    """200 lots of each of 64 priors: their means are a half within four of their standard deviations."""
    _, predictions, targets = table_inputs(pyramid((8.0, 8, 8), points=True), [[(0.0, 0.0, 64.0, 64.0)]])
    lots = torch.cat(
        [
            Permutation(seed=seed)._lots(0, predictions).quality(targets.boxes, targets.labels, ALL)[0]
            for seed in range(200)
        ]
    )
    assert lots.shape == (200, 64)
    assert (lots.mean(dim=0) - 0.5).abs().max() < 4 * (1 / 12 / 200) ** 0.5
    assert (lots.mean() - 0.5).abs() < 4 * (1 / 12 / 12_800) ** 0.5
    assert len(lots.unique()) > 0.99 * lots.numel()


def test_a_permutation_follows_its_method():
    points, anchors = PriorLayout(True, 1), PriorLayout(False, 9)
    assert isinstance(Permutation().other(points), CenterSampling)
    assert isinstance(Permutation().other(anchors), MaxIoU)
    assert Permutation(of="task_aligned").at(0.0, points).of == "atss"
    assert Permutation(of="task_aligned").at(5.0, points).of == "task_aligned"
    assert isinstance(Permutation(of="mutual_guidance").other(points), MutualGuidance)
    with pytest.raises(ConfigError, match="points have no size"):
        Permutation(of="max_iou").resolved_for(points)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (FreeAnchor, {"bag": 0}),
        (PAA, {"candidate_iou": 2.0}),
        (OTA, {"epsilon": 0.0}),
        (DDOD, {"alpha_cls": 1.5}),
        (DLA, {"top_k": 0}),
        (MuSu, {"growth": 2.0}),
        (Permutation, {"of": "permutation"}),
    ],
)
def test_impossible_options_are_refused(make, options):
    with pytest.raises(ValidationError):
        make(**options)
