"""Our detectors are torchvision's: same weights in, same logits, boxes, quality and detections out."""

import pytest
import torch
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2

from mgdet.models import FCOSConfig, RetinaNetConfig

pytestmark = pytest.mark.slow
BUILDERS = {
    "retinanet v1": (retinanet_resnet50_fpn, RetinaNetConfig()),
    "retinanet v2": (retinanet_resnet50_fpn_v2, RetinaNetConfig(p6_from="c5", head_norm="gn")),
    "fcos": (fcos_resnet50_fpn, FCOSConfig()),
}


@pytest.fixture(scope="module", params=BUILDERS)
def pair(request):
    """Theirs with random weights, and ours with the same."""
    torch.manual_seed(0)
    build, config = BUILDERS[request.param]
    theirs = build(weights=None, weights_backbone=None, num_classes=7, min_size=320, max_size=416).eval()
    # untrained heads say 0.01 everywhere: spread scores and boxes so that thresholds and NMS have work to do
    spread = 0.1 if request.param == "fcos" else 0.03
    torch.nn.init.normal_(theirs.head.classification_head.cls_logits.weight, std=spread)
    torch.nn.init.normal_(theirs.head.regression_head.bbox_reg.weight, std=0.05)
    if request.param == "fcos":
        torch.nn.init.constant_(theirs.head.classification_head.cls_logits.bias, -2.0)
        torch.nn.init.normal_(theirs.head.regression_head.bbox_ctrness.weight, std=0.1)
    post = config.postprocess.model_copy(
        update={"score_threshold": theirs.score_thresh, "max_detections": theirs.detections_per_img}
    )
    assert config.postprocess.nms_iou == theirs.nms_thresh
    ours = config.model_copy(update={"postprocess": post}).build(num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@torch.no_grad()
def test_logits_boxes_and_quality(pair):
    theirs, ours = pair
    images = torch.randint(0, 256, (2, 3, 320, 416), dtype=torch.uint8)
    transformed, _ = theirs.transform([i.float() / 255 for i in images])
    features = list(theirs.backbone(transformed.tensors).values())
    expected = theirs.head(features)
    anchors = theirs.anchor_generator(transformed, features)[0]

    got = ours(images, torch.tensor([[320, 416]] * 2))

    torch.testing.assert_close(got.logits, expected["cls_logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.priors.boxes, anchors, atol=0, rtol=0)
    decode = getattr(theirs.box_coder, "decode_single", theirs.box_coder.decode)
    boxes = decode(expected["bbox_regression"][0], anchors)
    torch.testing.assert_close(got.boxes[0], boxes, atol=1e-3, rtol=1e-4)
    assert (got.quality is None) == ("bbox_ctrness" not in expected)
    if got.quality is not None:
        torch.testing.assert_close(got.quality, expected["bbox_ctrness"].squeeze(-1), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", [(320, 416), (320, 400)], ids=["multiple of 32", "padded"])
def test_detections(pair, size):
    theirs, ours = pair
    image = torch.zeros(1, 3, 320, 416, dtype=torch.uint8)  # the loader pads to a multiple of 32
    image[..., : size[1]] = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    expected = theirs([image[0, :, :, : size[1]].float() / 255])[0]
    sizes = torch.tensor([size])
    got, _ = ours.detect(ours(image, sizes), sizes, sizes)

    assert len(expected["scores"]) > 50, "the comparison needs detections"
    assert got.valid.sum() == len(expected["scores"])
    torch.testing.assert_close(got.scores[0], expected["scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(got.boxes[0], expected["boxes"], atol=1e-3, rtol=1e-4)
    assert torch.equal(got.labels[0], expected["labels"])


@torch.no_grad()
def test_padding_of_the_batch(pair):
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
