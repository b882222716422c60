"""The correlation loss against scipy and loops, where it is undefined, and that it does what it is for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from mgdet.models.losses import CorrelationLoss, FocalLoss, L1Loss, LossConfig, VarifocalLoss, box_targets, own_iou
from mgdet.models.losses.correlation import ranks, soft_ranks
from tests.assign.helpers import Recorder
from tests.models.loss_problem import Problem, random_problem
from tests.models.test_quality_losses import near_objects
from tests.reference import losses as loop
from tests.reference.published import soft_ranks as soft_ranks_as_published

KINDS = {
    "concordance": loop.concordance,
    "pearson": loop.pearson,
    "spearman": lambda x, y: loop.soft_spearman(x, y, CorrelationLoss().temperature),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
unit = st.floats(0, 1, width=32)


def only_correlation(**options) -> LossConfig:
    return LossConfig(cls=FocalLoss(weight=0), box=L1Loss(weight=0), correlation=CorrelationLoss(**options))


def sides(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the positives' classes, their IoUs, and who is positive, picked in a loop."""
    labels = problem.assignment.cls
    boxes, positive = box_targets(labels, problem.targets, problem.priors)
    scores = torch.zeros(positive.shape, dtype=torch.float64)
    for b, a in positive.nonzero().tolist():
        c = problem.targets.labels[b, labels.gt_index[b, a]]
        scores[b, a] = problem.logits[b, a, c].detach().sigmoid()
    return scores, own_iou(problem.predictions, boxes), positive


