"""FCOS: its points, its start, its coder, and the quality branch of both detectors."""

import pytest
import torch

from mgdet.models import FCOSConfig, RetinaNetConfig
from mgdet.models.coder import PointCoder
from mgdet.structures import PriorLayout, Priors

SMALL = {"backbone": "resnet18", "norm": "gn", "channels": 64}


def test_before_training_each_point_predicts_about_eight_strides_around_it():
    network = FCOSConfig(**SMALL).build(3).eval()
    images = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    with torch.no_grad():
        out = network(images, torch.tensor([[128, 128]]))
    boxes, priors = out.boxes[0], out.priors
    sides = (boxes[:, 2:] - boxes[:, :2]) / priors.strides[:, None]
    torch.testing.assert_close(sides, torch.full_like(sides, 8.0), atol=1.5, rtol=0)
    assert priors.layout == PriorLayout(points=True, per_location=1)
    assert priors.level_counts == (256, 64, 16, 4, 1)
    assert priors.strides.unique().tolist() == [8.0, 16.0, 32.0, 64.0, 128.0]


NETWORKS = [
    *(FCOSConfig(**SMALL, quality=q) for q in ("none", "centerness", "iou")),
    *(RetinaNetConfig(**SMALL, quality=q) for q in ("none", "iou")),
]


@pytest.mark.slow
@pytest.mark.parametrize("config", NETWORKS, ids=lambda c: f"{c.name}-{c.quality}")
def test_every_parameter_takes_part(config):
    """DDP waits for ever for the gradient of a parameter that nobody uses."""
    network = config.build(3)
    out = network(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]] * 2))
    assert (out.quality is None) == (config.quality == "none")
    total = out.logits.sum() + out.boxes.sum()
    if out.quality is not None:
        assert out.quality.shape == out.logits.shape[:2]
        total = total + out.quality.sum()
    total.backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.slow
def test_the_branch_of_retinanet_changes_nothing_else():
    plain, branched = (RetinaNetConfig(**SMALL, quality=q).build(3).eval() for q in ("none", "iou"))
    missing, unexpected = branched.load_state_dict(plain.state_dict(), strict=False)
    assert set(missing) == {"quality.weight", "quality.bias"}
    assert unexpected == []
    images, sizes = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]] * 2)
    with torch.no_grad():
        a, b = plain(images, sizes), branched(images, sizes)
    torch.testing.assert_close(a.logits, b.logits)
    torch.testing.assert_close(a.boxes, b.boxes)


@pytest.mark.parametrize("norm", ["bn", "gn", "frozen_bn", "none"])
def test_every_norm_builds(norm):
    network = FCOSConfig(backbone="resnet18", norm="bn", fpn_norm="gn", head_norm=norm, channels=64).build(3).eval()
    out = network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]]))
    assert out.logits.shape == (1, 64 + 16 + 4 + 1 + 1, 3)


def test_the_coder_of_points_writes_distances_in_strides():
    priors = Priors(torch.tensor([[0.0, 0, 8, 8], [16.0, 0, 32, 16]]), torch.tensor([8.0, 16.0]), (1, 1))
    boxes = torch.tensor([[[-4.0, 0, 20, 12], [8.0, 4, 40, 24]]])
    deltas = PointCoder().encode(boxes, priors)
    torch.testing.assert_close(deltas, torch.tensor([[[1.0, 0.5, 2, 1], [1.0, 0.25, 1, 1]]]))
    torch.testing.assert_close(PointCoder().decode(deltas, priors), boxes)
    assert PointCoder().decode(deltas.half(), priors).dtype == torch.float32
