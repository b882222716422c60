"""FCOS (Tian et al., ICCV 2019, and arXiv 2006.09214) from torchvision's parts, on whole batch tensors."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead

from mgdet.models.coder import DistributionCoder, PointCoder
from mgdet.models.detector import CocoWeights, Detector, DetectorConfig, flatten_map
from mgdet.models.norm import Norm, norm_layer
from mgdet.models.postprocess import PostProcess
from mgdet.structures import PriorLayout

STRIDES = (8, 16, 32, 64, 128)
FIRST_REACH = 4.0
"""Strides from a point to each side of the box that it predicts before training: ATSS's square of 8 strides."""


class FCOSPostProcess(PostProcess):
    """FCOS's boxes overlap more before they are suppressed; 0.6 as in torchvision and MMDetection."""

    nms_iou: float = Field(default=0.6, gt=0, le=1, description="same-class boxes that overlap more are suppressed")


class FCOSConfig(DetectorConfig):
    """Defaults build torchvision's `fcos_resnet50_fpn`; see `weights` for what can be loaded into it."""

    coco_weights: ClassVar[Mapping[str, CocoWeights]] = {
        "coco_v1": CocoWeights(
            builder="fcos_resnet50_fpn",
            settings={"norm": "frozen_bn", "fpn_norm": "none", "head_norm": "gn", "p6_from": "p5"},
        ),
    }

    name: Literal["fcos"] = "fcos"
    head_norm: Norm = Field(default="gn", description="norm of the head's convolutions")
    p6_from: Literal["p5", "c5"] = Field(default="p5", description="input of P6")
    point_offset: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="where points lie in their cell, in strides from its upper left: 0 as in torchvision, 0.5 as in "
        "the paper and MMDetection",
    )
    level_scale: bool = Field(
        default=False, description="a learned factor of the distances on each level, as in the paper and MMDetection"
    )
    bins: int = Field(
        default=0,
        ge=0,
        le=256,
        description="each distance is the mean of a distribution over 0 to so many strides, which loss.distribution "
        "teaches (Generalized Focal Loss: 16); 0: the distance itself",
    )
    quality: Literal["none", "centerness", "iou", "objectness"] = Field(
        default="centerness",
        description="what the branch beside the boxes predicts; iou: IoU rescoring in its place; objectness: what "
        "loss.bag makes of it (AutoAssign, DW)",
    )
    postprocess: FCOSPostProcess = FCOSPostProcess()

    @property
    def layout(self) -> PriorLayout:
        """One point at each location."""
        return PriorLayout(points=True, per_location=1)

    def build(self, num_classes: int) -> "FCOS":
        """The network with random weights; `mgdet.models.weights.initialise` loads what `weights` asks for."""
        return FCOS(self, num_classes)


class FCOS(Detector):
    """A point at each location of five levels predicts the distances to the sides of its box, in strides.

    Before training every point predicts the square of 8 strides around it (torchvision starts from empty boxes), so
    that assigners which look at predicted boxes see something from the first step on. With `bins` all of them are
    equally likely then, as published, so that it is a square of as many strides as there are bins.
    """

    def __init__(self, config: FCOSConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.bins = config.bins
        head = _Head(config.channels, num_classes, config.head_norm, with_quality=config.quality != "none")
        if self.bins:
            head.predict_distributions(config.channels, self.bins)
        self.head = head
        self.scales = nn.Parameter(torch.ones(len(STRIDES))) if config.level_scale else None
        self.coder = PointCoder() if not config.bins else DistributionCoder(config.bins)
        self.anchor_generator = AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * len(STRIDES))
        self.prior_offset = config.point_offset

    @property
    def class_layer(self) -> nn.Conv2d:
        """The last convolution of the classification tower."""
        return self.head.classification_head.cls_logits  # type: ignore[union-attr, return-value]  # torchvision is untyped

    def predict(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `Detector.predict`; distances are never negative. With `bins` the deltas are logits, see the coder."""
        boxes = self.head.regression_head
        towers = [boxes.conv(f) for f in features]  # type: ignore[union-attr, operator]  # torchvision is untyped
        raw = [boxes.bbox_reg(t) for t in towers]  # type: ignore[union-attr, operator]  # as above
        if self.scales is not None:
            raw = [scale * each for scale, each in zip(self.scales, raw, strict=True)]
        if self.bins:
            deltas = [flatten_map(each, 4 * (self.bins + 1)) for each in raw]
        else:
            deltas = [flatten_map(each.relu(), 4) for each in raw]
        quality = None
        if self.config.quality != "none":
            maps = [flatten_map(boxes.bbox_ctrness(t), 1) for t in towers]  # type: ignore[union-attr, operator]
            quality = torch.cat(maps, dim=1).squeeze(-1)
        return self.head.classification_head(features), torch.cat(deltas, dim=1), quality  # type: ignore[operator]


class _Head(nn.Module):
    """torchvision's two towers, with a choice of norm, under its names."""

    def __init__(self, channels: int, num_classes: int, norm: Norm, with_quality: bool) -> None:
        super().__init__()
        layer = norm_layer(norm) or nn.Identity
        self.classification_head = FCOSClassificationHead(channels, 1, num_classes, norm_layer=layer)
        self.regression_head = FCOSRegressionHead(channels, 1, norm_layer=layer)
        nn.init.constant_(self.regression_head.bbox_reg.bias, FIRST_REACH)
        if not with_quality:  # DDP would wait for the gradient of a layer that nobody uses
            del self.regression_head.bbox_ctrness

    def predict_distributions(self, channels: int, bins: int) -> None:
        """Make the last layer of the boxes one of logits, `bins + 1` for each side."""
        layer = nn.Conv2d(channels, 4 * (bins + 1), 3, padding=1)
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # the layer has one
        self.regression_head.bbox_reg = layer
