"""RetinaNet (Lin et al., ICCV 2017) from torchvision's parts, on whole batch tensors."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead

from mgdet.models.anchors import AnchorConfig
from mgdet.models.backbone import norm_layer
from mgdet.models.coder import AnchorCoder
from mgdet.models.detector import CocoWeights, Detector, DetectorConfig, HeadOutputs, regress
from mgdet.structures import PriorLayout


class RetinaNetConfig(DetectorConfig):
    """Defaults build torchvision's `retinanet_resnet50_fpn`."""

    coco: ClassVar[Mapping[str, CocoWeights]] = {
        "coco_v1": CocoWeights(
            "retinanet_resnet50_fpn",
            {"norm": "frozen_bn", "fpn_norm": "none", "head_norm": "none", "p6_from": "p5"},
            frozen_eps=0.0,
        ),
        "coco_v2": CocoWeights(
            "retinanet_resnet50_fpn_v2", {"norm": "bn", "fpn_norm": "none", "head_norm": "gn", "p6_from": "c5"}
        ),
    }

    name: Literal["retinanet"] = "retinanet"
    quality: Literal["none", "iou"] = Field(
        default="none", description="iou: a branch that predicts the IoU of each box (Wu et al., 2020), see rescoring"
    )
    anchors: AnchorConfig = AnchorConfig()
    coder_weights: tuple[float, float, float, float] = Field(
        default=(1.0, 1.0, 1.0, 1.0), description="of dx, dy, dw, dh; (10, 10, 5, 5) is SSD's variance coding"
    )

    @property
    def layout(self) -> PriorLayout:
        """Anchors, as many per location as `anchors` says."""
        return PriorLayout(points=False, per_location=self.anchors.per_location)

    def build(self, num_classes: int) -> "RetinaNet":
        """The network with random weights; `mgdet.models.weights.initialise` loads what `weights` asks for."""
        return RetinaNet(self, num_classes)


class RetinaNet(Detector):
    """Anchors, and a head of two towers; the optional quality branch sits on the box tower (Wu et al., 2020)."""

    quality_prefix: ClassVar[str] = "quality."

    def __init__(self, config: RetinaNetConfig, num_classes: int) -> None:
        super().__init__(config, num_classes, AnchorCoder(config.coder_weights), config.anchors.generator())
        anchors = config.anchors.per_location
        self.head = RetinaNetHead(config.channels, anchors, num_classes, norm_layer=norm_layer(config.head_norm))
        self.quality: nn.Conv2d | None = None
        if config.quality != "none":  # made last: the other weights do not depend on whether it is there
            self.quality = nn.Conv2d(config.channels, anchors, kernel_size=3, padding=1)
            nn.init.normal_(self.quality.weight, std=0.01)
            nn.init.zeros_(self.quality.bias)  # type: ignore[arg-type]  # there is a bias

    def predict(self, features: list[Tensor]) -> HeadOutputs:
        """Run the head on the levels' maps `[B, channels, h, w]`, finest first."""
        logits = self.head.classification_head(features)
        return HeadOutputs(logits, *regress(self.head.regression_head, self.quality, features))