def masked(values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Values `[n]` among others that must not count, `[2, n]` with their mask."""
    g = torch.Generator().manual_seed(seed)
    n = len(values)
    mask = torch.zeros(2 * n, dtype=torch.bool)
    mask[torch.randperm(2 * n, generator=g)[:n]] = True
    out = torch.rand(2 * n, generator=g, dtype=values.dtype)
    out[mask] = values
    return out.reshape(2, n), mask.reshape(2, n)


# --- values


@every_kind
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_term_equals_a_loop(kind, seed):
    problem = near_objects(random_problem(seed, samples=15))
    scores, overlaps, positive = sides(problem)
    expected = 0.3 * (1 - KINDS[kind](scores[positive].tolist(), overlaps[positive].tolist()))
    got = problem.losses(only_correlation(kind=kind, weight=0.3))
    assert got.terms["correlation"].item() == pytest.approx(expected, rel=1e-9)
    assert got.total.item() == got.terms["correlation"].item()
    with_others = LossConfig(cls=VarifocalLoss(), correlation=CorrelationLoss(kind=kind, weight=0.3))
    all_terms = problem.losses(with_others, quality="iou")
    parts = [all_terms.terms["cls"], all_terms.terms["box"], all_terms.terms["quality"], all_terms.terms["correlation"]]
    assert all_terms.total.item() == pytest.approx(sum(float(p) for p in parts))
    assert all_terms.terms["correlation"].item() == got.terms["correlation"].item()


def test_the_kinds_differ():
    problem = near_objects(random_problem(0, samples=15))
    assert len({round(problem.losses(only_correlation(kind=k)).terms["correlation"].item(), 4) for k in KINDS}) == 3


@given(st.lists(st.tuples(unit, unit), min_size=3, max_size=20), st.integers(0, 99))
def test_pearson_and_concordance_of_anything(pairs, seed):
    x, y = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    if min(float(x.var(correction=0)), float(y.var(correction=0))) <= 2e-12:
        return
    (scores, mask), (overlaps, _) = masked(x, seed), masked(y, seed)
    for kind in ("pearson", "concordance"):
        got = CorrelationLoss(kind=kind)(scores, overlaps, mask)
        assert got.item() == pytest.approx(1 - KINDS[kind](x.tolist(), y.tolist()), abs=1e-6)
    assert CorrelationLoss(kind="pearson")(scores, overlaps, mask).item() == pytest.approx(
        1 - stats.pearsonr(x, y).statistic, abs=1e-6
    )


@given(st.lists(st.tuples(*[st.integers(0, 12)] * 2), min_size=3, max_size=20), st.integers(0, 99))
def test_cold_spearman_is_scipys(pairs, seed):
    """With many ties on both sides."""
    x, y = (torch.tensor(side, dtype=torch.float64) / 12 for side in zip(*pairs, strict=True))
    (scores, mask), (overlaps, _) = masked(x, seed), masked(y, seed)
    got = CorrelationLoss(kind="spearman", temperature=1e-3)(scores, overlaps, mask).item()
    if len(set(x.tolist())) == 1 or len(set(y.tolist())) == 1:
        assert got == 0.0
    else:
        assert got == pytest.approx(1 - stats.spearmanr(x, y).statistic, abs=1e-6)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(0, 99))
def test_ranks_are_scipys(values, seed):
    x, mask = masked(torch.tensor(values, dtype=torch.float64), seed)
    flat, inside = x.flatten(), mask.flatten()
    expected = torch.tensor(stats.rankdata(values), dtype=torch.float64)
    torch.testing.assert_close(ranks(flat, inside)[inside], expected)
    torch.testing.assert_close(soft_ranks(flat, inside, 1e-4)[inside], expected)


def test_extremes():
    x = torch.tensor([[0.1, 0.2, 0.5, 0.9]], dtype=torch.float64)
    yes = torch.ones_like(x) > 0
    for kind in KINDS:
        loss = CorrelationLoss(kind=kind, temperature=1e-3)
        assert loss(x, x, yes).item() == pytest.approx(0.0, abs=1e-9)
        assert loss(x, 1 - x, yes).item() >= 1.8
    assert CorrelationLoss(kind="pearson")(x, 0.5 * x, yes).item() == pytest.approx(0.0, abs=1e-9)
    assert CorrelationLoss(kind="concordance")(x, 0.5 * x, yes).item() > 0.2
    assert CorrelationLoss(kind="spearman", temperature=1e-3)(x, x**3, yes).item() == pytest.approx(0.0, abs=1e-9)


# --- gradients


@pytest.mark.slow
@every_kind
def test_gradients(kind):
    problem = near_objects(random_problem(1, samples=15))
    config = only_correlation(kind=kind)
    assert torch.autograd.gradcheck(lambda x: problem._replace(logits=x).losses(config).total, problem.logits)
    logits, deltas, branch = problem.gradients(problem.losses(config).total)
    assert torch.equal(logits.any(dim=-1), problem.assignment.cls.gt_index >= 0), "all positives, and only they"
    assert not deltas.any()
    assert not branch.any()


@every_kind
def test_following_the_gradient_orders_scores_as_ious(kind):
    g = torch.Generator().manual_seed(0)
    overlaps, mask = masked(torch.rand(40, generator=g))
    logits = torch.randn(overlaps.shape, generator=g).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)

    def order() -> float:
        return float(stats.spearmanr(logits.detach()[mask], overlaps[mask]).statistic)

    assert order() < 0.5
    for _ in range(100):
        optimizer.zero_grad()
        CorrelationLoss(kind=kind)(logits.sigmoid(), overlaps, mask).backward()
        optimizer.step()
    assert order() > 0.95


CONSTANT = {
    "no positives": (torch.linspace(0, 1, 6), torch.linspace(1, 0, 6), 0),
    "one": (torch.linspace(0, 1, 6), torch.linspace(1, 0, 6), 1),
    "two": (torch.linspace(0, 1, 6), torch.linspace(1, 0, 6), 2),
    "scores 0.3": (torch.full((6,), 0.3), torch.linspace(1, 0, 6), 6),
    "scores 0": (torch.zeros(6), torch.linspace(1, 0, 6), 6),
    "IoUs 0.7": (torch.linspace(0, 1, 6), torch.full((6,), 0.7), 6),
    "IoUs 0": (torch.linspace(0, 1, 6), torch.zeros(6), 6),
    "both": (torch.full((6,), 0.3), torch.full((6,), 0.3), 6),
    "both 0": (torch.zeros(6), torch.zeros(6), 6),
    "scores of one rounding": (0.3 + torch.arange(6) * 3e-8, torch.linspace(1, 0, 6), 6),
}


@every_kind
@pytest.mark.parametrize("case", CONSTANT)
def test_undefined_is_zero_without_gradient(case, kind):
    scores, overlaps, positives = CONSTANT[case]
    scores = scores.reshape(2, 3).clone().requires_grad_()
    mask = (torch.arange(6) < positives).reshape(2, 3)
    loss = CorrelationLoss(kind=kind)(scores, overlaps.reshape(2, 3), mask)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(scores.grad, torch.zeros(2, 3)), "zero, not NaN"


@every_kind
def test_three_positives_are_enough(kind):
    scores = torch.tensor([[0.1, 0.5, 0.4, 0.0]], requires_grad=True)
    overlaps = torch.tensor([[0.9, 0.1, 0.2, 0.0]], requires_grad=True)
    loss = CorrelationLoss(kind=kind)(scores, overlaps, scores > 0)
    loss.backward()
    assert overlaps.grad is None
    assert loss.item() > 1
    assert (scores.grad[0, :3] != 0).all()
    assert scores.grad[0, 3] == 0


@every_kind
@pytest.mark.parametrize("logits", [[-1e4, 1e4, 1e4, -1e4], [1e4] * 4, [-1e4, -90.0, -20.0, 0.0]], ids=str)
def test_saturated_scores(kind, logits):
    x = torch.tensor([logits], requires_grad=True)
    loss = CorrelationLoss(kind=kind)(x.sigmoid(), torch.tensor([[0.9, 0.1, 0.3, 0.2]]), torch.ones(1, 4) > 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


# --- many positives


def test_spearman_takes_at_most_so_many():
    """The ones it takes do not depend on anything but the mask; they are spread over the images."""
    g = torch.Generator().manual_seed(0)
    scores, overlaps = torch.rand(4, 500, generator=g), torch.rand(4, 500, generator=g)
    mask = torch.rand(4, 500, generator=g) < 0.5
    taken = []
    for s in (scores, scores.flip(1)):
        s = s.clone().requires_grad_()
        CorrelationLoss(kind="spearman", max_samples=100, temperature=1.0)(s, overlaps, mask).backward()
        taken.append(s.grad != 0)
    assert torch.equal(taken[0], taken[1])
    assert int(taken[0].sum()) == 100
    assert not (taken[0] & ~mask).any()
    assert (taken[0].sum(dim=1) > 10).all()

    rho = CorrelationLoss(kind="spearman", max_samples=100)(scores, overlaps, mask)
    x, y = scores[taken[0]].double(), overlaps[taken[0]].double()
    temperature = CorrelationLoss().temperature
    assert rho.item() == pytest.approx(1 - loop.soft_spearman(x.tolist(), y.tolist(), temperature), abs=1e-5)


@pytest.mark.parametrize("extra", [0, 1, 100])
def test_spearman_takes_all_where_there_are_few(extra):
    scores, mask = masked(torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    overlaps = scores.flip(1) ** 2
    got = CorrelationLoss(kind="spearman", max_samples=30 + extra)(scores, overlaps, mask)
    expected = CorrelationLoss(kind="spearman", max_samples=10**6)(scores, overlaps, mask)
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)


@every_kind
def test_nothing_waits_for_the_device(kind):
    scores = torch.rand(3, 50, requires_grad=True)
    with Recorder() as recorder:
        CorrelationLoss(kind=kind, max_samples=20)(scores, torch.rand(3, 50), torch.rand(3, 50) < 0.5).backward()
    assert recorder.waits == []


def test_only_what_makes_sense_is_allowed():
    for wrong in ({"kind": "kendall"}, {"max_samples": 2}, {"temperature": 0.0}, {"weight": -1}):
        with pytest.raises(ValidationError):
            CorrelationLoss(**wrong)


# --- the authors' configurations


@given(st.lists(st.tuples(unit, unit), min_size=3, max_size=40), st.integers(0, 99))
def test_the_published_spearman_is_pearson(pairs, seed):
    """Soft ranks of strength 1 on values in [0, 1] are the values plus a constant."""
    x, y = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    if min(float(x.var(correction=0)), float(y.var(correction=0))) <= 1e-8:
        return
    published = loop.pearson(soft_ranks_as_published(x.tolist()), soft_ranks_as_published(y.tolist()))
    (scores, mask), (overlaps, _) = masked(x, seed), masked(y, seed)
    assert CorrelationLoss(kind="pearson")(scores, overlaps, mask).item() == pytest.approx(1 - published, abs=1e-6)


def test_soft_ranks_of_a_small_strength_are_ranks():
    """So the projection is one: 1 is the rank of the smallest."""
    assert soft_ranks_as_published([0.3, 0.9, 0.1, 0.5], strength=0.01) == pytest.approx([2, 4, 1, 3])


def test_unbiased_concordance_divides_by_one_less():
    x, y = torch.rand(2, 1, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cov = float(torch.cov(torch.cat([x, y]))[0, 1])
    expected = 2 * cov / float(x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert CorrelationLoss(unbiased=True)(x, y, x > -1).item() == pytest.approx(1 - expected, abs=1e-9)


def test_two_samples_correlate_only_where_asked():
    x, y = torch.tensor([[0.1, 0.4]]), torch.tensor([[0.2, 0.3]])
    assert CorrelationLoss(kind="pearson")(x, y, x > 0).item() == 0
    assert CorrelationLoss(kind="pearson", min_samples=2)(x, 1 - y, x > 0).item() == pytest.approx(2)


def test_per_level_is_the_mean_over_levels_that_have_one():
    problem = near_objects(random_problem(1, samples=15))
    problem = problem._replace(priors=problem.priors.replace(level_counts=(7, 0, 8)))
    scores, overlaps, positive = sides(problem)
    each, start = [], 0
    for count in problem.priors.level_counts:
        part = (slice(None), slice(start, start + count))
        x, y = scores[part][positive[part]], overlaps[part][positive[part]]
        if len(x) >= 2:
            each.append(1 - loop.pearson(x.tolist(), y.tolist()))
        start += count
    got = problem.losses(only_correlation(kind="pearson", per_level=True, min_samples=2, weight=1.0))
    assert len(each) == 2
    assert got.terms["correlation"].item() == pytest.approx(sum(each) / len(each), rel=1e-6)
