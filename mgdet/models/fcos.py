"""FCOS (Tian et al., ICCV 2019 and arXiv 2006.09214) from torchvision's parts, on whole batch tensors."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead

from mgdet.models.backbone import Norm, norm_layer
from mgdet.models.coder import PointCoder
from mgdet.models.detector import CocoWeights, Detector, DetectorConfig, HeadOutputs, regress
from mgdet.models.postprocess import PostProcess
from mgdet.structures import PriorLayout

STRIDES = (8, 16, 32, 64, 128)
"""Sides of the squares that stand for the points of P3 to P7, pixels."""
INITIAL_DISTANCE = 4.0
"""Sides of its square from a point to each side of the box that an untrained network predicts there."""


class FCOSPostProcess(PostProcess):
    """The test-time settings; defaults are those of arXiv 2006.09214."""

    nms_iou: float = Field(default=0.6, gt=0, le=1, description="same-class boxes that overlap more are suppressed")


class FCOSConfig(DetectorConfig):
    """Defaults build torchvision's `fcos_resnet50_fpn`."""

    coco: ClassVar[Mapping[str, CocoWeights]] = {
        "coco_v1": CocoWeights(
            "fcos_resnet50_fpn",
            {"norm": "frozen_bn", "fpn_norm": "none", "head_norm": "gn", "p6_from": "p5"},
            quality="centerness",
        )
    }

    name: Literal["fcos"] = "fcos"
    head_norm: Norm = "gn"
    quality: Literal["none", "centerness", "iou"] = Field(
        default="centerness",
        description="what the branch beside the box regression predicts: centre-ness, or the IoU of each box",
    )
    postprocess: FCOSPostProcess = FCOSPostProcess()

    @property
    def layout(self) -> PriorLayout:
        """One point per location."""
        return PriorLayout(points=True, per_location=1)

    def build(self, num_classes: int) -> "FCOS":
        """The network with random weights; `mgdet.models.weights.initialise` loads what `weights` asks for."""
        return FCOS(self, num_classes)


class FCOS(Detector):
    """Points, and a head of two towers of four convolutions with the quality branch on the box tower.

    The box layer's bias starts at 4, not at torchvision's 0: each point first predicts the square of 8 strides around
    it, the size of ATSS's anchor. With 0 it predicts an empty box, all IoUs are 0, and an assigner that goes by the
    predicted boxes is blind at the start.
    """

    quality_prefix: ClassVar[str] = "head.regression_head.bbox_ctrness."

    def __init__(self, config: FCOSConfig, num_classes: int) -> None:
        generator = AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * len(STRIDES))
        super().__init__(config, num_classes, PointCoder(), generator)
        norm = _always(norm_layer(config.head_norm))
        classification = FCOSClassificationHead(config.channels, 1, num_classes, norm_layer=norm)
        regression = FCOSRegressionHead(config.channels, 1, norm_layer=norm)
        nn.init.constant_(regression.bbox_reg.bias, INITIAL_DISTANCE)
        if config.quality == "none":
            regression.bbox_ctrness = None  # a parameter without a gradient would stop DDP
        self.head = nn.ModuleDict({"classification_head": classification, "regression_head": regression})

    def predict(self, features: list[Tensor]) -> HeadOutputs:
        """Run the head on the levels' maps `[B, channels, h, w]`, finest first."""
        regression = self.head.regression_head
        deltas, quality = regress(regression, regression.bbox_ctrness, features)
        return HeadOutputs(self.head.classification_head(features), deltas.relu(), quality)


def _always(norm: Callable[[int], nn.Module] | None) -> Callable[[int], nn.Module]:
    """torchvision's head takes None for GroupNorm, so no norm must be a module that does nothing."""
    return norm or (lambda channels: nn.Identity())
