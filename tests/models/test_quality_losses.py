"""Losses that look at how well predicted boxes fit: soft targets, weights of the box loss, the quality branch."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from mgdet.models.losses import (
    ClassLoss,
    CorrelationLoss,
    FocalLoss,
    GIoULoss,
    L1Loss,
    LossConfig,
    QualityFocalLoss,
    QualityLoss,
    VarifocalLoss,
    box_targets,
    centerness,
    own_iou,
)
from mgdet.structures import Labels, Predictions, Priors, Targets
from tests.assign.helpers import Recorder
from tests.models.loss_problem import CODER, EMPTY, Problem, assert_two_workers_are_one, identity, random_problem
from tests.reference import losses as loop

CLASS_LOSSES = {
    "focal": (FocalLoss(alpha=0.3, gamma=1.5), lambda x, y: loop.focal(x, y, 0.3, 1.5)),
    "quality_focal": (QualityFocalLoss(beta=1.5, weight=1.7), lambda x, y: loop.quality_focal(x, y, 1.5)),
    "varifocal": (VarifocalLoss(alpha=0.6, gamma=1.5), lambda x, y: loop.varifocal(x, y, 0.6, 1.5)),
}
WEIGHTINGS = ("assigned", "iou", "centerness", "score")
ARMS = {
    "focal": (LossConfig(), "none"),
    "focal on IoU, centre-ness": (
        LossConfig(cls=FocalLoss(target="iou"), box=GIoULoss(weighted_by="centerness")),
        "centerness",
    ),
    "GFL": (LossConfig(cls=QualityFocalLoss(), box=GIoULoss(weighted_by="score")), "none"),
    "VFNet, IoU branch": (LossConfig(cls=VarifocalLoss(), box=GIoULoss(weighted_by="iou")), "iou"),
    "TOOD": (LossConfig(cls=QualityFocalLoss(target="assigned"), box=L1Loss()), "none"),
    "no terms": (LossConfig(cls=FocalLoss(weight=0), box=L1Loss(weight=0), quality=QualityLoss(weight=0)), "iou"),
}
every_class_loss = pytest.mark.parametrize("name", CLASS_LOSSES)
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)
every_arm = pytest.mark.parametrize("arm", ARMS)
correlations = [CorrelationLoss(kind=kind) for kind in ("concordance", "pearson", "spearman")]


def near_objects(problem: Problem, noise: float = 1.0) -> Problem:
    """With predicted boxes near the objects of one task or the other, so that there are IoUs of all sizes."""
    generator = torch.Generator().manual_seed(0)
    cls, loc = (box_targets(labels, problem.targets, problem.priors)[0] for labels in problem.tasks)
    which = torch.rand(*cls.shape[:2], 1, generator=generator) < 0.5
    deltas = CODER.encode(torch.where(which, cls, loc), problem.priors)
    deltas = deltas + noise * torch.randn(deltas.shape, generator=generator, dtype=torch.float64)
    return problem.with_leaves(problem.logits, deltas, problem.quality)


def looped(problem: Problem, config: LossConfig, penalty, quality: str) -> dict[str, float]:
    """Every term over Python floats."""
    predictions = problem.predictions
    logits, decoded, branch = predictions.logits.tolist(), predictions.boxes.tolist(), problem.quality.tolist()
    boxes, priors = problem.targets.boxes.tolist(), problem.priors.boxes.tolist()
    (cls, cls_weight), (loc, loc_weight) = (
        (labels.gt_index.tolist(), labels.weight.tolist()) for labels in problem.tasks
    )

    def overlap(b, a, g):
        return loop.iou_of(decoded[b][a], boxes[b][g])

    def central(b, a, g):
        return loop.centerness(priors[a], boxes[b][g])

    extra = {
        "assigned": lambda b, a, g: 1.0,
        "iou": overlap,
        "centerness": central,
        "score": lambda b, a, g: 1 / (1 + math.exp(-max(logits[b][a]))),
    }[config.box.weighted_by]
    soft = overlap if config.cls.target == "iou" else lambda b, a, g: cls_weight[b][a]
    out = {
        "cls": config.cls.weight
        * loop.class_loss(logits, cls, cls_weight, problem.targets.labels.tolist(), penalty, soft),
        "box": config.box.weight
        * loop.positive_loss(
            loc,
            lambda b, a, g: loc_weight[b][a] * extra(b, a, g),
            lambda b, a, g: 1 - loop.giou_of(decoded[b][a], boxes[b][g]),
        ),
    }
    if quality != "none":
        wanted = overlap if quality == "iou" else central
        out["quality"] = config.quality.weight * loop.positive_loss(
            loc, lambda b, a, g: 1.0, lambda b, a, g: loop.cross_entropy(branch[b][a], wanted(b, a, g))
        )
    return out | {"total": sum(out.values())}


# --- values


@every_class_loss
def test_elementwise(name):
    config, penalty = CLASS_LOSSES[name]
    logits = torch.linspace(-8, 8, 9, dtype=torch.float64)[:, None].expand(9, 4)
    target = torch.tensor([0.0, 1e-3, 0.3, 1.0], dtype=torch.float64).expand(9, 4)
    expected = [penalty(x, y) for x, y in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True)]
    torch.testing.assert_close(config(logits, target).flatten(), torch.tensor(expected, dtype=torch.float64))


@every_class_loss
@pytest.mark.parametrize("target", ["assigned", "iou"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("quality", ["none", "centerness", "iou"])
def test_all_terms_equal_a_loop(name, target, weighting, quality):
    config, penalty = CLASS_LOSSES[name]
    arm = LossConfig(
        cls=config.model_copy(update={"target": target}),
        box=GIoULoss(weight=1.3, weighted_by=weighting),
        quality=QualityLoss(weight=0.5),
    )
    for seed, hard in ((0, True), (1, False), (2, False)):
        problem = near_objects(random_problem(seed, samples=9, hard=hard))
        got = problem.losses(arm, quality=quality)
        for term, expected in looped(problem, arm, penalty, quality).items():
            found = got.total if term == "total" else got.terms[term]
            assert found.item() == pytest.approx(expected, rel=1e-6), term
        assert (float(got.terms.get("quality", 0.0)) > 0) == (quality != "none")


def test_the_terms_differ():
    """Else the loops above could not tell the options apart."""
    problem = near_objects(random_problem(0, samples=9))
    terms = [float(problem.losses(LossConfig(box=GIoULoss(weighted_by=w))).terms["box"]) for w in WEIGHTINGS]
    terms += [float(problem.losses(LossConfig(), quality=kind).terms["quality"]) for kind in ("centerness", "iou")]
    assert len({round(t, 4) for t in terms}) == len(terms)
    overlaps = own_iou(problem.predictions, box_targets(problem.assignment.loc, problem.targets, problem.priors)[0])
    assert float(overlaps[problem.assignment.loc.gt_index >= 0].max()) > 0.5


def test_quality_focal_with_hard_targets_is_focal_without_balance():
    logits = torch.linspace(-6, 6, 13, dtype=torch.float64)
    for y in (0.0, 1.0):
        target = torch.full_like(logits, y)
        focal = FocalLoss(alpha=-1, gamma=2)(logits, target)
        torch.testing.assert_close(QualityFocalLoss(beta=2)(logits, target), focal)


@pytest.mark.parametrize("target", [0.1, 0.5, 0.9])
def test_the_best_score_is_the_target(target):
    logits = torch.linspace(-5, 5, 10001, dtype=torch.float64)
    for config in (QualityFocalLoss(), VarifocalLoss()):
        best = logits[config(logits, torch.full_like(logits, target)).argmin()]
        assert float(best.sigmoid()) == pytest.approx(target, abs=1e-3)


def test_centerness_by_hand():
    """Of a point at (30, 40) in boxes around, beside and touching it."""
    priors = Priors(torch.tensor([[20.0, 30.0, 40.0, 50.0]]), torch.ones(1), (1,))
    cases = {
        (20.0, 30.0, 40.0, 50.0): 1.0,
        (20.0, 30.0, 70.0, 50.0): math.sqrt(10 / 40),
        (29.0, 30.0, 34.0, 45.0): math.sqrt(1 / 4 * 5 / 10),
        (30.0, 30.0, 40.0, 50.0): 0.0,
        (50.0, 30.0, 60.0, 50.0): 0.0,
        (50.0, 50.0, 60.0, 60.0): 0.0,
        (30.0, 40.0, 30.0, 40.0): 0.0,
    }
    got = [float(centerness(priors, torch.tensor([[box]]))) for box in cases]
    assert got == pytest.approx(list(cases.values()))


@every_class_loss
def test_every_class_loss_can_be_chosen_by_name(name):
    config = TypeAdapter(ClassLoss).validate_python({"name": name})
    assert type(config) is type(CLASS_LOSSES[name][0])
    assert config.target == ("assigned" if name == "focal" else "iou")


def test_default_is_focal():
    assert LossConfig().cls == FocalLoss()
    assert LossConfig().correlation is None
    with pytest.raises(ValidationError):
        LossConfig(box=GIoULoss(weighted_by="quality"))


def test_quality_needs_a_branch():
    problem = random_problem(0)
    predictions = problem.predictions.replace(quality=None)
    with pytest.raises(TypeError, match="quality loss on iou"):
        LossConfig()(predictions, problem.targets, problem.assignment, CODER, identity, quality="iou")


# --- gradients


@every_class_loss
def test_gradients_of_elementwise_losses(name):
    """Through the modulating factors too."""
    target = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64).expand(5, 4)
    logits = torch.linspace(-4, 4, 20, dtype=torch.float64).reshape(5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CLASS_LOSSES[name][0](x, target), logits)


@every_weighting
def test_gradients_of_the_box_loss_with_weights_of_their_own_box(weighting):
    """They are those of labels that carry these weights: nothing flows through a weight or into the normaliser."""
    problem = near_objects(random_problem(1))
    loc = problem.assignment.loc
    boxes, positive = box_targets(loc, problem.targets, problem.priors)
    predictions = problem.predictions
    extra = {
        "assigned": torch.ones_like(loc.weight),
        "iou": own_iou(predictions, boxes),
        "centerness": centerness(problem.priors, boxes),
        "score": predictions.logits.max(dim=-1).values.sigmoid().detach(),
    }[weighting]
    weighed = problem.labelled(loc=loc.replace(weight=torch.where(positive, loc.weight * extra, 0.0)))
    expected = weighed.losses(LossConfig(cls=FocalLoss(weight=0), box=GIoULoss()))
    got = problem.losses(LossConfig(cls=FocalLoss(weight=0), box=GIoULoss(weighted_by=weighting)))
    assert float(got.terms["box"]) == pytest.approx(float(expected.terms["box"]))
    for mine, wanted in zip(problem.gradients(got.total), weighed.gradients(expected.total), strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("quality", ["centerness", "iou"])
def test_gradients_of_the_quality_branch_reach_only_the_branch(quality):
    problem = near_objects(random_problem(2))
    config = LossConfig(cls=FocalLoss(weight=0), box=L1Loss(weight=0), quality=QualityLoss(weight=0.5))
    logits, deltas, branch = problem.gradients(problem.losses(config, quality=quality).total)
    assert not logits.any()
    assert not deltas.any()
    assert torch.equal(branch != 0, problem.assignment.loc.gt_index >= 0)

    def of_branch(values):
        return problem._replace(quality=values).losses(config, quality=quality).total

    assert torch.autograd.gradcheck(of_branch, problem.quality)


@every_class_loss
def test_gradients_of_soft_targets_do_not_reach_boxes(name):
    problem = near_objects(random_problem(3))
    config = LossConfig(cls=CLASS_LOSSES[name][0].model_copy(update={"target": "iou"}), box=L1Loss(weight=0))
    _, deltas, branch = problem.gradients(problem.losses(config).total)
    assert not deltas.any()
    assert not branch.any()
    assert torch.autograd.gradcheck(lambda x: problem._replace(logits=x).losses(config).total, problem.logits)


# --- what must never happen


def scalars(losses):
    """The total, the terms and the counts."""
    return [losses.total, *losses.terms.values(), *losses.counts.values()]


def finite(values) -> bool:
    return all(bool(torch.isfinite(v).all()) for v in values)


@every_arm
@pytest.mark.parametrize("correlation", [None, *correlations], ids=lambda c: c.kind if c else "no correlation")
@pytest.mark.parametrize("size", [1e4, 30.0])
def test_extreme_logits(arm, correlation, size):
    problem = random_problem(4, samples=12)
    extreme = problem.with_leaves(*(size * t.sign() for t in (problem.logits, problem.deltas, problem.quality)))
    single = Problem(
        extreme.priors.replace(boxes=extreme.priors.boxes.float()),
        *(t.detach().float().requires_grad_() for t in extreme[1:4]),
        extreme.targets.replace(boxes=extreme.targets.boxes.float()),
        extreme.assignment,
    )
    config, quality = ARMS[arm]
    got = single.losses(config.model_copy(update={"correlation": correlation}), quality=quality)
    assert finite([got.total, *got.terms.values()])
    assert finite(single.gradients(got.total))
    assert got.total.dtype == torch.float32


@every_class_loss
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_a_prediction_that_is_exactly_right(name, power):
    """p = y in floating point, whatever the power of the distance."""
    config = CLASS_LOSSES[name][0]
    config = config.model_copy(update={k: power for k in ("beta", "gamma") if k in type(config).model_fields})
    logits = torch.tensor([-1e4, -200.0, 0.0, 200.0, 1e4], requires_grad=True)
    loss = config(logits, logits.detach().sigmoid())
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert finite([loss, gradient]) or (name == "focal" and power == 0.5), "torchvision's own at gamma < 1"


@every_arm
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(arm, dtype):
    config, quality = ARMS[arm]
    config = config.model_copy(update={"correlation": correlations[0]})
    problem = near_objects(random_problem(5))
    targets = problem.targets.replace(boxes=problem.targets.boxes.float())

    def losses(predictions: Predictions):
        return config(predictions, targets, problem.assignment, CODER, identity, quality=quality)

    half = problem.predictions.map(lambda t: t.detach().to(dtype)).replace(
        priors=problem.priors.map(torch.Tensor.float)
    )
    got, expected = losses(half), losses(half.map(torch.Tensor.float))
    assert got.total.dtype == torch.float32
    assert torch.equal(got.total, expected.total)
    assert got.terms == expected.terms
    assert config.cls(half.logits, torch.zeros_like(half.logits)).dtype == torch.float32


@every_arm
@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("owner", [-1, -2], ids=["background", "ignored"])
def test_no_objects(arm, empty, owner):
    problem = random_problem(6).without_positives(owner)._replace(targets=EMPTY[empty](3))
    config, quality = ARMS[arm]
    got = problem.losses(config.model_copy(update={"correlation": correlations[2]}), quality=quality)
    got.total.backward()
    background = owner == -1 and config.cls.weight > 0
    assert (float(got.terms["cls"]) > 0) == background
    assert torch.equal(problem.logits.grad != 0, torch.full_like(problem.logits, float(background)) > 0)
    assert all(float(term) == 0.0 for name, term in got.terms.items() if name != "cls")
    assert not problem.deltas.grad.any(), "there, and zero"
    assert (problem.quality.grad is not None) == (quality != "none")
    assert quality == "none" or not problem.quality.grad.any()


@every_arm
@pytest.mark.parametrize("images", [1, 2])
def test_one_prior(arm, images):
    for seed in range(5):
        problem = random_problem(seed, images=images, samples=1, objects=2, classes=1)
        config, quality = ARMS[arm]
        got = problem.losses(config.model_copy(update={"correlation": correlations[2]}), quality=quality)
        assert finite([got.total, *got.terms.values(), *problem.gradients(got.total)])


def test_a_wild_box_is_a_missed_object():
    """Its IoU is 0; that is its target, its weight and its quality."""
    problem = random_problem(7, hard=True)
    wild = torch.full_like(problem.deltas, float("nan"))
    predictions = problem.predictions.replace(boxes=wild, deltas=problem.deltas)
    config = LossConfig(cls=QualityFocalLoss(), box=L1Loss(weighted_by="iou"))
    got = config(predictions, problem.targets, problem.assignment, CODER, identity, quality="iou")
    background = problem.labelled(
        cls=problem.assignment.cls.replace(weight=torch.zeros_like(problem.assignment.cls.weight))
    )
    zeros = background.losses(LossConfig(cls=QualityFocalLoss(target="assigned")))
    assert float(got.terms["box"]) == 0.0
    assert float(got.terms["cls"]) * float(problem.assignment.cls.weight.sum()) == pytest.approx(
        float(zeros.terms["cls"])
    )
    positive = problem.assignment.loc.gt_index >= 0
    assert float(got.terms["quality"]) == pytest.approx(F.softplus(problem.quality[positive]).mean().item())


@every_arm
def test_nothing_waits_for_the_device(arm):
    config, quality = ARMS[arm]
    for correlation in correlations:
        problem = random_problem(8)
        with Recorder() as recorder:
            problem.losses(config.model_copy(update={"correlation": correlation}), quality=quality).total.backward()
        assert recorder.waits == []


# --- properties

arms = st.sampled_from(list(ARMS.values()))
seeds = st.integers(0, 2**16)


def assert_same(mine, other) -> None:
    """Up to the order of the sums, of which those of the assigned weights are taken in float32.

    What is left where large terms cancel each other is only as exact as float32 is for the largest.
    """
    for a, b in zip(mine, other, strict=True):
        resolution = torch.finfo(torch.float32).eps * float(b.nan_to_num(0, 0, 0).abs().max())
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=max(1e-9, resolution))


def with_correlation(arm: tuple[LossConfig, str], which: int) -> tuple[LossConfig, str]:
    return arm[0].model_copy(update={"correlation": correlations[which]}), arm[1]


@given(seed=seeds, arm=arms, which=st.integers(0, 2))
def test_order_of_images_means_nothing(seed, arm, which):
    config, quality = with_correlation(arm, which)
    problem = near_objects(random_problem(seed, images=4))
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    shuffled = problem.part(order)
    mine, other = problem.losses(config, quality=quality), shuffled.losses(config, quality=quality)
    assert_same(scalars(mine), scalars(other))
    assert_same([g[order] for g in problem.gradients(mine.total)], shuffled.gradients(other.total))


@given(seed=seeds, arm=arms, which=st.integers(0, 2))
def test_order_of_objects_means_nothing(seed, arm, which):
    config, quality = with_correlation(arm, which)
    problem = near_objects(random_problem(seed, objects=4))
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))

    def renamed(labels: Labels) -> Labels:
        index = labels.gt_index
        return labels.replace(gt_index=torch.where(index >= 0, order.argsort()[index.clamp(min=0)], index))

    targets = problem.targets
    shuffled = problem._replace(targets=Targets(*(t[:, order] for t in (targets.boxes, targets.labels, targets.valid))))
    shuffled = shuffled.labelled(cls=renamed(problem.assignment.cls), loc=renamed(problem.assignment.loc))
    mine, other = problem.losses(config, quality=quality), shuffled.losses(config, quality=quality)
    assert [t.item() for t in scalars(mine)] == [t.item() for t in scalars(other)]
    for a, b in zip(problem.gradients(mine.total), shuffled.gradients(other.total), strict=True):
        assert torch.equal(a, b)


@given(seed=seeds, arm=arms, which=st.integers(0, 2), junk=st.sampled_from([0.0, -7.0, float("nan"), float("inf")]))
def test_padding_means_nothing(seed, arm, which, junk):
    config, quality = with_correlation(arm, which)
    problem = near_objects(random_problem(seed))
    boxes, labels, valid = problem.targets.boxes, problem.targets.labels, problem.targets.valid

    def pad(tensor: Tensor, value: float) -> Tensor:
        return torch.cat([tensor, torch.full_like(tensor[:, :2], value)], dim=1)

    padded = problem._replace(targets=Targets(pad(boxes, junk), pad(labels, 1), pad(valid, False)))
    mine, other = problem.losses(config, quality=quality), padded.losses(config, quality=quality)
    assert [t.item() for t in scalars(mine)] == [t.item() for t in scalars(other)]
    for a, b in zip(problem.gradients(mine.total), padded.gradients(other.total), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
def test_padding_beside_an_image_without_objects(junk):
    """Its samples look up the first object, which is padding."""
    problem = random_problem(9, images=2)
    for labels in problem.tasks:
        labels.gt_index[1] = -1
        labels.weight[1] = 0.0
    boxes = problem.targets.boxes.clone()
    boxes[1] = junk
    wild = problem._replace(targets=problem.targets.replace(boxes=boxes))
    for config, quality in (with_correlation(arm, 0) for arm in ARMS.values()):
        mine, other = problem.losses(config, quality=quality), wild.losses(config, quality=quality)
        assert [t.item() for t in scalars(mine)] == [t.item() for t in scalars(other)]
        assert finite(wild.gradients(other.total))


@given(seed=seeds, arm=arms, cut=st.integers(1, 3))
def test_two_workers_are_one(seed, arm, cut):
    """As long as both means over workers are at least 1: below, the clamp makes each worker's share larger."""
    config, quality = arm
    problem = near_objects(random_problem(seed, images=4, samples=150), noise=0.2)
    sums = assert_two_workers_are_one(problem, config, cut, quality)
    assert float((sums[0] + sums[1]).min()) > 2


def test_workers_of_two_keep_their_own_correlation():
    """The mean of the workers' terms, not the correlation of all."""
    problem = near_objects(random_problem(10, images=4))
    config = LossConfig(cls=FocalLoss(weight=0), box=L1Loss(weight=0), correlation=correlations[1])
    parts = [problem.part(slice(None, 1)), problem.part(slice(1, None))]
    alone = [part.losses(config) for part in parts]
    together = [part.losses(config, mean=lambda own: own * 3) for part in parts]
    assert [t.total.item() for t in together] == [t.total.item() for t in alone]
    assert len({t.total.item() for t in [*alone, problem.losses(config)]}) == 3


@pytest.mark.parametrize("alpha", [-0.999, -0.5, -1e-9])
def test_any_negative_alpha_means_no_balancing(alpha):
    logits, target = torch.linspace(-3, 3, 8), torch.tensor([0.0, 1.0]).repeat(4)
    assert torch.equal(FocalLoss(alpha=alpha)(logits, target), FocalLoss(alpha=-1)(logits, target))
