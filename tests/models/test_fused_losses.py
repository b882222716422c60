"""Class losses with a derivative written out, against the formula as PyTorch differentiates it."""

from itertools import pairwise

import pytest
import torch

from mgdet.models.losses import FocalLoss, LossConfig, QualityFocalLoss, VarifocalLoss, fused
from mgdet.models.losses.classification import ClassTerm
from mgdet.structures import IGNORED, Labels, Targets
from tests.models.loss_problem import EMPTY, random_problem

EXACT = [
    *(FocalLoss(alpha=alpha, gamma=gamma) for alpha in (-1, 0.25) for gamma in (0, 1, 2)),
    *(QualityFocalLoss(beta=beta) for beta in (0, 1, 2)),
    *(VarifocalLoss(gamma=gamma) for gamma in (0, 1, 2)),
]
BROKEN = [FocalLoss(gamma=1.5), QualityFocalLoss(beta=0.7), VarifocalLoss(gamma=0.3)]


def some_labels(images: int, priors: int, classes: int, objects: int = 5) -> tuple[Labels, Targets]:
    """Every kind of label; some positives have weight 0 or 1."""
    owner = torch.randint(-2, objects, (images, priors))
    owner = torch.where(torch.rand(images, priors) < 0.7, -1, owner)
    weight = (torch.rand(images, priors) * 1.4 - 0.2).clamp(0, 1)
    targets = Targets(
        torch.zeros(images, objects, 4), torch.randint(classes, (images, objects)), owner[:, :objects] > 9
    )
    return Labels(owner, torch.where(owner >= 0, weight, 0.0)), targets


def both(loss: ClassTerm, logits: torch.Tensor, labels: Labels, targets: Targets) -> list[list[torch.Tensor]]:
    """Losses of the priors and the gradient of their masked mean: fused, and by the formula."""
    found = []
    for of_priors in (loss.of_priors, lambda *problem: ClassTerm.of_priors(loss, *problem)):
        leaf = logits.detach().clone().requires_grad_()
        values = of_priors(leaf, labels, targets)
        (torch.where(labels.gt_index != IGNORED, values, 0.0).sum() / 37).backward()
        found.append([values.detach(), leaf.grad])
    return found


@pytest.mark.parametrize(("classes", "on_host"), [(1, True), (3, True), (3, False), (80, True)])
@pytest.mark.parametrize("loss", EXACT, ids=repr)
def test_equal_to_the_bit(loss, classes, on_host, monkeypatch):
    """Also with the way of a GPU, where all priors are gone through, not only those with a target."""
    monkeypatch.setattr(fused, "PIECE", 64 * classes)  # several pieces
    monkeypatch.setattr(fused, "_on_host", lambda values: on_host)
    torch.manual_seed(classes)
    logits = 3 * torch.randn(2, 333, classes) - 3
    logits[0, :4, 0] = torch.tensor([-200.0, -88.0, 0.0, 200.0])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        mine, formula = both(loss, logits, *some_labels(2, 333, classes))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(mine[0], formula[0])
    assert torch.equal(mine[1], formula[1])


@pytest.mark.parametrize("loss", BROKEN, ids=repr)
def test_broken_exponents(loss):
    torch.manual_seed(0)
    problem = 3 * torch.randn(2, 50, 3) - 3, *some_labels(2, 50, 3)
    for mine, formula in zip(*both(loss, *problem), strict=True):
        torch.testing.assert_close(mine, formula)


@pytest.mark.parametrize("loss", [*EXACT, *BROKEN], ids=repr)
def test_the_derivative_is_that_of_the_value(loss):
    torch.manual_seed(1)
    labels, targets = some_labels(2, 9, 2)
    logits = torch.randn(2, 9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss.of_priors(x, labels, targets), logits)


@pytest.mark.parametrize("loss", [FocalLoss(), QualityFocalLoss(), VarifocalLoss()], ids=repr)
def test_only_the_logits_are_kept(loss):
    logits = torch.randn(1, 400, 10, requires_grad=True)
    labels, targets = some_labels(1, 400, 10)
    kept: dict[int, int] = {}

    def note(value: torch.Tensor) -> torch.Tensor:
        kept[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        value = loss.of_priors(logits, labels, targets).sum()
    assert logits.numel() <= sum(kept.values()) < 1.5 * logits.numel()
    value.backward()


@pytest.mark.parametrize("kind", EMPTY)
def test_without_objects(kind):
    problem = random_problem()
    empty = problem._replace(targets=EMPTY[kind](3)).without_positives()
    for loss in (FocalLoss(), QualityFocalLoss(), VarifocalLoss()):
        mine, formula = both(loss, empty.logits, empty.assignment.cls, empty.targets)
        torch.testing.assert_close(mine, formula)
        assert float(empty.losses(LossConfig(cls=loss)).terms["cls"]) > 0


def test_without_priors():
    labels = Labels(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0))
    logits = torch.zeros(2, 0, 3, requires_grad=True)
    loss = FocalLoss().of_priors(logits, labels, EMPTY["only padding"](2))
    loss.sum().backward()
    assert loss.shape == (2, 0)
    assert logits.grad is not None


def test_logits_that_lie_apart_in_memory():
    torch.manual_seed(2)
    labels, targets = some_labels(2, 100, 4)
    apart = torch.randn(4, 100, 2).permute(2, 1, 0)
    for mine, formula in pairwise(both(FocalLoss(), apart, labels, targets)):
        assert torch.equal(mine[1], formula[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU does not wait for the host")
@pytest.mark.parametrize("loss", [FocalLoss(), QualityFocalLoss(), VarifocalLoss()], ids=repr)
def test_a_gpu_does_not_wait(loss):
    labels, targets = (value.to("cuda") for value in some_labels(2, 100, 4))
    logits = torch.randn(2, 100, 4, device="cuda", requires_grad=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss.of_priors(logits, labels, targets).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
