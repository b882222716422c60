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


def tood() -> int:
    """The authors' `tood_head.py` with group norm: six shared convolutions, two attentions, two alignments."""
    tower = 6 * (256 * 256 * 9 + 2 * 256)
    task = conv(1536, 32, 1) + conv(32, 6, 1) + 1536 * 256 + 2 * 256
    alignment = 2 * conv(1536, 64, 1) + conv(64, 1) + conv(64, 8)
    return RESNET50 + pyramid(256) + tower + 2 * task + conv(256, CLASSES) + conv(256, 4) + alignment + 5


VOC_CLASSES, VOC_LEVELS = 20, 4
RESNET18, VGG16 = 11_689_512 - 513_000, 14_714_688 + 2 * 4224
"""Parameters of the backbones with their norms and without classifiers."""


def normed(inputs: int, outputs: int, side: int = 3) -> int:
    """The official `BasicConv`: a convolution with bias and a batch norm."""
    return conv(inputs, outputs, side) + 2 * outputs


def mutual_guidance(backbone: str, neck: str) -> int:
    """The networks of the official code at a24bbe4 (`fssd.py`, `retinanet.py`) and 51dbb17 (`pafpn.py`), 320 pixels."""
    widths = (512, 512) if backbone == "vgg16" else (128, 256, 512)
    top_down = VOC_LEVELS * (normed(256, 256, 1) + normed(256, 256))
    bottom_up = (2 * VOC_LEVELS - 1) * normed(256, 256)
    if neck == "pafpn":
        found = 3 * normed(512, 256, 1) + VOC_LEVELS * normed(256, 256) + top_down + bottom_up
    else:
        fused = sum(normed(width, 256, 1) for width in widths) + normed(256 * len(widths), 256)
        found = fused + (VOC_LEVELS - 1) * normed(256, 256) + top_down * (neck == "fpn")
    head = VOC_LEVELS * (conv(256, 6 * VOC_CLASSES) + conv(256, 6 * 4))
    return (VGG16 if backbone == "vgg16" else RESNET18) + found + head


def built(name: str, classes: int = CLASSES) -> Detector:
    """The network of a row, without memory."""
    with torch.device("meta"):
        return load(name).model.build(classes)


def test_every_row_has_a_configuration_and_every_configuration_a_row():
    assert sorted(papers.ROWS) == papers.configured()


@pytest.mark.slow
@pytest.mark.parametrize("name", papers.ROWS)
def test_a_row_builds_and_has_the_parameters_of_its_paper(name):
    experiment = load(name)
    assert experiment.name == name
    if name.startswith("voc320"):
        _, backbone, neck, *_ = name.split("_")
        assert sum(p.numel() for p in built(name, VOC_CLASSES).parameters()) == mutual_guidance(backbone, neck)
        assert (experiment.train.epochs, experiment.evaluation.protocol) == (250, "voc07")
        return
    found = sum(p.numel() for p in built(name).parameters())
    model = experiment.model
    p6 = 256 if model.p6_from == "p5" else 2048
    if model.head == "task_aligned":
        assert found == tood()
        return
    expected = fcos(model.quality != "none", model.bins, p6) if model.name == "fcos" else retinanet()
    assert found == expected + model.centre_prior * CLASSES * 4  # mean and width in two directions


def test_priors_of_an_image_of_800_x_1333_pixels():
    """Counted by hand on strides 8 to 128, rounded up: 22,300 locations, and 9 anchors each in RetinaNet."""
    locations = sum(-(-800 // s) * -(-1333 // s) for s in (8, 16, 32, 64, 128))
    assert locations == 100 * 167 + 50 * 84 + 25 * 42 + 13 * 21 + 7 * 11
    assert load("coco_retinanet_r50").model.layout.per_location * locations == 200_700
    assert load("coco_atss_r50").model.layout.per_location == 1


@pytest.mark.slow
def test_priors_of_mutual_guidances_networks():
    """`prior_box.py` at a24bbe4: 6 anchors in the middle of each cell of 40, 20, 10 and 5, no longer than the image."""
    experiment = load("voc320_resnet18_fpn_mutual_guidance")
    network = experiment.model.build(VOC_CLASSES).eval()
    with torch.no_grad():
        out = network(torch.zeros(1, 3, 320, 320, dtype=torch.uint8), torch.tensor([[320, 320]]))
    assert out.priors.level_counts == tuple(6 * side * side for side in (40, 20, 10, 5))
    assert sum(out.priors.level_counts) == 12_750
    expected = set()
    for level, side in enumerate((40, 20, 10, 5)):
        for base in (24 * 2**level, 24 * 2**level * 2**0.5):
            for w, h in ((base, base), (base * 2**0.5, base / 2**0.5), (base / 2**0.5, base * 2**0.5)):
                expected.add((320 / side / 2, round(min(w, 320), 2), round(min(h, 320), 2)))
    first = torch.tensor([0, *out.priors.level_counts]).cumsum(0)[:-1]
    boxes = torch.cat([out.priors.boxes[start : start + 6] for start in first.tolist()])
    centre, size = 0.5 * (boxes[:, :2] + boxes[:, 2:]), boxes[:, 2:] - boxes[:, :2]
    torch.testing.assert_close(centre[:, 0], centre[:, 1])
    found = {
        (round(x, 2), round(w, 2), round(h, 2)) for x, (w, h) in zip(centre[:, 0].tolist(), size.tolist(), strict=True)
    }
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", papers.ROWS)
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
    assert main.main(["papers", "coco_other"]) == 2
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
