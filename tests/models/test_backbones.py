"""Every family of backbones: its maps, its stages, its norms, its ImageNet weights, and what it refuses."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.ops.misc import FrozenBatchNorm2d

from mgdet.config import load, validate
from mgdet.config_base import tags
from mgdet.errors import CheckpointError, ConfigError
from mgdet.models import FCOSConfig, RetinaNetConfig, initialise
from mgdet.models.backbones import BackboneConfig, ConvNeXt, MobileNetV3, ResNet, Swin
from mgdet.models.backbones.base import Backbone
from mgdet.models.pyramid import Pyramid

CHANNELS = {
    "resnet18": (128, 256, 512),
    "resnext50_32x4d": (512, 1024, 2048),
    "vgg11_bn": (512, 512, 512),
    "mobilenet_v3_small": (24, 48, 576),
    "regnet_x_400mf": (64, 160, 400),
    "convnext_tiny": (192, 384, 768),
    "swin_t": (192, 384, 768),
}
"""The smallest of each family."""
MEMBERS = BackboneConfig.__origin__.__args__
NAMES = [name for member in MEMBERS for name in tags(member) if name != "timm"]


HEAVY = ("resnext50_32x4d", "convnext_tiny", "swin_t")


def exhaustive_if_heavy(names):
    return [pytest.param(n, marks=pytest.mark.exhaustive) if n in HEAVY else n for n in names]


def shapes_of(name):
    """torchvision's state dict without its memory; RegNet computes its widths with tensors, and is small."""
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return get_model(name, weights=None).state_dict()


def backbone(name: str) -> Backbone:
    return TypeAdapter(BackboneConfig).validate_python({"name": name})


def one_step(network):
    """Gradients of everything that trains, by name."""
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = network(images, torch.tensor([[64, 64]] * 2))
    total = out.logits.square().sum() + out.deltas.square().sum()
    (total if out.quality is None else total + out.quality.square().sum()).backward()
    return {n: p.grad for n, p in network.named_parameters()}


# ResNeXt has ResNet's stages; Swin and ConvNeXt are large.
LATER = {"resnext50_32x4d": pytest.mark.exhaustive, "convnext_tiny": pytest.mark.slow, "swin_t": pytest.mark.slow}


@pytest.fixture(scope="module", params=[pytest.param(n, marks=LATER.get(n, ())) for n in CHANNELS])
def built(request):
    """A whole FCOS and a RetinaNet of which two stages train, both with the gradients of one step."""
    torch.manual_seed(0)
    fcos = FCOSConfig(backbone=request.param, channels=16).build(2)
    retinanet = RetinaNetConfig(backbone=request.param, channels=16, trainable_layers=2).build(2)
    return request.param, fcos, retinanet, one_step(fcos), one_step(retinanet)


