"""Our RetinaNet is torchvision's: same weights in, same logits, boxes and detections out."""

import pytest
import torch
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2

from mgdet.models.retinanet import RetinaNetConfig

V2 = {"p6_from": "c5", "head_norm": "gn"}


@pytest.fixture(scope="module", params=["v1", "v2"])
def pair(request):
    torch.manual_seed(0)
    build = retinanet_resnet50_fpn if request.param == "v1" else retinanet_resnet50_fpn_v2
    theirs = build(weights=None, weights_backbone=None, num_classes=7, min_size=320, max_size=416).eval()
    # an untrained class head says 0.01 everywhere: spread the scores so that thresholds and NMS have work to do
    torch.nn.init.normal_(theirs.head.classification_head.cls_logits.weight, std=0.03)
    torch.nn.init.normal_(theirs.head.regression_head.bbox_reg.weight, std=0.05)
    ours = RetinaNetConfig(**(V2 if request.param == "v2" else {})).build(num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@torch.no_grad()
def test_logits_and_boxes_equal_torchvisions(pair):
    theirs, ours = pair
    images = torch.randint(0, 256, (2, 3, 320, 416), dtype=torch.uint8)
    transformed, _ = theirs.transform([i.float() / 255 for i in images])
    features = list(theirs.backbone(transformed.tensors).values())
    expected = theirs.head(features)
    anchors = theirs.anchor_generator(transformed, features)

    got = ours(images, torch.tensor([[320, 416]] * 2))

    torch.testing.assert_close(got.logits, expected["cls_logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.priors(images).boxes, anchors[0], atol=0, rtol=0)
    boxes = theirs.box_coder.decode_single(expected["bbox_regression"][0], anchors[0])
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
    scores = next(iter(ours.scores(predictions).values()))
    post = ours.config.postprocess.model_copy(update={"max_detections": theirs.detections_per_img})
    got = post(scores, predictions, ours.priors(image), sizes, sizes)

    assert len(expected["scores"]) > 50, "the comparison needs detections"
    assert got.valid.sum() == len(expected["scores"])
    torch.testing.assert_close(got.scores[0], expected["scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(got.boxes[0], expected["boxes"], atol=1e-3, rtol=1e-4)
    assert torch.equal(got.labels[0], expected["labels"])


@torch.no_grad()
def test_padding_of_the_batch_is_torchvisions():
    """A smaller image in a batch is padded with 0 *after* normalisation."""
    torch.manual_seed(1)
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=96).eval()
    ours = RetinaNetConfig().build(3).eval()
    ours.load_state_dict(theirs.state_dict())
    big = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    small = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    transformed, _ = theirs.transform([big.float() / 255, small.float() / 255])
    expected = theirs.head(list(theirs.backbone(transformed.tensors).values()))["cls_logits"]
    images = torch.full((2, 3, 64, 96), 255, dtype=torch.uint8)  # padding colour must not matter
    images[0] = big
    images[1, :, :, :64] = small
    got = ours(images, torch.tensor([[64, 96], [64, 64]])).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_every_backbone_and_norm_builds(backbone):
    for norm in ("bn", "gn", "frozen_bn"):
        network = RetinaNetConfig(backbone=backbone, norm=norm, fpn_norm="gn", head_norm="gn", channels=64).build(3)
        out = network.eval()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]]))
        assert out.logits.shape[2] == 3
        assert out.logits.shape[1] == out.boxes.shape[1] == sum(network.priors(torch.zeros(1, 3, 64, 64)).level_counts)


def test_frozen_stages_do_not_train():
    network = RetinaNetConfig(backbone="resnet18", trainable_layers=3).build(3)
    frozen = {n.split(".")[2] for n, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
