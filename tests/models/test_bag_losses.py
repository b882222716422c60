"""FreeAnchor's bags, task contrast, and targets of 1 with weights, against loops; and what they are for."""

import math

import pytest
import torch
from pydantic import ValidationError

from mgdet.assign import FreeAnchor, MuSu
from mgdet.models.losses import (
    FocalLoss,
    FreeAnchorLoss,
    GIoULoss,
    L1Loss,
    LossConfig,
    QualityFocalLoss,
    TaskContrastLoss,
)
from mgdet.structures import IGNORED
from tests.assign.helpers import assign, named_inputs
from tests.models.loss_problem import CODER, EMPTY, assert_two_workers_are_one, random_problem
from tests.models.test_quality_losses import near_objects
from tests.reference import losses as loop

BAG = LossConfig(cls=FocalLoss(weight=0), box=L1Loss(weight=0), bag=FreeAnchorLoss(bag=3))


def bag_by_hand(problem) -> float:
    """The loss of one worker, object by object and prior by prior."""
    config, labels, targets = BAG.bag, problem.assignment.cls, problem.targets
    boxes, anchors = problem.predictions.boxes.tolist(), problem.priors.boxes.tolist()
    objects, total = 0, 0.0
    images, samples, classes = problem.logits.shape
    p = problem.logits.detach().sigmoid().tolist()
    for b in range(images):
        likely = [[0.0] * classes for _ in range(samples)]
        for g in range(targets.labels.shape[1]):
            if not targets.valid[b, g]:
                continue
            c, box = int(targets.labels[b, g]), targets.boxes[b, g].tolist()
            for a, value in enumerate(loop.box_probability([loop.iou_of(x, box) for x in boxes[b]], config.box_iou)):
                likely[a][c] = max(likely[a][c], value)
            bag = [a for a in range(samples) if labels.gt_index[b, a] == g]
            found = []
            for a in bag:
                offsets = loop.deltas_of(box, anchors[a], CODER.weights)
                cost = sum(
                    loop.smooth_l1(d - o, config.beta)
                    for d, o in zip(problem.deltas[b, a].tolist(), offsets, strict=True)
                )
                found.append(p[b][a][c] * math.exp(-config.box_weight * cost))
            if bag:
                objects += 1
                total += config.alpha * min(100.0, -math.log(max(loop.mean_max(found), 1e-300)))
        for a in range(samples):
            for c in range(classes) if labels.gt_index[b, a] != IGNORED else ():
                q = p[b][a][c] * (1 - likely[a][c])
                total += (1 - config.alpha) / config.bag * q**config.gamma * -math.log(1 - q)
    return total / objects


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bags_equal_a_loop(seed):
    problem = near_objects(random_problem(seed, samples=9, hard=True))
    torch.testing.assert_close(problem.losses(BAG).total.item(), bag_by_hand(problem), rtol=1e-6, atol=1e-9)


def test_a_bag_teaches_both_tasks_and_one_good_prior_is_enough():
    problem = near_objects(random_problem(3, samples=9, hard=True))
    logits, deltas, _ = problem.gradients(problem.losses(BAG).total)
    assert logits.abs().sum() > 0
    assert deltas.abs().sum() > 0
    assert loop.mean_max([0.1, 0.2, 0.3]) < 0.21
    assert loop.mean_max([0.1, 0.2, 0.999]) > 0.99


def test_two_workers_have_the_bags_of_one():
    assert_two_workers_are_one(near_objects(random_problem(1, hard=True)), BAG, 1)


@pytest.mark.parametrize("config", [BAG, LossConfig(contrast=TaskContrastLoss())], ids=["bag", "contrast"])
@pytest.mark.parametrize("empty", EMPTY)
def test_without_objects_there_is_a_gradient_and_no_nan(config, empty):
    problem = random_problem(0).without_positives()._replace(targets=EMPTY[empty](3))
    total = problem.losses(config).total
    assert torch.isfinite(total)
    assert all(torch.isfinite(g).all() for g in problem.gradients(total))


def test_the_bags_of_the_assigner_can_be_learned():
    priors, predictions, targets = named_inputs(0, "points", images=2, clean=True)
    predictions.deltas.requires_grad_()
    predictions.logits.requires_grad_()
    labels = assign(FreeAnchor(bag=7), (priors, predictions, targets))
    found = BAG(predictions, targets, labels, CODER, lambda own: own)
    found.total.backward()
    assert torch.isfinite(found.total)
    assert torch.isfinite(predictions.logits.grad).all()


@pytest.mark.parametrize("moves", ["scores", "both"])
def test_contrast_equals_a_loop(moves):
    problem = near_objects(random_problem(2, samples=12))
    config = LossConfig(cls=FocalLoss(weight=0), box=GIoULoss(weight=0), contrast=TaskContrastLoss(moves=moves))
    labels, expected = problem.assignment.cls, []
    for b, a in (labels.gt_index >= 0).nonzero().tolist():
        g = labels.gt_index[b, a]
        p = problem.logits[b, a, problem.targets.labels[b, g]].sigmoid().item()
        overlap = loop.iou_of(problem.predictions.boxes[b, a].tolist(), problem.targets.boxes[b, g].tolist())
        expected.append(loop.contrast(p, overlap, 0.2))
    total = problem.losses(config).total
    torch.testing.assert_close(total.item(), sum(expected) / len(expected), rtol=1e-6, atol=1e-9)
    assert sum(value > 0 for value in expected) > 0
    assert (problem.gradients(total)[1].abs().sum() > 0) == (moves == "both")


@pytest.mark.parametrize("loss", [FocalLoss, QualityFocalLoss])
def test_a_target_of_one_is_weighted_by_the_label(loss):
    """The same as labels of weight 1 where all weights are 1; twice the weight is twice the loss of a positive."""
    problem = random_problem(4, hard=True)
    one, assigned = (LossConfig(cls=loss(target=target), box=L1Loss(weight=0)) for target in ("one", "assigned"))
    torch.testing.assert_close(problem.losses(one).total, problem.losses(assigned).total)
    labels = problem.assignment.cls

    def positives(weight: float) -> float:
        part = problem.labelled(cls=labels.replace(weight=labels.weight * weight))
        terms = part.losses(one).terms["cls"] * (labels.weight.sum() * weight).clamp(min=1)
        return terms.item()

    assert positives(3.0) - positives(2.0) == pytest.approx(positives(2.0) - positives(1.0), rel=1e-5)
    assert positives(2.0) > positives(1.0)


def test_the_weights_of_mutual_supervision_differ_between_the_tasks():
    result = assign(MuSu(), named_inputs(1, "points", clean=True))
    assert torch.equal(result.cls.gt_index, result.loc.gt_index)
    assert not torch.equal(result.cls.weight, result.loc.weight)
    positive = result.cls.gt_index >= 0
    assert result.cls.weight[positive].max() == 1
    assert result.cls.weight[positive].min() < 1


@pytest.mark.parametrize("options", [{"alpha": 2.0}, {"gamma": -1.0}, {"bag": 0}, {"box_iou": 1.0}, {"unknown": 1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        FreeAnchorLoss(**options)