# --- maps and gradients


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (75, 101)], ids=["multiples of 32", "odd"])
def test_maps_have_strides_8_16_32(built, size):
    name, fcos, *_ = built
    maps = fcos.backbone.body.eval()(torch.rand(1, 3, *size))
    assert tuple(m.shape[1] for m in maps) == CHANNELS[name]
    for side, found in zip(size, zip(*(m.shape[2:] for m in maps), strict=True), strict=True):
        for stride, cells in zip((8, 16, 32), found, strict=True):
            assert cells in (side // stride, -(-side // stride))
    levels = list(fcos.backbone.eval()(torch.rand(1, 3, *size)).values())
    assert [m.shape[1] for m in levels] == [16] * 5


@pytest.mark.slow
def test_every_parameter_of_a_detector_takes_part(built):
    """DDP waits for ever for the gradient of a parameter that nobody uses."""
    _, _, _, gradients, _ = built
    assert [n for n, g in gradients.items() if g is None or not g.isfinite().all()] == []


@pytest.mark.slow
def test_frozen_stages_get_no_gradient(built):
    """The first three of five; what is in no stage, such as the norms of the maps, trains."""
    name, _, retinanet, _, gradients = built
    stages = backbone(name).stages(retinanet.backbone.body)
    assert len(stages) == 5
    in_stage = [tuple(f"backbone.body.{module}." for module in stage) for stage in stages]
    for stage in in_stage:
        assert any(n.startswith(stage) for n in gradients)
    frozen = {n for n in gradients if n.startswith(sum(in_stage[:3], ()))}
    assert {n for n, g in gradients.items() if g is None} == frozen
    assert all(g.isfinite().all() for n, g in gradients.items() if n not in frozen)
    assert {n for n in gradients if n.startswith("backbone.body.")} == {
        n for n in gradients if n.startswith((*sum(in_stage, ()), "backbone.body.output_norms."))
    }


@torch.no_grad()
def test_state_dict_round_trip(built):
    _, fcos, retinanet, *_ = built
    here, there = fcos.backbone.body.eval(), retinanet.backbone.body.eval()
    there.load_state_dict(here.state_dict())
    x = torch.rand(1, 3, 64, 64)
    for a, b in zip(here(x), there(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("trainable", [0, 1, 4])
def test_stages_are_counted_from_the_last(trainable):
    body = ResNet(name="resnet18")(trainable_layers=trainable)
    trains = {n.split(".")[0] for n, p in body.named_parameters() if p.requires_grad}
    assert trains == set(["layer4", "layer3", "layer2", "layer1"][:trainable])


# --- the network is torchvision's

HEADS = {  # torchvision's classifier, from the last map
    "resnext50_32x4d": lambda net, x: net.fc(net.avgpool(x).flatten(1)),
    "mobilenet_v3_small": lambda net, x: net.classifier(net.avgpool(x).flatten(1)),
    "regnet_x_400mf": lambda net, x: net.fc(net.avgpool(x).flatten(1)),
    "convnext_tiny": lambda net, x: net.classifier(net.avgpool(x)),
    "swin_t": lambda net, x: net.head(net.avgpool(net.permute(net.norm(x))).flatten(1)),
}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", exhaustive_if_heavy(HEADS))
def test_the_last_map_is_what_torchvision_classifies(name, built_by_torchvision):
    theirs = built_by_torchvision(name)
    ours = backbone(name)().eval()
    kept = {k: v for k, v in theirs.state_dict().items() if k.split(".")[0] not in backbone(name).unused}
    missing, unexpected = ours.load_state_dict(kept, strict=False)
    assert unexpected == []
    assert all(k.startswith("output_norms.") for k in missing)
    ours.output_norms = nn.ModuleList()  # ours alone
    x = torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(HEADS[name](theirs, ours(x)[-1]), theirs(x))


@pytest.fixture
def built_by_torchvision():
    def build(name):
        torch.manual_seed(1)
        network = get_model(name, weights=None).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # statistics that matter
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
        return network

    return build


# --- ImageNet weights


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Downloads bring torchvision's keys and shapes with random values, the classifier's with one number each."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    asked = []

    def of(name):
        shapes = shapes_of(name)
        state = {
            k: torch.zeros(1) if k.split(".")[0] in backbone(name).unused else torch.randn(v.shape).to(v.dtype)
            for k, v in shapes.items()
        }

        def download(url, dst, *args, **kwargs):
            asked.append(url)
            torch.save(state, dst)

        monkeypatch.setattr(torch.hub, "download_url_to_file", download)
        return state, asked

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", exhaustive_if_heavy(n for n in CHANNELS if n != "resnet18"))
def test_imagenet_weights_fill_the_backbone(name, serve):
    state, asked = serve(name)
    network = FCOSConfig(backbone=name, channels=16, weights="imagenet").build(2)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    (note,) = initialise(network, network.config)
    newest = get_model_weights(name).DEFAULT
    assert str(newest) in note
    assert asked == [newest.url]
    kept = {f"backbone.body.{k}": v for k, v in state.items() if k.split(".")[0] not in backbone(name).unused}
    assert len(kept) < len(state)
    for key, value in network.state_dict().items():
        assert torch.equal(value, kept.get(key, before[key])), key
    assert kept.keys() <= before.keys()


@pytest.mark.slow
def test_older_imagenet_weights(serve):
    _, asked = serve("regnet_x_400mf")
    network = FCOSConfig(backbone="regnet_x_400mf", channels=16, weights="imagenet_v1").build(2)
    initialise(network, network.config)
    assert asked == [get_model_weights("regnet_x_400mf")["IMAGENET1K_V1"].url]


def test_imagenet_weights_of_another_norm_are_refused(serve):
    serve("mobilenet_v3_small")
    network = FCOSConfig(backbone="mobilenet_v3_small", channels=16, norm="gn", weights="imagenet").build(2)
    with pytest.raises(CheckpointError, match=r"does not fit.*running_mean"):
        initialise(network, network.config)


def test_coco_weights_are_of_a_resnet50():
    config = FCOSConfig(backbone="swin_t", channels=256, weights="coco_v1")
    with pytest.raises(ConfigError, match=r"set model\.backbone=resnet50 model\.norm=frozen_bn"):
        initialise(FCOSConfig(backbone="mobilenet_v3_small", channels=16).build(2), config)


# --- norms


@pytest.mark.parametrize("name", ["vgg11_bn", "mobilenet_v3_small", "regnet_x_400mf"])
@pytest.mark.parametrize(("norm", "layer"), [("gn", nn.GroupNorm), ("frozen_bn", FrozenBatchNorm2d)])
def test_batch_norms_are_exchanged(name, norm, layer):
    own = {n: m for n, m in backbone(name)().named_modules() if isinstance(m, nn.BatchNorm2d)}
    body = backbone(name)(norm)
    assert {n for n, m in body.named_modules() if isinstance(m, layer)} == own.keys()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())
    if norm == "frozen_bn":  # of weights that were trained with another epsilon it would be another function
        assert {n: m.eps for n, m in body.named_modules() if isinstance(m, layer)} == {n: m.eps for n, m in own.items()}


@pytest.mark.parametrize("name", CHANNELS)
def test_the_own_norm_is_written_into_the_configuration(name):
    expected = "ln" if name in ("convnext_tiny", "swin_t") else "bn"
    assert FCOSConfig(backbone=name).norm == RetinaNetConfig(backbone=name, norm="own").norm == expected
    assert FCOSConfig().norm == "bn"


@pytest.mark.parametrize(
    ("name", "norm", "said"),
    [
        *(
            (n, m, r"LayerNorm, which.*; set model\.norm=ln$")
            for n in ("convnext_tiny", "swin_t")
            for m in ("bn", "gn")
        ),
        ("swin_t", "frozen_bn", r"set model\.norm=ln$"),
        *((n, "none", "set model.norm=bn or model.norm=frozen_bn or model.norm=gn$") for n in ("resnet18", "vgg16_bn")),
        ("mobilenet_v3_small", "ln", "only a norm of the channels of a map can take the place"),
    ],
)
def test_other_norms_are_refused_with_the_reason(name, norm, said):
    with pytest.raises(ConfigError, match=said):
        backbone(name)(norm)
    with pytest.raises(ValidationError, match=f"{norm} does not go with the backbone {name}"):
        FCOSConfig(backbone=name, norm=norm)


# --- what a pyramid refuses


class Strided(nn.Module):
    """A map of one number for each of these strides."""

    def __init__(self, *strides: int) -> None:
        super().__init__()
        self.strides = strides

    def forward(self, x):
        return [x[:, :, ::s, ::s] for s in self.strides]


def test_a_pyramid_takes_strides_8_16_32_only():
    assert Pyramid(Strided(8, 16, 32), "mine", channels=8, p6_from="c5").fpn.extra_blocks.p6.in_channels == 3
    with pytest.raises(ConfigError, match=r"^mine: gives maps at strides 4 x 4, 8 x 8, 16 x 16; .* needs 8, 16, 32$"):
        Pyramid(Strided(4, 8, 16), "mine", channels=8, p6_from="p5")
    with pytest.raises(ConfigError, match=r"strides 8 x 8, 16 x 16;"):
        Pyramid(Strided(8, 16), "mine", channels=8, p6_from="p5")
    with pytest.raises(ConfigError, match="refuses an image of 64 x 64 pixels"):
        Pyramid(nn.Flatten(start_dim=9), "mine", channels=8, p6_from="p5")


def test_finding_out_the_maps_changes_nothing():
    torch.manual_seed(0)
    body = MobileNetV3(name="mobilenet_v3_small")()
    before, numbers = {k: v.clone() for k, v in body.state_dict().items()}, torch.get_rng_state()
    body.dropout = nn.Dropout()
    Pyramid(body, "mine", channels=8, p6_from="p5")
    assert body.training
    assert all(torch.equal(v, before[k]) for k, v in body.state_dict().items())
    torch.manual_seed(0)
    MobileNetV3(name="mobilenet_v3_small")()
    assert torch.equal(numbers, torch.get_rng_state())


# --- in the configuration

MINIMAL = "name: x\ndata: {uri: d}\n"


def loaded(tmp_path, text, overrides=()):
    path = tmp_path / "c.yaml"
    path.write_text(MINIMAL + text)
    return load(path, overrides)


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("", [], "resnet50"),
        ("model: {backbone: resnet18}", [], "resnet18"),
        ("model: {backbone: {name: resnet18}}", [], "resnet18"),
        ("model: {backbone: resnet18}", ["model.backbone=swin_t"], "swin_t"),
        ("model: {backbone: resnet18}", ["model.backbone.name=convnext_tiny"], "convnext_tiny"),
        ("model: {backbone: {}}", [], "resnet50"),
        ("model: {backbone: vgg16_bn}", ["model.name=fcos"], "vgg16_bn"),
    ],
)
def test_a_name_alone_stands_for_the_backbone(tmp_path, text, overrides, expected):
    experiment = loaded(tmp_path, text, overrides)
    assert experiment.model.backbone == backbone(expected)
    assert experiment.identity()["model.backbone"] == expected
    assert validate(experiment.shown(), "again") == experiment


