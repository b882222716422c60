"""Initial weights: what is loaded, what is not, and what is said when it cannot be. Nothing is downloaded."""

from urllib.error import URLError

import pytest
import torch
from torch.nn import GroupNorm
from torchvision.models import get_model_weights, resnet18
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2

from mgdet.errors import CheckpointError, ConfigError
from mgdet.models import FCOSConfig, RetinaNetConfig, initialise
from mgdet.training.config import EMAConfig
from mgdet.training.optim import EMA

HEAD = "head.classification_head.cls_logits."
V1 = {"weights": "coco_v1", "norm": "frozen_bn"}
V2 = {"weights": "coco_v2", "p6_from": "c5", "head_norm": "gn"}
SMALL = {"backbone": "resnet18", "channels": 16, "norm": "gn", "anchors": {"scales": 1}}
TINY = {**SMALL, "backbone": "mobilenet_v3_small"}  # where any network will do


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty cache, and no network behind it."""

    def no_network(url, *args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    return tmp_path / "torch" / "hub" / "checkpoints"


def serve(monkeypatch, state):
    """Downloads bring this state dict."""

    def download(url, dst, *args, **kwargs):
        torch.save(state, dst)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)


def copy_of(network):
    return {k: v.clone() for k, v in network.state_dict().items()}


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    assert [k for k in got if not torch.equal(got[k], expected[k])] == []


def small(num_classes=3, seed=0, **changes):
    torch.manual_seed(seed)
    return RetinaNetConfig(**{**SMALL, **changes}).build(num_classes)


def tiny(num_classes=3, seed=0, **changes):
    return small(num_classes, seed, **{**TINY, **changes})


# --- nothing to load


def test_none_changes_nothing_and_says_so():
    network = tiny()
    before = copy_of(network)
    assert initialise(network, network.config) == ["weights: random initialisation"]
    assert_equal(copy_of(network), before)


# --- ImageNet


@pytest.mark.slow
def test_imagenet_fills_the_backbone_and_nothing_else(monkeypatch):
    torch.manual_seed(1)
    source = resnet18(weights=None).state_dict()
    serve(monkeypatch, source)
    network = small(weights="imagenet", norm="bn")
    before = copy_of(network)
    (note,) = initialise(network, network.config)
    assert "ImageNet" in note
    assert "ResNet18_Weights" in note
    after = copy_of(network)
    body = {k.removeprefix("backbone.body."): v for k, v in after.items() if k.startswith("backbone.body.")}
    assert_equal(body, {k: v for k, v in source.items() if not k.startswith("fc.")})
    rest = {k: v for k, v in after.items() if not k.startswith("backbone.body.")}
    assert_equal(rest, {k: before[k] for k in rest})
    assert not torch.equal(before["backbone.body.conv1.weight"], after["backbone.body.conv1.weight"])


@pytest.mark.slow
def test_imagenet_into_frozen_norms(monkeypatch):
    source = resnet18(weights=None)
    source.bn1.running_mean.fill_(0.25)
    serve(monkeypatch, source.state_dict())
    network = small(weights="imagenet", norm="frozen_bn")
    initialise(network, network.config)
    assert (network.backbone.body.bn1.running_mean == 0.25).all()


@pytest.mark.slow
def test_imagenet_does_not_fit_group_norm(monkeypatch):
    """GroupNorm has no running statistics: the weights would mean something else."""
    serve(monkeypatch, resnet18(weights=None).state_dict())
    network = small(weights="imagenet")
    before = copy_of(network)
    with pytest.raises(CheckpointError, match=r"does not fit.*running_mean") as error:
        initialise(network, network.config)
    assert "model.*" in str(error.value)
    assert_equal(copy_of(network), before)


# --- COCO


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "changes", "eps"),
    [
        pytest.param(retinanet_resnet50_fpn, V1, 0.0, id="coco_v1", marks=pytest.mark.slow),
        pytest.param(retinanet_resnet50_fpn_v2, V2, 1e-5, id="coco_v2"),
    ],
)
def test_coco_with_other_classes(monkeypatch, build, changes, eps):
    torch.manual_seed(1)
    source = build(weights=None, weights_backbone=None, num_classes=91).state_dict()
    serve(monkeypatch, source)
    config = RetinaNetConfig(**changes)
    torch.manual_seed(2)
    network = config.build(7)
    torch.nn.init.constant_(network.head.classification_head.cls_logits.bias, 3.0)
    notes = initialise(network, config)
    assert "COCO" in notes[0]
    assert notes[1] == "weights: class head re-initialised (91 classes there, 7 here)"
    after = copy_of(network)
    loaded = {k: v for k, v in after.items() if not k.startswith(HEAD)}
    assert_equal(loaded, {k: v for k, v in source.items() if k in loaded})
    assert {k for k in source if k not in after and not k.endswith("num_batches_tracked")} == set()
    torch.testing.assert_close(after[HEAD + "bias"].sigmoid(), torch.full((63,), 0.01))
    assert float(after[HEAD + "weight"].std()) == pytest.approx(0.01, rel=0.05)
    assert network.backbone.body.bn1.eps == eps
    assert isinstance(network.head.classification_head.conv[0][1], GroupNorm) == (changes is V2)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"weights": "coco_v1"}, "model.norm=frozen_bn"),
        ({**V1, "backbone": "resnet18", "channels": 64}, "model.backbone=resnet50 model.channels=256"),
        ({**V2, "head_norm": "none"}, "model.head_norm=gn"),
        ({"weights": "coco_v2"}, "model.head_norm=gn model.p6_from=c5"),
        ({**V1, "fpn_norm": "gn"}, "model.fpn_norm=none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_architecture_is_told_the_overrides_that_mend_it(changes, fix):
    network = tiny()  # the check comes before anything is loaded
    with pytest.raises(ConfigError) as error:
        initialise(network, RetinaNetConfig(**changes))
    assert str(error.value).endswith(f"; set {fix}")
    assert f"model.weights={changes['weights']}" in str(error.value)


# --- no network


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"weights": "imagenet"}, "resnet18"),
        (V1, "retinanet_resnet50_fpn"),
        (V2, "retinanet_resnet50_fpn_v2"),
    ],
    ids=["imagenet", "coco_v1", "coco_v2"],
)
def test_a_failed_download_says_what_to_do(changes, name, hub):
    config = RetinaNetConfig(**({**SMALL, **changes} if name == "resnet18" else changes))
    with pytest.raises(CheckpointError) as error:
        initialise(tiny(), config)
    said = str(error.value)
    for part in (get_model_weights(name).DEFAULT.url, "no route to host", str(hub), "model.weights=none", "checkpoint"):
        assert part in said


def test_a_file_put_by_hand_is_taken(hub):
    """The remedy that the message names."""
    torch.manual_seed(1)
    source = resnet18(weights=None).state_dict()
    hub.mkdir(parents=True)
    torch.save(source, hub / get_model_weights("resnet18").DEFAULT.url.rsplit("/", 1)[1])
    network = small(weights="imagenet", norm="bn")
    initialise(network, network.config)
    assert torch.equal(network.backbone.body.conv1.weight, source["conv1.weight"])


# --- checkpoints


def load_into_new(path, num_classes=3, **changes):
    network = tiny(num_classes, seed=9, weights=str(path), **changes)
    return network, initialise(network, network.config)


@pytest.mark.slow
def test_the_average_of_our_checkpoint_is_preferred(tmp_path):
    """In the form in which the training loop saves it."""
    raw, averaged = tiny(seed=1), tiny(seed=2)
    ema = EMA(averaged, EMAConfig(enabled=True)).state_dict()
    torch.save({"model": raw.state_dict(), "ema": ema, "optimizer": {"state": {}}, "config": "x"}, tmp_path / "c.pt")
    network, notes = load_into_new(tmp_path / "c.pt")
    assert_equal(copy_of(network), copy_of(averaged))
    assert notes == [f"weights: checkpoint {tmp_path / 'c.pt'}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [lambda s: {"model": s, "ema": None}, lambda s: {"model": s}, lambda s: {"ema": s}, lambda s: s],
    ids=["trained without average", "model alone", "average as a plain state dict", "state dict"],
)
def test_other_forms_of_a_checkpoint(tmp_path, wrap):
    source = tiny(seed=1)
    torch.save(wrap(source.state_dict()), tmp_path / "c.pt")
    network, _ = load_into_new(tmp_path / "c.pt")
    assert_equal(copy_of(network), copy_of(source))


def test_a_checkpoint_with_other_classes(tmp_path):
    source = tiny(num_classes=5, seed=1)
    torch.save({"model": source.state_dict(), "ema": None}, tmp_path / "c.pt")
    network, notes = load_into_new(tmp_path / "c.pt")
    assert notes[1] == "weights: class head re-initialised (5 classes there, 3 here)"
    got, expected = copy_of(network), copy_of(source)
    loaded = [k for k in got if not k.startswith(HEAD)]
    assert_equal({k: got[k] for k in loaded}, {k: expected[k] for k in loaded})


def test_missing_path(tmp_path):
    with pytest.raises(CheckpointError) as error:
        load_into_new(tmp_path / "nothing.pt")
    assert "nothing.pt" in str(error.value)
    assert "none, imagenet, imagenet_v1, coco_v1, coco_v2" in str(error.value)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"not a checkpoint"),
        lambda path: path.write_bytes(b""),
        lambda path: path.mkdir(),
        lambda path: torch.save([torch.zeros(1)], path),
        lambda path: torch.save({"model": 3}, path),
        lambda path: torch.save({1: torch.zeros(1)}, path),
        lambda path: torch.save({"a": torch.zeros(1)}, path),
        lambda path: torch.save({HEAD + "bias": 5}, path),
        lambda path: torch.save({}, path),
    ],
    ids=["garbage", "empty", "a directory", "a list", "no state dict", "numbered", "other keys", "no tensors", "{}"],
)
def test_files_that_hold_no_weights(tmp_path, write):
    path = tmp_path / "c.pt"
    write(path)
    with pytest.raises(CheckpointError, match=r"c\.pt"):
        load_into_new(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "what"),
    [
        ({"channels": 32}, "other shape"),
        ({"backbone": "resnet34"}, "unexpected backbone.body.layer1.2"),
        ({"head_norm": "gn"}, "unexpected head"),
        ({"norm": "none"}, "missing backbone.body.bn1"),
    ],
    ids=["width", "backbone", "a norm more", "a norm less"],
)
def test_wrong_shapes_change_nothing(tmp_path, theirs, what):
    if theirs == {"norm": "none"}:  # torchvision's ResNet has no constructor without norms: drop them
        state = {k: v for k, v in small().state_dict().items() if ".bn" not in k}
    else:
        state = small(**theirs).state_dict()
    torch.save({"model": state}, tmp_path / "c.pt")
    network = small(seed=9, weights=str(tmp_path / "c.pt"))
    before = copy_of(network)
    with pytest.raises(CheckpointError) as error:
        initialise(network, network.config)
    assert what in str(error.value)
    assert "model.*" in str(error.value)
    assert_equal(copy_of(network), before)


@pytest.mark.slow
def test_the_older_imagenet_weights_can_be_asked_for(monkeypatch):
    torch.manual_seed(1)
    serve(monkeypatch, resnet18(weights=None).state_dict())
    network = small(weights="imagenet_v1", norm="bn", quality="iou")
    (note,) = initialise(network, network.config)
    assert "IMAGENET1K_V1" in note


# --- FCOS, and the quality branch


def coco_fcos():
    torch.manual_seed(3)
    return fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()


@pytest.mark.slow
def test_fcos_takes_torchvisions_coco_weights(monkeypatch):
    source = {k: v for k, v in coco_fcos().items() if not k.endswith("num_batches_tracked")}
    serve(monkeypatch, source)
    network = FCOSConfig(weights="coco_v1", norm="frozen_bn").build(91)
    (note,) = initialise(network, network.config)
    assert "FCOS_ResNet50_FPN_Weights.COCO_V1" in note
    assert_equal(copy_of(network), source)


@pytest.mark.slow
def test_fcos_with_other_classes_and_without_the_branch(monkeypatch):
    source = coco_fcos()
    serve(monkeypatch, source)
    network = FCOSConfig(weights="coco_v1", norm="frozen_bn", quality="none").build(3)
    notes = initialise(network, network.config)
    assert any("class head re-initialised (91 classes there, 3 here)" in n for n in notes)
    assert any("quality branch there is left out" in n for n in notes)
    after = copy_of(network)
    for key in ("head.regression_head.bbox_reg.weight", "backbone.fpn.inner_blocks.0.0.weight"):
        assert torch.equal(after[key], source[key])


@pytest.mark.slow
def test_retinanet_with_a_branch_takes_weights_without_one(monkeypatch):
    torch.manual_seed(4)
    source = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    serve(monkeypatch, source)
    network = RetinaNetConfig(**V1, quality="iou").build(91)
    before = copy_of(network)
    notes = initialise(network, network.config)
    assert any("quality branch keeps its random initialisation" in n for n in notes)
    after = copy_of(network)
    assert torch.equal(after["quality.weight"], before["quality.weight"])
    assert torch.equal(after[HEAD + "weight"], source[HEAD + "weight"])


@pytest.mark.slow
def test_a_checkpoint_with_a_branch_starts_a_network_with_one(tmp_path):
    trained = small(quality="iou")
    torch.save({"model": trained.state_dict(), "ema": None}, tmp_path / "c.pt")
    network = small(seed=1, quality="iou", weights=str(tmp_path / "c.pt"))
    assert len(initialise(network, network.config)) == 1
    assert_equal(copy_of(network), copy_of(trained))


@pytest.mark.slow
def test_fcos_has_one_set_of_coco_weights():
    config = FCOSConfig(weights="coco_v2")
    with pytest.raises(ConfigError, match="no such weights of fcos, only coco_v1"):
        initialise(FCOSConfig(backbone="resnet18", channels=32).build(2), config)
    with pytest.raises(ConfigError, match=r"model\.norm=frozen_bn"):
        initialise(FCOSConfig(backbone="resnet18", channels=32).build(2), FCOSConfig(weights="coco_v1"))
