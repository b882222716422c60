"""The published rows: each has a configuration that builds, is counted, and takes a step; `mgdet papers` lists them."""

import pytest
import torch

from mgdet.cli import main, papers
from mgdet.config import load
from mgdet.models.detector import Detector
from mgdet.structures import Batch, Targets
from mgdet.training.distributed import World
from mgdet.training.step import forward

CLASSES = 80
RESNET50 = 23_508_032 - 53_120
"""Parameters of ResNet-50 without its classifier (25,557,032 - 2,049,000) and without the affine part of its norms."""


def conv(inputs: int, outputs: int, side: int = 3) -> int:
    """Parameters of a convolution with bias."""
    return inputs * outputs * side * side + outputs


def pyramid(p6: int) -> int:
    """Parameters of a feature pyramid of 256 channels over ResNet-50, with P6 from a map of `p6` channels."""
    laterals = sum(conv(width, 256, 1) for width in (512, 1024, 2048))
    return laterals + 3 * conv(256, 256) + conv(p6, 256) + conv(256, 256)


def retinanet() -> int:
    """Lin et al., figure 3: two towers of four convolutions, 9 anchors."""
    return RESNET50 + pyramid(2048) + 8 * conv(256, 256) + conv(256, 9 * CLASSES) + conv(256, 9 * 4)


def fcos(branch: bool, bins: int, p6: int = 256) -> int:
    """Tian et al., figure 2: towers with group norm, a factor for each level."""
    towers = 8 * (conv(256, 256) + 2 * 256)
    return RESNET50 + pyramid(p6) + towers + conv(256, CLASSES) + conv(256, 4 * (bins + 1)) + branch * conv(256, 1) + 5


def built(name: str) -> Detector:
    """The network of a row, without memory."""
    with torch.device("meta"):
        return load(name).model.build(CLASSES)


def test_every_row_has_a_configuration_and_every_configuration_a_row():
    assert sorted(papers.ROWS) == papers.configured()


@pytest.mark.slow
@pytest.mark.parametrize("name", papers.ROWS)
def test_a_row_builds_and_has_the_parameters_of_its_paper(name):
    experiment = load(name)
    assert experiment.name == name
    if name.startswith("voc320"):
        assert experiment.model.anchors.per_location == 6
        assert (experiment.train.epochs, experiment.evaluation.protocol) == (250, "voc07")
        return
    found = sum(p.numel() for p in built(name).parameters())
    model = experiment.model
    p6 = 256 if model.p6_from == "p5" else 2048
    expected = fcos(model.quality != "none", model.bins, p6) if model.name == "fcos" else retinanet()
    assert found == expected + model.centre_prior * CLASSES * 4  # mean and width in two directions


def test_priors_of_an_image_of_800_x_1333_pixels():
    """Counted by hand on strides 8 to 128, rounded up: 22,300 locations, and 9 anchors each in RetinaNet."""
    locations = sum(-(-800 // s) * -(-1333 // s) for s in (8, 16, 32, 64, 128))
    assert locations == 100 * 167 + 50 * 84 + 25 * 42 + 13 * 21 + 7 * 11
    assert load("coco_retinanet_r50").model.layout.per_location * locations == 200_700
    assert load("coco_atss_r50").model.layout.per_location == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in papers.ROWS if name.startswith("coco")])
def test_a_row_takes_a_step(name):
    """Its assigner and losses on a tiny network, before and after the warm-up of its assigner."""
    tiny = ["model.backbone=mobilenet_v3_small", "model.norm=own", "model.channels=32", "model.trainable_layers=5"]
    experiment = load(name, tiny)
    torch.manual_seed(0)
    detector = experiment.model.build(3)
    detector.eval()
    sizes = torch.tensor([[64, 64]])
    boxes = torch.tensor([[[4.0, 4.0, 40.0, 44.0], [30.0, 20.0, 60.0, 62.0]]])
    targets = Targets(boxes, torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bool))
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    batch = Batch(images, sizes, sizes, targets, torch.tensor([0]), torch.tensor([0]))
    for epoch in (0.0, 11.0):
        out = forward(detector, detector, batch, experiment, World(0, 1, torch.device("cpu")), epoch)
        assert torch.isfinite(out.losses.total)
        assert out.losses.counts["cls"] > 0
    out.losses.total.backward()
    assert all(p.grad is not None for p in detector.head.parameters())


def test_the_list_and_a_row_are_printed(capsys):
    assert main.main(["papers"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in papers.ROWS)
    assert all(title in shown for title in papers.LEFT_OUT)
    assert main.main(["papers", "papers/coco_atss_r50.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "39.4 AP" in shown
    assert "mgdet train coco_atss_r50 cluster.workers=8" in shown
    assert "not run" in shown
    assert main.main(["papers", "coco_tood"]) == 2
    assert "no such row" in capsys.readouterr().err


def test_a_level_has_a_factor_of_its_own():
    experiment = load("coco_fcos_r50", ["model.backbone=mobilenet_v3_small", "model.norm=own", "model.channels=32"])
    detector = experiment.model.build(3).eval()
    images, sizes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]])
    before = detector(images, sizes)
    with torch.no_grad():
        detector.scales[1] = 2.0
        after = detector(images, sizes)
    levels = [d.split(before.priors.level_counts, dim=1) for d in (before.deltas, after.deltas)]
    for level, (one, two) in enumerate(zip(*levels, strict=True)):
        torch.testing.assert_close(two, one * (2.0 if level == 1 else 1.0))
    assert before.deltas.sum() > 0