def test_keys_below_a_name(tmp_path):
    """As an override, and on top of a base."""
    expected = {"name": "timm", "model": "resnet18d", "options": {"drop_path_rate": 0.1}}
    settings = [
        "model.backbone.name=timm",
        "model.backbone.model=resnet18d",
        "model.backbone.options.drop_path_rate=0.1",
    ]
    experiment = loaded(tmp_path, "model: {backbone: resnet18}", settings)
    assert experiment.shown()["model"]["backbone"] == expected
    (tmp_path / "child.yaml").write_text(
        "base: c.yaml\nmodel: {backbone: {name: timm, model: resnet18d, options: {drop_path_rate: 0.1}}}"
    )
    assert load(tmp_path / "child.yaml").model == experiment.model
    assert load(tmp_path / "child.yaml", ["model.backbone.name=resnet34"]).model.backbone == ResNet(name="resnet34")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.backbone=resnet19"], "model.backbone.name = 'resnet19': allowed are resnet18, resnet34, "),
        (["model.backbone.name=swin"], "swin_v2_b, timm"),
        (["model.backbone.name=timm"], "model.backbone.model is missing"),
        (["model.backbone.nam=swin_t"], "unknown key model.backbone.nam. Did you mean model.backbone.name?"),
        (["model.backbone=swin_t", "model.norm=gn"], "model.norm = 'gn': gn does not go with the backbone swin_t"),
        (["model.backbone=3"], "model.backbone = 3"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, overrides, said):
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, "model: {backbone: resnet18}", overrides)
    assert said in str(error.value)


