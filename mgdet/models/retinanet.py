"""RetinaNet (Lin et al., ICCV 2017) from torchvision's parts, on whole batch tensors."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead

from mgdet.models.anchors import AnchorConfig
from mgdet.models.coder import AnchorCoder
from mgdet.models.detector import CocoWeights, Detector, DetectorConfig, flatten_map
from mgdet.models.norm import norm_layer
from mgdet.structures import PriorLayout

Weight: TypeAlias = Annotated[float, Field(ge=0.001, le=1000)]


class RetinaNetConfig(DetectorConfig):
    """Defaults build torchvision's `retinanet_resnet50_fpn`; see `weights` for what can be loaded into it."""

    coco_weights: ClassVar[Mapping[str, CocoWeights]] = {
        "coco_v1": CocoWeights(
            builder="retinanet_resnet50_fpn",
            settings={"norm": "frozen_bn", "fpn_norm": "none", "head_norm": "none", "p6_from": "p5"},
            frozen_eps=0.0,  # torchvision's `overwrite_eps`
        ),
        "coco_v2": CocoWeights(
            builder="retinanet_resnet50_fpn_v2",
            settings={"norm": "bn", "fpn_norm": "none", "head_norm": "gn", "p6_from": "c5"},
        ),
    }

    name: Literal["retinanet"] = "retinanet"
    p6_from: Literal["p5", "c5"] = Field(default="p5", description="input of P6: p5 as torchvision's v1, c5 as its v2")
    anchors: AnchorConfig = AnchorConfig()
    coder_weights: tuple[Weight, Weight, Weight, Weight] = Field(
        default=(1.0, 1.0, 1.0, 1.0), description="of dx, dy, dw, dh; (10, 10, 5, 5) is SSD's variance coding"
    )
    quality: Literal["none", "iou", "objectness"] = Field(
        default="none",
        description="iou: a branch predicts the IoU of each box (Wu et al., 2020); objectness: a branch says what "
        "loss.bag makes of it (AutoAssign, DW)",
    )

    @property
    def layout(self) -> PriorLayout:
        """Anchors."""
        return PriorLayout(points=False, per_location=self.anchors.per_location)

    def build(self, num_classes: int) -> "RetinaNet":
        """The network with random weights; `mgdet.models.weights.initialise` loads what `weights` asks for."""
        return RetinaNet(self, num_classes)


class RetinaNet(Detector):
    """Anchors on five levels; towers of four convolutions for each task, shared by the levels."""

    def __init__(self, config: RetinaNetConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        per_location = config.anchors.per_location
        self.head = RetinaNetHead(config.channels, per_location, num_classes, norm_layer=norm_layer(config.head_norm))
        self.quality = nn.Conv2d(config.channels, per_location, 3, padding=1) if config.quality != "none" else None
        if self.quality is not None:
            nn.init.normal_(self.quality.weight, std=0.01)
            nn.init.zeros_(self.quality.bias)  # type: ignore[arg-type]  # the layer has one
        self.coder = AnchorCoder(config.coder_weights)
        self.anchor_generator = config.anchors.generator()
        self.prior_offset = config.anchors.offset

    @property
    def class_layer(self) -> nn.Conv2d:
        """The last convolution of the classification tower."""
        return self.head.classification_head.cls_logits  # type: ignore[union-attr, return-value]  # torchvision is untyped

    def predict(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `Detector.predict`; the quality branch sits on the regression tower."""
        if self.quality is None:
            out = self.head(features)
            return out["cls_logits"], out["bbox_regression"], None
        boxes = self.head.regression_head
        towers = [boxes.conv(f) for f in features]  # type: ignore[union-attr, operator]  # torchvision is untyped
        deltas = torch.cat([flatten_map(boxes.bbox_reg(t), 4) for t in towers], 1)  # type: ignore[union-attr, operator]
        quality = torch.cat([flatten_map(self.quality(t), 1) for t in towers], dim=1).squeeze(-1)
        return self.head.classification_head(features), deltas, quality  # type: ignore[operator]  # as above
