"""Networks of timm as backbones. Nothing is downloaded."""

import copy

import pytest
import torch
from torch import nn

from mgdet.errors import CheckpointError, ConfigError
from mgdet.models import FCOSConfig, initialise
from mgdet.models.backbones import Timm

timm = pytest.importorskip("timm")


def detector(model, **changes):
    return FCOSConfig(backbone={"name": "timm", "model": model}, channels=16, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18d", "mobilenetv3_small_050", "convnext_atto"])
def test_a_network_of_timm_trains(model):
    network = detector(model).build(2)
    assert network.config.norm == "own"
    out = network(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]] * 2))
    (out.logits.square().sum() + out.deltas.square().sum() + out.quality.square().sum()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    again = copy.deepcopy(network)
    again.load_state_dict(network.state_dict())


@pytest.mark.slow
def test_stages_of_timm_freeze_from_the_first():
    body = Timm(model="resnet18d")(trainable_layers=2)
    trains = {n.split(".")[1] for n, p in body.named_parameters() if p.requires_grad}
    assert trains == {"layer3", "layer4"}


@pytest.mark.slow
def test_batch_norms_of_timm_are_frozen():
    body = Timm(model="mobilenetv3_small_050")("frozen_bn")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())
    with pytest.raises(ConfigError, match="no batch norms to freeze"):
        Timm(model="convnext_atto")("frozen_bn")
    with pytest.raises(ConfigError, match=r"gn does not go with the backbone timm resnet18d.*set model\.norm=own"):
        Timm(model="resnet18d")("gn")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("resnet18x", "unknown to timm .*near are .*resnet18"),
        ("vit_tiny_patch16_224", "has maps at strides 16, 16, .*needs 8, 16, 32"),
        ("swin_tiny_patch4_window7_224", "refuses an image of 64 x 64 pixels"),
    ],
)
def test_networks_without_these_maps_are_refused(model, said):
    with pytest.raises(ConfigError, match=said):
        detector(model).build(2)


@pytest.mark.slow
def test_pretrained_weights(monkeypatch, tmp_path):
    """The hub's client brings a file with the keys of the whole classifier."""
    source = timm.create_model("resnet18d")
    torch.save(source.state_dict(), tmp_path / "weights.bin")
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *a, **k: str(tmp_path / "weights.bin"))
    monkeypatch.setattr("timm.models._hub._has_safetensors", False)
    network = detector("resnet18d", weights="imagenet").build(2)
    (note,) = initialise(network, network.config)
    assert "timm's weights resnet18d" in note
    assert torch.equal(network.backbone.body.network.conv1[0].weight, source.conv1[0].weight)


@pytest.mark.slow
def test_a_failed_download_says_what_to_do(monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", no_network)
    network = detector("resnet18d", weights="imagenet").build(2)
    with pytest.raises(CheckpointError, match=r"no route to host.*HF_HOME.*model\.weights=none"):
        initialise(network, network.config)
    with pytest.raises(ConfigError, match=r"resnet50\.tv_in1k"):
        initialise(network, detector("resnet18d", weights="imagenet_v1"))
