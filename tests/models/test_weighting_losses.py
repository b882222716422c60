"""AutoAssign's and DW's losses against loops, what they teach, and what does not go together with them."""

import pytest
import torch

from mgdet.assign import DW, AutoAssign
from mgdet.config import load
from mgdet.errors import ConfigError
from mgdet.models import FCOSConfig
from mgdet.models.losses import AutoAssignLoss, DualWeightingLoss, FocalLoss, L1Loss, LossConfig
from mgdet.structures import CentrePrior, Targets
from tests.assign.helpers import assign, named_inputs
from tests.models.loss_problem import CODER, EMPTY, assert_two_workers_are_one, identity, random_problem
from tests.models.test_quality_losses import near_objects
from tests.reference import weighting


def bag(term) -> LossConfig:
    """The term alone."""
    return LossConfig(cls=FocalLoss(weight=0), box=L1Loss(weight=0), bag=term)


AUTO, DUAL = bag(AutoAssignLoss()), bag(DualWeightingLoss())
both = pytest.mark.parametrize("config", [AUTO, DUAL], ids=["auto_assign", "dw"])


def scenes_of(problem) -> list[weighting.Scene]:
    """The problem as plain numbers."""
    scores = problem.logits.sigmoid() * problem.quality.sigmoid()[..., None]
    targets, found = problem.targets, []
    for b in range(len(scores)):
        objects = {
            g: (int(targets.labels[b, g]), targets.boxes[b, g].tolist())
            for g in range(targets.labels.shape[1])
            if targets.valid[b, g]
        }
        predictions = problem.predictions
        found.append(
            weighting.Scene(
                objects,
                problem.priors.boxes.tolist(),
                problem.priors.strides.tolist(),
                scores[b].tolist(),
                predictions.boxes[b].tolist(),
                problem.assignment.cls.gt_index[b].tolist(),
            )
        )
    return found


def crowded(seed: int):
    """Boxes near objects that lie over each other, some of one class; locations of 8 pixels."""
    problem = near_objects(random_problem(seed, samples=12, objects=5, classes=2, hard=True))
    return problem._replace(priors=problem.priors.replace(strides=torch.full((12,), 8.0)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auto_assigns_loss_equals_a_loop(seed):
    problem = crowded(seed)
    g = torch.Generator().manual_seed(seed)
    mean, sigma = (torch.rand(2, 2, generator=g, dtype=torch.float64) + shift for shift in (-0.5, 0.7))
    predictions = problem.predictions.replace(centre_prior=CentrePrior(mean, sigma))
    found = AUTO(predictions, problem.targets, problem.assignment, CODER, identity).total.item()
    expected = weighting.auto_assign_loss(scenes_of(problem), mean.tolist(), sigma.tolist())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("options", [("giou", "relative"), ("iou", "fixed")], ids=str)
def test_dws_loss_equals_a_loop(seed, options):
    problem, (fit, negatives) = crowded(seed), options
    found = problem.losses(bag(DualWeightingLoss(fit=fit, negatives=negatives))).total.item()
    expected = weighting.dual_weighting_loss(scenes_of(problem), fit, negatives)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@both
def test_two_workers_have_the_loss_of_one(config):
    assert_two_workers_are_one(crowded(1), config, 1)


@both
@pytest.mark.parametrize("empty", EMPTY)
def test_without_objects_there_is_a_gradient_and_no_nan(config, empty):
    problem = random_problem(0).without_positives()._replace(targets=EMPTY[empty](3))
    total = problem.losses(config).total
    assert torch.isfinite(total)
    assert all(torch.isfinite(g).all() for g in problem.gradients(total))


@both
def test_degenerate_objects_and_saturated_scores_give_finite_gradients(config):
    priors, predictions, targets = named_inputs(3, "points", images=2)
    wild = predictions.boxes.nan_to_num(0, 0, 0).clamp(-1e3, 1e3).requires_grad_()
    logits = (predictions.logits * 200).requires_grad_()
    predictions = predictions.replace(boxes=wild, logits=logits, deltas=predictions.deltas.requires_grad_())
    labels = assign(DW(), (priors, predictions, targets))
    total = config(predictions, targets, labels, CODER, identity).total
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(wild.grad).all()


def test_a_prior_learns_from_every_object_around_it():
    """Two objects of two classes over one location: both are taught, by both losses."""
    boxes = torch.tensor([[[0.0, 0.0, 30.0, 30.0], [4.0, 4.0, 28.0, 28.0]]])
    targets = Targets(boxes, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))
    priors, predictions, _ = named_inputs(0, "points", images=1, clean=True)
    for config, assigner in ((AUTO, AutoAssign()), (DUAL, DW())):
        logits = torch.full_like(predictions.logits, -3.0).requires_grad_()
        decoded = boxes[:, :1].expand(1, len(priors.boxes), 4).clone()
        seen = predictions.replace(logits=logits, boxes=decoded, deltas=predictions.deltas.clone().requires_grad_())
        config(seen, targets, assign(assigner, (priors, seen, targets)), CODER, identity).total.backward()
        middle = 8 + 1  # the location at (12, 12)
        assert (logits.grad[0, middle, :2] < 0).all()


def test_the_centre_prior_is_learned_by_the_network():
    config = FCOSConfig(backbone="mobilenet_v3_small", channels=32, quality="objectness", centre_prior=True)
    network = config.build(3)
    network.eval()
    out = network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]]))
    targets = Targets(torch.tensor([[[3.0, 9.0, 40.0, 44.0]]]), torch.tensor([[1]]), torch.ones(1, 1) > 0)
    labels = AutoAssign()(out, targets)
    AUTO(out, targets, labels, network.coder, identity, quality="objectness").total.backward()
    mean, sigma = network.centre_prior.mean.grad, network.centre_prior.sigma.grad
    assert (sigma[1] != 0).all()
    assert (mean[1] != 0).any()
    assert (sigma[[0, 2]] == 0).all()
    assert all(p.grad is not None for p in network.head.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.quality=objectness"], "model.quality=objectness has no target of its own"),
        (["model.centre_prior=true"], "model.centre_prior is taught by"),
        (["assigner.name=dw", "assigner.mu=4", "loss.bag.name=dw"], "assigner.mu = 4.0 and loss.bag.mu = 5.0"),
        (["loss.bag.name=other"], "allowed are free_anchor, auto_assign, dw"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load("bccd_fcos_atss", settings)


def test_a_bag_without_a_name_is_free_anchors():
    assert load("bccd_fcos_free_anchor").loss.bag.name == "free_anchor"
    assert load("bccd_fcos_free_anchor", ["loss.bag.bag=7"]).loss.bag.bag == 7
