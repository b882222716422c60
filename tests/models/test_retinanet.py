"""RetinaNet's variants build, and frozen stages stay as they are."""

import pytest
import torch

from mgdet.models.retinanet import RetinaNetConfig


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("resnet34", "resnet50", "resnet101"))],
)
def test_every_backbone_and_norm_builds(backbone):
    for norm in ("bn", "gn", "frozen_bn"):
        network = RetinaNetConfig(backbone=backbone, norm=norm, fpn_norm="gn", head_norm="gn", channels=64).build(3)
        out = network.eval()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]]))
        assert out.logits.shape[2] == 3
        assert out.logits.shape[1] == out.boxes.shape[1] == sum(out.priors.level_counts)


def test_frozen_stages_do_not_train():
    network = RetinaNetConfig(backbone="resnet18", trainable_layers=3).build(3)
    frozen = {n.split(".")[2] for n, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
