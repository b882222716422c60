"""The losses against a loop over Python floats, their normalisation, and what happens where there is nothing."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter

from mgdet.assign import MaxIoU, MutualGuidance
from mgdet.models.losses import BalancedL1Loss, BoxLoss, FocalLoss, GIoULoss, L1Loss, LossConfig, SmoothL1Loss
from mgdet.structures import Assignment, Labels, pad_targets
from tests.models.loss_problem import CODER, EMPTY, assert_two_workers_are_one, identity, random_problem
from tests.reference import losses as loop
from tests.small import small_experiment

BOX_LOSSES = {
    "l1": (L1Loss(weight=0.7), loop.l1),
    "smooth_l1": (SmoothL1Loss(beta=0.5, weight=2.0), lambda x: loop.smooth_l1(x, 0.5)),
    "balanced_l1": (BalancedL1Loss(weight=0.25), lambda x: loop.balanced_l1(x, 0.5, 1.5, 0.11)),
    "giou": (GIoULoss(weight=2.0), None),
}
every_box_loss = pytest.mark.parametrize("name", BOX_LOSSES)


# --- values


@every_box_loss
@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("seed", [0, 3])
def test_losses_equal_a_loop(name, seed, hard):
    problem = random_problem(seed, hard=hard)
    config, penalty = BOX_LOSSES[name]
    got = problem.losses(LossConfig(cls=FocalLoss(alpha=0.3, gamma=1.5, weight=1.7), box=config))

    p = problem.predictions
    anchors, boxes = problem.priors.boxes.tolist(), problem.targets.boxes.tolist()
    deltas, decoded = p.deltas.tolist(), p.boxes.tolist()

    def one(image, sample, owner):
        if penalty is None:
            return 1 - loop.giou_of(decoded[image][sample], boxes[image][owner])
        wanted = loop.deltas_of(boxes[image][owner], anchors[sample], CODER.weights)
        return sum(penalty(x - y) for x, y in zip(deltas[image][sample], wanted, strict=True))

    cls, loc = problem.tasks
    cls_weight, loc_weight = cls.weight.tolist(), loc.weight.tolist()
    expected_box = config.weight * loop.positive_loss(loc.gt_index.tolist(), lambda b, a, _: loc_weight[b][a], one)
    expected_cls = 1.7 * loop.class_loss(
        p.logits.tolist(),
        cls.gt_index.tolist(),
        cls_weight,
        problem.targets.labels.tolist(),
        lambda logit, target: loop.focal(logit, target, 0.3, 1.5),
        lambda b, a, _: cls_weight[b][a],
    )
    assert float(got.terms["cls"]) == pytest.approx(expected_cls, rel=1e-6)
    assert float(got.terms["box"]) == pytest.approx(expected_box, rel=1e-6)
    assert got.total.item() == pytest.approx(expected_cls + expected_box, rel=1e-6)
    in_cls, in_loc = cls.gt_index >= 0, loc.gt_index >= 0
    counts = [int(in_cls.sum()), int(in_loc.sum()), int((in_cls & in_loc).sum())]
    assert counts[0] != counts[1], "with equal counts the normalisers could be exchanged"
    assert {name: float(v) for name, v in got.counts.items()} == dict(zip(("cls", "loc", "both"), counts, strict=True))
    assert got.terms.keys() == {"cls", "box"}, "the others are off"


@pytest.mark.slow
@every_box_loss
def test_gradients(name):
    problem = random_problem(1)
    config = LossConfig(box=BOX_LOSSES[name][0])

    def total(logits, deltas):
        return problem._replace(logits=logits, deltas=deltas).losses(config).total

    assert torch.autograd.gradcheck(total, (problem.logits, problem.deltas))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.25, 1.0])
def test_focal_elementwise(alpha, gamma):
    logits = torch.linspace(-8, 8, 9, dtype=torch.float64)[:, None]
    target = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64).expand(9, 3)
    got = FocalLoss(alpha=alpha, gamma=gamma)(logits.expand(9, 3), target)
    for i in range(9):
        for j in range(3):
            assert float(got[i, j]) == pytest.approx(loop.focal(float(logits[i]), float(target[0, j]), alpha, gamma))
    if gamma == 0 and alpha < 0:
        torch.testing.assert_close(
            got, F.binary_cross_entropy_with_logits(logits.expand(9, 3), target, reduction="none")
        )


def test_focal_survives_extreme_logits():
    logits = torch.tensor([-1e4, -100.0, 100.0, 1e4], requires_grad=True)
    for target in (0.0, 1.0):
        loss = FocalLoss()(logits, torch.full_like(logits, target))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()


def test_smooth_l1_is_torchs():
    x = torch.linspace(0, 3, 61)
    expected = F.smooth_l1_loss(x, torch.zeros_like(x), beta=0.4, reduction="none")
    torch.testing.assert_close(SmoothL1Loss(beta=0.4).of_difference(x), expected)


BALANCED = [
    BalancedL1Loss(),
    BalancedL1Loss(alpha=1.0, gamma=1.0, beta=1.0),
    BalancedL1Loss(alpha=0.2, gamma=0.9, beta=2),
]


@pytest.mark.parametrize("loss", BALANCED, ids=lambda c: f"beta {c.beta}")
def test_balanced_l1_is_continuous_at_beta(loss):
    around = torch.tensor([loss.beta - 1e-9, loss.beta, loss.beta + 1e-9], dtype=torch.float64)
    below, at, above = loss.of_difference(around).tolist()
    assert below == pytest.approx(at, abs=1e-7)
    assert above == pytest.approx(at, abs=1e-7)
    assert float(loss.of_difference(torch.zeros(()))) == 0.0


@pytest.mark.parametrize("loss", BALANCED, ids=lambda c: f"beta {c.beta}")
def test_balanced_l1_derivative(loss):
    """Of the formula as written, on both sides of beta; with beta 1 it is the paper's alpha ln(b x + 1)."""
    x = torch.linspace(0, 3 * loss.beta, 100, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(loss.of_difference(x).sum(), x)
    a, b = loss.alpha, torch.tensor(loss.gamma / loss.alpha, dtype=torch.float64).exp() - 1
    v = x.detach()
    if loss.beta == 1.0:
        curved = a * torch.log(b * v + 1)
    else:
        curved = a * torch.log(b * v / loss.beta + 1) + a * (b * v + 1) / (b * v + loss.beta) - a
    torch.testing.assert_close(got, torch.where(v < loss.beta, curved, torch.full_like(v, loss.gamma)))


@every_box_loss
def test_a_perfect_box_costs_nothing(name):
    problem = random_problem(2)
    config = BOX_LOSSES[name][0]
    owner = problem.assignment.loc.gt_index.clamp(min=0)
    wanted = problem.targets.boxes.gather(1, owner[..., None].expand(-1, -1, 4))
    perfect = problem._replace(deltas=CODER.encode(wanted, problem.priors))
    assert float(perfect.losses(LossConfig(box=config)).terms["box"]) == pytest.approx(0.0, abs=1e-9)
    assert float(problem.losses(LossConfig(box=config)).terms["box"]) > 0.01


def test_balanced_l1_is_finite_however_far_the_box_is():
    """The branch that is not taken must not poison the gradient of the one that is."""
    loss = BalancedL1Loss()
    x = torch.tensor([1e3, 1e37], requires_grad=True)
    value = loss.of_difference(x)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert x.grad.tolist() == [loss.gamma, loss.gamma]


def test_every_box_loss_can_be_chosen_by_name():
    for name, (config, _) in BOX_LOSSES.items():
        assert type(TypeAdapter(BoxLoss).validate_python({"name": name})) is type(config)


# --- who takes part


def test_ignored_samples_contribute_nothing():
    problem = random_problem(4)
    config = LossConfig()
    before = problem.losses(config)
    gradients = torch.autograd.grad(before.total, (problem.logits, problem.deltas))
    ignored = problem.assignment.cls.gt_index == -2
    not_positive = problem.assignment.loc.gt_index < 0
    assert ignored.any()
    assert (~ignored).any()
    assert torch.equal((gradients[0] == 0).all(-1), ignored), "ignored samples, and only they, get no class gradient"
    assert torch.equal((gradients[1] == 0).all(-1), not_positive)

    logits = torch.where(ignored[..., None], 50.0, problem.logits.detach())
    deltas = torch.where(not_positive[..., None], 50.0, problem.deltas.detach())
    after = problem._replace(logits=logits, deltas=deltas).losses(config)
    assert after.total.item() == before.total.item()


def test_weights_of_samples_that_are_not_positive_mean_nothing():
    problem = random_problem(4)
    config = LossConfig()
    heavy = [labels.replace(weight=torch.where(labels.gt_index >= 0, labels.weight, 1.0)) for labels in problem.tasks]
    got = problem.labelled(cls=heavy[0], loc=heavy[1]).losses(config).total
    assert got.item() == problem.losses(config).total.item()


def test_positives_of_the_other_task_do_not_normalise():
    """Twice the positives in classification halve nothing in localization, and the other way round."""
    problem = random_problem(5)
    none = Labels(torch.full_like(problem.assignment.cls.gt_index, -1), torch.zeros_like(problem.assignment.cls.weight))
    config = LossConfig()
    both = problem.losses(config)
    assert float(problem.labelled(cls=none).losses(config).terms["box"]) == float(both.terms["box"])
    assert float(problem.labelled(loc=none).losses(config).terms["cls"]) == float(both.terms["cls"])
    assert float(problem.labelled(loc=none).losses(config).terms["box"]) == 0.0


def test_the_normaliser_is_clamped_at_one():
    """Without positives the class loss is the plain sum over negatives."""
    problem = random_problem(6)
    none = Labels(torch.full_like(problem.assignment.cls.gt_index, -1), torch.zeros_like(problem.assignment.cls.weight))
    got = problem.labelled(cls=none, loc=none).losses(LossConfig(cls=FocalLoss(alpha=-1, gamma=0)))
    assert got.total.item() == pytest.approx(F.softplus(problem.logits).sum().item())
    assert [float(v) for v in got.counts.values()] == [0.0] * 3


@every_box_loss
def test_soft_labels_weigh_positives_against_each_other(name):
    """Weights that are all the same mean nothing; with others it is a weighted mean."""
    problem = random_problem(7, samples=30, hard=True)
    loc = problem.assignment.loc
    config = LossConfig(box=BOX_LOSSES[name][0])

    def box(weight):
        return float(problem.labelled(loc=loc.replace(weight=weight)).losses(config).terms["box"])

    full, half = box(loc.weight), box(loc.weight / 2)
    assert float(loc.weight.sum()) > 20
    assert half == pytest.approx(full)
    first = torch.where(torch.arange(3)[:, None] == 0, loc.weight, 0.0)
    assert float(first.sum()) > 1
    assert (box(first) * first.sum() + box(loc.weight - first) * (loc.weight - first).sum()) / loc.weight.sum() == (
        pytest.approx(full)
    )


def test_class_loss_is_divided_by_the_assigned_weights():
    """Not by how many positives there are: tripled weights below it divide the same loss by three."""
    problem = random_problem(7, samples=30)
    cls = problem.assignment.cls
    config = LossConfig(cls=FocalLoss(target="iou"))
    divisor = float(cls.weight.sum())
    assert divisor > 5
    got = [float(problem.labelled(cls=cls.replace(weight=cls.weight * f)).losses(config).terms["cls"]) for f in (1, 3)]
    assert got[0] == pytest.approx(3 * got[1])
    ones = cls.replace(weight=(cls.gt_index >= 0).float())
    hard = float(problem.labelled(cls=ones).losses(config).terms["cls"])
    assert got[0] * divisor == pytest.approx(hard * float(ones.weight.sum()))


# --- no objects


@pytest.mark.parametrize("empty", EMPTY)
@every_box_loss
def test_a_batch_without_objects(name, empty):
    problem = random_problem(8)
    labels = Labels(torch.full((3, 7), -1), torch.zeros(3, 7))
    nothing = problem._replace(targets=EMPTY[empty](3), assignment=Assignment(labels, labels))
    got = nothing.losses(LossConfig(box=BOX_LOSSES[name][0]))
    got.total.backward()
    assert float(got.terms["box"]) == 0.0
    assert torch.isfinite(got.total)
    assert float(got.terms["cls"]) > 0
    assert (problem.logits.grad != 0).all(), "every sample is background"
    assert problem.deltas.grad is not None
    assert (problem.deltas.grad == 0).all()


@pytest.fixture(scope="module")
def network_and_images(tmp_path_factory):
    torch.manual_seed(0)
    network = small_experiment(tmp_path_factory.mktemp("unused")).model.build(3)
    return network, torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("assigner", [MaxIoU(), MutualGuidance()], ids=lambda a: a.name)
@pytest.mark.parametrize("box", ["l1", "giou"])
def test_every_parameter_gets_a_gradient_without_objects(network_and_images, assigner, empty, box):
    """Through assigner and network: a parameter without one would make DDP wait for ever."""
    network, images = network_and_images
    network.zero_grad(set_to_none=True)
    predictions = network(images, torch.tensor([[64, 64]] * 2))
    targets = EMPTY[empty](2)
    assignment = assigner(predictions, targets)
    losses = LossConfig(box=BOX_LOSSES[box][0])(predictions, targets, assignment, network.coder, identity)
    losses.total.backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    regression = list(network.head.regression_head.parameters())
    assert all((p.grad == 0).all() for p in regression)
    assert any((p.grad != 0).any() for p in network.head.classification_head.parameters())


# --- several workers


@every_box_loss
@pytest.mark.parametrize("cut", [1, 2, 3], ids=lambda n: f"{n} of 4 images on the first worker")
def test_the_mean_of_two_workers_is_one_worker_with_all(name, cut):
    """The last image has no positive at all, so that with a cut at 3 the second worker is empty."""
    problem = random_problem(9, images=4)
    for labels in problem.tasks:
        labels.gt_index[3] = -1
        labels.weight[3] = 0.0
    sums = assert_two_workers_are_one(problem, LossConfig(box=BOX_LOSSES[name][0]), cut)
    assert not torch.equal(*sums), "with equal sums local normalisation would do as well"


def test_this_workers_weights_are_what_is_averaged():
    problem = random_problem(10)
    seen = []
    problem.losses(LossConfig(), mean=lambda own: seen.append(own) or own, quality="iou")
    expected = [float(labels.weight.sum()) for labels in problem.tasks]
    expected.append(float((problem.assignment.loc.gt_index >= 0).sum()))
    assert [t.tolist() for t in seen] == [pytest.approx(expected)], "one collective for all terms"


def test_pad_targets_and_losses_agree_on_an_image_without_objects():
    """One image with an object beside one without: the padding row of the second is never looked up."""
    targets = pad_targets(
        [torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.zeros(0, 4)], [torch.tensor([2]), torch.zeros(0)]
    )
    problem = random_problem(11, images=2)
    owner = torch.full((2, 7), -1)
    owner[0, 3] = 0
    labels = Labels(owner, (owner >= 0).float())
    small = problem._replace(targets=targets, assignment=Assignment(labels, labels))
    losses = small.losses(LossConfig())
    (gradient,) = torch.autograd.grad(losses.total, problem.deltas)
    assert torch.equal((gradient != 0).any(-1), owner >= 0)
