"""Distributions of distances: coder and loss against loops, the network, and what does not go together."""

import pytest
import torch

from mgdet.config import load
from mgdet.errors import ConfigError
from mgdet.models import FCOSConfig
from mgdet.models.coder import DistributionCoder, PointCoder
from mgdet.models.losses import DistributionFocalLoss, GIoULoss, LossConfig
from mgdet.structures import Assignment, Labels, Predictions
from tests.assign.helpers import canvas_priors, named_inputs
from tests.reference import losses as loop

BINS = 5


def inputs(seed: int = 0):
    """Priors, logits of distributions `[2, A, 4 * 6]`, and a box for each prior, some of them out of the bins."""
    g = torch.Generator().manual_seed(seed)
    priors = canvas_priors(points=True, canvas=32)
    amount = len(priors.boxes)
    corner = torch.rand(2, amount, 2, generator=g) * 40 - 10
    boxes = torch.cat([corner, corner + 2 + torch.rand(2, amount, 2, generator=g) * 60], dim=-1)
    return priors, torch.randn(2, amount, 4 * (BINS + 1), generator=g), boxes


def test_a_distance_is_the_mean_of_its_distribution():
    priors, deltas, boxes = inputs()
    coder = DistributionCoder(BINS)
    means = (deltas.unflatten(-1, (4, BINS + 1)).softmax(-1) * torch.arange(BINS + 1)).sum(-1)
    torch.testing.assert_close(coder.decode(deltas, priors), PointCoder().decode(means, priors))
    assert torch.equal(coder.encode(boxes, priors), PointCoder().encode(boxes, priors))


def test_the_loss_equals_a_loop():
    priors, deltas, boxes = inputs(1)
    coder = DistributionCoder(BINS)
    predictions = Predictions(priors, deltas.new_zeros(*deltas.shape[:2], 3), deltas, coder.decode(deltas, priors))
    found = DistributionFocalLoss()(predictions, boxes, coder)
    distances = coder.encode(boxes, priors)
    assert (distances < 0).any()
    assert (distances > BINS).any()
    for b, a in ((0, 0), (0, 7), (1, 3), (1, 20)):
        sides = zip(deltas[b, a].reshape(4, BINS + 1).tolist(), distances[b, a].tolist(), strict=True)
        expected = sum(loop.distribution_focal(logits, y) for logits, y in sides) / 4
        assert found[b, a].item() == pytest.approx(expected, rel=1e-5)


def test_the_term_has_the_scores_as_weights():
    priors, deltas, _ = inputs(2)
    _, predictions, targets = named_inputs(2, "points", canvas=32, clean=True)
    coder = DistributionCoder(BINS)
    predictions = predictions.replace(deltas=deltas.requires_grad_(), boxes=coder.decode(deltas, priors))
    owner = torch.arange(len(priors.boxes)).remainder(7).sub(2).clamp(min=-1).expand(2, -1)
    labels = Labels(owner, (owner >= 0).float())
    config = LossConfig(box=GIoULoss(weight=0), distribution=DistributionFocalLoss(weight=1))
    found = config(predictions, targets, Assignment(labels, labels), coder, lambda own: own)
    boxes = targets.boxes.gather(1, owner.clamp(min=0)[..., None].expand(-1, -1, 4))
    each = config.distribution(predictions, boxes, coder)
    weight = torch.where(owner >= 0, predictions.logits.amax(-1).sigmoid(), 0.0)
    torch.testing.assert_close(found.terms["distribution"], (each * weight).sum() / weight.sum().clamp(min=1))
    found.total.backward()
    assert torch.isfinite(deltas.grad).all()


def test_the_network_begins_with_equal_bins():
    network = FCOSConfig(backbone="mobilenet_v3_small", channels=32, bins=16, quality="none").build(3).eval()
    with torch.no_grad():
        out = network(torch.zeros(1, 3, 128, 128, dtype=torch.uint8), torch.tensor([[128, 128]]))
    assert out.deltas.shape == (1, len(out.priors.boxes), 4 * 17)
    sides = (out.boxes[0, :, 2:] - out.boxes[0, :, :2]) / out.priors.strides[:, None]
    torch.testing.assert_close(sides, torch.full_like(sides, 16.0), atol=3.0, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["loss.distribution.weight=0.25"], "this detector predicts none"),
        (["model.bins=16", "loss.box.name=l1"], "compares offsets: use loss.box.name=giou"),
        (["model.bins=16", "loss.bag.bag=50"], "loss.bag.name=free_anchor compares offsets"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load("bccd_fcos_atss", settings)
