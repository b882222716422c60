"""The pyramids of Mutual Guidance's networks, a head for each level, and what goes together."""

import pytest
import torch
from torch import nn

from mgdet.config import load
from mgdet.errors import ConfigError
from mgdet.models import RetinaNetConfig
from mgdet.models.necks import FPN, FSSD, PAFPN
from mgdet.models.necks.fssd import TopDown
from mgdet.models.necks.pafpn import BottomUp

SIZES = torch.tensor([[128, 128]])
IMAGE = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ANCHORS = {"sizes": (24, 48, 96), "scales": 2}
NECKS = {
    "fssd": FSSD(levels=3, maps=2),
    "fssd_fpn": FSSD(name="fssd_fpn", levels=3),
    "pafpn": PAFPN(levels=3),
}


def detector(neck, **options):
    torch.manual_seed(0)
    config = RetinaNetConfig(
        backbone="mobilenet_v3_small", channels=8, neck=neck, head="per_level", anchors=ANCHORS, **options
    )
    return config.build(3).eval()


@pytest.mark.parametrize("name", NECKS)
def test_levels_halve_from_stride_8_on_and_everything_learns(name):
    network = detector(NECKS[name], fpn_norm="bn", quality="iou")
    maps = list(network.backbone(torch.zeros(1, 3, 128, 128)).values())
    assert [tuple(m.shape) for m in maps] == [(1, 8, s, s) for s in (16, 8, 4)]
    out = network(IMAGE, SIZES)
    assert out.priors.level_counts == tuple(6 * s * s for s in (16, 8, 4))
    (out.logits.sum() + out.deltas.sum() + out.quality.sum()).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert bool(frozen) == (name != "fssd_fpn")  # what makes the backbone's last map only
    assert all(name.startswith("backbone.body.") for name in frozen)
    assert {m.momentum for m in network.backbone.fpn.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}


def identity(block):
    """A convolution that passes every channel on."""
    convolution = block[0]
    nn.init.dirac_(convolution.weight)
    nn.init.zeros_(convolution.bias)


@pytest.mark.parametrize("make", [TopDown, BottomUp])
def test_passes_add_neighbouring_levels(make):
    """With convolutions that change nothing: sums of what is coarser, and then of what is finer."""
    network = make(2, 3, "none")
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            identity(module)
    levels = [torch.full((1, 2, s, s), float(v)) for s, v in ((8, 1), (4, 10), (2, 100))]
    with torch.no_grad():
        found = [level.unique().tolist() for level in network(levels)]
    assert found == ([[111], [110], [100]] if make is TopDown else [[111], [221], [321]])


def test_each_level_has_a_head_of_its_own():
    network = detector(NECKS["fssd_fpn"])
    with torch.no_grad():
        before = network(IMAGE, SIZES)
        network.class_layers[1].bias += 1.0
        after = network(IMAGE, SIZES)
    counts = before.priors.level_counts
    moved = (after.logits - before.logits).split(counts, dim=1)
    assert [bool((m != 0).any()) for m in moved] == [False, True, False]
    assert before.logits.sigmoid().mean() == pytest.approx(0.01, abs=0.005)


def test_a_name_stands_for_a_neck():
    assert load("bccd_retinanet_atss").model.neck == FPN()
    experiment = load("bccd_retinanet_atss", ["model.neck=fssd", "model.anchors.sizes=[24,48,96,192]"])
    assert experiment.model.neck == FSSD(levels=4, maps=3)
    assert load("bccd_fcos_atss", ["model.neck={name: pafpn, levels: 3}"]).model.neck.strides == (8, 16, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.neck=fssd"], r"model\.anchors\.sizes has 5 values, .* model\.neck=fssd 4 levels"),
        (["model.neck=fpn2"], "allowed are fpn, fssd, fssd_fpn, pafpn"),
        (["model.neck={name: pafpn, maps: 3}"], r"model\.neck\.maps = 3"),
        (["model.anchors.sizes=[]"], r"model\.anchors\.sizes"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load("bccd_retinanet_atss", settings)
