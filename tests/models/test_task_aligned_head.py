"""TOOD's head: its parts against loops, its boxes, and its parameters."""

import pytest
import torch

from mgdet.config import load
from mgdet.errors import ConfigError
from mgdet.models import FCOSConfig, RetinaNetConfig
from mgdet.models.task_aligned_head import LAYERS, TaskAlignedHead, aligned_logits, moved
from tests.reference import task_aligned_head as loop

SIZES = torch.tensor([[128, 128]])
IMAGE = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ONE_ANCHOR = {"scales": 1, "ratios": (1.0,), "sizes": (64, 128, 256, 512, 1024)}
SMALL = {"backbone": "mobilenet_v3_small", "channels": 16, "head": "task_aligned"}


def detector(name: str, **options):
    torch.manual_seed(0)
    if name == "fcos":
        return FCOSConfig(**SMALL, **{"quality": "none", **options}).build(3).eval()
    return RetinaNetConfig(**SMALL, anchors=ONE_ANCHOR, **options).build(3).eval()


def test_the_score_is_the_geometric_mean_of_two_probabilities():
    a, b = torch.linspace(-12, 12, 9), torch.linspace(5, -9, 9)
    expected = [loop.aligned_score(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    torch.testing.assert_close(aligned_logits(a, b).sigmoid(), torch.tensor(expected))
    extreme = torch.tensor([-1e4, -200.0, 200.0, 1e4], requires_grad=True)
    found = aligned_logits(extreme, extreme)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("shape", [(4, 5), (1, 3), (1, 1)])
def test_sides_are_read_bilinearly_at_their_places(shape):
    g = torch.Generator().manual_seed(1)
    sides = torch.randn(2, 4, *shape, generator=g)
    offsets = torch.randn(2, 8, *shape, generator=g) * 2
    offsets[0, :, 0, 0] = torch.tensor([0.0, 0.0, 1.0, -1.0, 0.5, 0.0, -2.0, 9.0])
    found = moved(sides, offsets)
    for b, k, y, x in torch.cartesian_prod(*(torch.arange(n) for n in found.shape)).tolist():
        down, right = offsets[b, 2 * k, y, x].item(), offsets[b, 2 * k + 1, y, x].item()
        expected = loop.sampled(sides[b, k].tolist(), y + down, x + right)
        assert found[b, k, y, x].item() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(moved(sides, torch.zeros_like(offsets)), sides)


def test_a_task_weighs_the_layers_and_reduces_them():
    torch.manual_seed(2)
    task = TaskAlignedHead(8, 2, 4, "none", with_quality=False).classification_head
    for p in task.parameters():
        torch.nn.init.normal_(p)
    layers = torch.randn(1, LAYERS * 8, 2, 3)
    average = layers.mean(dim=(2, 3), keepdim=True)
    first, second = (
        (layer.weight.flatten(1).tolist(), layer.bias.tolist()) for layer in (task.attention[0], task.attention[2])
    )
    weights = loop.attention(first, second, average.flatten().tolist())
    expected = loop.reduced(
        layers.view(LAYERS, 8, 2, 3).tolist(),
        weights,
        task.reduction.weight.flatten(1).tolist(),
        task.reduction.bias.tolist(),
    )
    torch.testing.assert_close(task(layers, average)[0], torch.tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_boxes_before_training(name):
    """Nothing is moved yet: FCOS's box has a distance of about one stride to each side, RetinaNet's is its anchor."""
    network = detector(name)
    with torch.no_grad():
        out = network(IMAGE, SIZES)
    boxes, priors = out.boxes[0], out.priors
    centre = 0.5 * (priors.boxes[:, :2] + priors.boxes[:, 2:])
    reach = priors.strides[:, None] if name == "fcos" else 0.5 * (priors.boxes[:, 2:] - priors.boxes[:, :2])
    torch.testing.assert_close((boxes[:, 2:] - centre) / reach, torch.ones_like(centre), atol=0.6, rtol=0)
    torch.testing.assert_close((centre - boxes[:, :2]) / reach, torch.ones_like(centre), atol=0.6, rtol=0)
    assert out.logits.sigmoid().max() < 0.05


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_a_moved_side_is_that_of_the_neighbour(name):
    """With a shift of one location to the right every left side is the one that the next location predicts."""
    network = detector(name)
    shift = network.head.regression_head.alignment[-1]
    with torch.no_grad():
        torch.nn.init.zeros_(shift.weight)
        before = network(IMAGE, SIZES)
        shift.bias[1] = 1.0
        after = network(IMAGE, SIZES)
    count = before.priors.level_counts[0]
    side = round(count**0.5)
    one, two = (out.boxes[0, :count].view(side, side, 4) for out in (before, after))
    torch.testing.assert_close(two[:, :-1, 0], one[:, 1:, 0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(two[..., 1:], one[..., 1:], rtol=1e-4, atol=1e-3)
    assert (two[:, -1, 0] == 0).all()


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_everything_of_it_learns(name):
    network = detector(name, quality="iou")
    out = network(IMAGE, SIZES)
    (out.logits.sum() + out.boxes.sum() + out.quality.sum()).backward()
    assert all(p.grad is not None for p in network.head.parameters())
    assert out.quality.shape == out.logits.shape[:2]


def test_its_parameters_are_those_of_the_authors_code():
    """Counted layer by layer in `tood_head.py` with its configuration for 80 classes; no number is published."""
    tower = 6 * (256 * 256 * 9 + 2 * 256)
    task = (1536 * 32 + 32) + (32 * 6 + 6) + (1536 * 256 + 2 * 256)
    last = (256 * 80 * 9 + 80) + (256 * 4 * 9 + 4)
    alignment = (1536 * 64 + 64) + (64 * 9 + 1) + (1536 * 64 + 64) + (64 * 8 * 9 + 8)
    with torch.device("meta"):
        head = TaskAlignedHead(256, 80, 4, "gn", with_quality=False)
    assert sum(p.numel() for p in head.parameters()) == tower + 2 * task + last + alignment == 4_823_785


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        ("bccd_fcos_atss", ["model.bins=16"], "predicts distances, not distributions"),
        ("bccd_retinanet_atss", [], "predicts one box at a location, and there are 9 anchors"),
    ],
)
def test_what_does_not_go_together_is_refused(config, settings, message):
    with pytest.raises(ConfigError, match=message):
        load(config, ["model.head=task_aligned", *settings])
