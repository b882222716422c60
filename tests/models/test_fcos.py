"""Our FCOS is torchvision's: same weights in, same logits, boxes, centre-ness and detections out."""

import pytest
import torch
from torchvision.models.detection import fcos_resnet50_fpn

from mgdet.models import FCOSConfig, RetinaNetConfig
from mgdet.models.coder import PointCoder
from mgdet.structures import PriorLayout, Priors

SMALL = {"backbone": "resnet18", "norm": "gn", "channels": 64}


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    theirs = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=7, min_size=320, max_size=416).eval()
    # an untrained class head says 0.01 everywhere: spread the scores so that thresholds and NMS have work to do
    torch.nn.init.normal_(theirs.head.classification_head.cls_logits.weight, std=0.1)
    torch.nn.init.constant_(theirs.head.classification_head.cls_logits.bias, -2.0)
    torch.nn.init.normal_(theirs.head.regression_head.bbox_reg.weight, std=0.1)
    torch.nn.init.normal_(theirs.head.regression_head.bbox_ctrness.weight, std=0.1)
    ours = FCOSConfig().build(num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@torch.no_grad()
def test_logits_boxes_and_centreness_equal_torchvisions(pair):
    theirs, ours = pair
    images = torch.randint(0, 256, (2, 3, 320, 416), dtype=torch.uint8)
    transformed, _ = theirs.transform([i.float() / 255 for i in images])
    features = list(theirs.backbone(transformed.tensors).values())
    expected = theirs.head(features)
    anchors = theirs.anchor_generator(transformed, features)

    got = ours(images, torch.tensor([[320, 416]] * 2))

    torch.testing.assert_close(got.logits, expected["cls_logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.quality, expected["bbox_ctrness"].squeeze(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.priors(images).boxes, anchors[0], atol=0, rtol=0)
    boxes = theirs.box_coder.decode(expected["bbox_regression"][0], anchors[0])
    torch.testing.assert_close(got.boxes[0], boxes, atol=1e-3, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", [(320, 416), (320, 400)], ids=["multiple of 32", "padded"])
def test_detections_equal_torchvisions(pair, size):
    theirs, ours = pair
    image = torch.zeros(1, 3, 320, 416, dtype=torch.uint8)  # the loader pads to a multiple of 32
    image[..., : size[1]] = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    expected = theirs([image[0, :, :, : size[1]].float() / 255])[0]
    sizes = torch.tensor([size])
    predictions = ours(image, sizes)
    post = ours.config.postprocess.model_copy(update={"score_threshold": theirs.score_thresh})
    ours.config, before = ours.config.model_copy(update={"postprocess": post}), ours.config
    got, scores = ours.detect(predictions, image, sizes, sizes)
    ours.config = before

    assert list(scores) == ["raw", "rescored"]
    assert len(expected["scores"]) > 50, "the comparison needs detections"
    assert got.valid.sum() == len(expected["scores"])
    torch.testing.assert_close(got.scores[0], expected["scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(got.boxes[0], expected["boxes"], atol=1e-3, rtol=1e-4)
    assert torch.equal(got.labels[0], expected["labels"])


@torch.no_grad()
def test_padding_of_the_batch_is_torchvisions(pair):
    """A smaller image in a batch is padded with 0 *after* normalisation."""
    theirs, ours = pair
    big = torch.randint(0, 256, (3, 320, 416), dtype=torch.uint8)
    small = torch.randint(0, 256, (3, 320, 320), dtype=torch.uint8)
    transformed, _ = theirs.transform([big.float() / 255, small.float() / 255])
    expected = theirs.head(list(theirs.backbone(transformed.tensors).values()))["cls_logits"]
    images = torch.full((2, 3, 320, 416), 255, dtype=torch.uint8)  # padding colour must not matter
    images[0] = big
    images[1, :, :, :320] = small
    got = ours(images, torch.tensor([[320, 416], [320, 320]])).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_before_training_each_point_predicts_about_eight_strides_around_it():
    network = FCOSConfig(**SMALL).build(3).eval()
    images = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    with torch.no_grad():
        boxes = network(images, torch.tensor([[128, 128]])).boxes[0]
    priors = network.priors(images)
    sides = (boxes[:, 2:] - boxes[:, :2]) / priors.strides[:, None]
    torch.testing.assert_close(sides, torch.full_like(sides, 8.0), atol=1.5, rtol=0)
    assert priors.layout == PriorLayout(points=True, per_location=1)
    assert priors.level_counts == (256, 64, 16, 4, 1)
    assert priors.strides.unique().tolist() == [8.0, 16.0, 32.0, 64.0, 128.0]


NETWORKS = [
    *(FCOSConfig(**SMALL, quality=q) for q in ("none", "centerness", "iou")),
    *(RetinaNetConfig(**SMALL, quality=q) for q in ("none", "iou")),
]


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