# --- all of them


@pytest.mark.exhaustive
@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_every_name_builds_and_has_imagenet_weights(name):
    network = FCOSConfig(backbone=name, channels=16, trainable_layers=1).build(2).eval()
    out = network(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), torch.tensor([[64, 96]]))
    assert out.logits.shape[1] == 96 + 24 + 6 + 2 + 1
    body = {
        n.removeprefix("backbone.body."): p for n, p in network.named_parameters() if n.startswith("backbone.body.")
    }
    assert any(p.requires_grad for p in body.values())
    theirs = shapes_of(name)
    kept = {k: v.shape for k, v in theirs.items() if k.split(".")[0] not in backbone(name).unused}
    ours = {k: v.shape for k, v in network.backbone.body.state_dict().items() if not k.startswith("output_norms.")}
    assert kept == ours
    weights = get_model_weights(name)
    assert {"DEFAULT", "IMAGENET1K_V1"} <= set(weights.__members__)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [ConvNeXt, Swin])
def test_a_layer_norm_of_each_map_begins_as_nothing_but_a_norm(kind):
    maps = kind()(trainable_layers=0).train()(torch.rand(2, 3, 64, 64))
    for m in maps:
        torch.testing.assert_close(m.mean(1), torch.zeros_like(m.mean(1)), atol=1e-4, rtol=0)
        assert m.requires_grad, "its norm trains even where no stage does"
