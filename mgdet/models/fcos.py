"""FCOS (Tian et al., ICCV 2019, and arXiv 2006.09214) from torchvision's parts, on whole batch tensors."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead

from mgdet.models.coder import DistributionCoder, PointCoder
from mgdet.models.detector import CocoWeights, Detector, DetectorConfig
from mgdet.models.levels import flatten_map
from mgdet.models.norm import Norm, norm_layer
from mgdet.models.postprocess import PostProcess
from mgdet.models.task_aligned_head import TaskAlignedHead, centres, corners, distances, moved
from mgdet.structures import PriorLayout

MOST_LOG_DISTANCE = 10.0
"""Bound of the logarithm of a distance in strides that the task-aligned head predicts."""
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
    head: Literal["towers", "task_aligned"] = Field(
        default="towers",
        description="towers: four convolutions for each task, shared by the levels; task_aligned: TOOD's T-head, six "
        "convolutions that the tasks share",
    )
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

    @model_validator(mode="after")
    def _head_predicts_distances(self) -> Self:
        if self.head == "task_aligned" and self.bins:
            raise ValueError("model.head=task_aligned predicts distances, not distributions: use model.bins=0")
        return self

    @property
    def layout(self) -> PriorLayout:
        """One point at each location."""
        return PriorLayout(points=True, per_location=1)

    def build(self, num_classes: int) -> "FCOS":
        """The network with random weights; `mgdet.models.weights.initialise` loads what `weights` asks for."""
        return FCOS(self, num_classes)


class FCOS(Detector):
    """A point at each location of every level predicts the distances to the sides of its box, in strides.

    Before training every point predicts the square of 8 strides around it (torchvision starts from empty boxes), so
    that assigners which look at predicted boxes see something from the first step on. With `bins` all of them are
    equally likely then, as published, so that it is a square of as many strides as there are bins.
    """

    def __init__(self, config: FCOSConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.bins = config.bins
        self.strides = config.neck.strides
        self.head = self._head(config, num_classes)
        self.scales = nn.Parameter(torch.ones(len(self.strides))) if config.level_scale else None
        self.coder = PointCoder() if not config.bins else DistributionCoder(config.bins)
        self.anchor_generator = AnchorGenerator(tuple((s,) for s in self.strides), ((1.0,),) * len(self.strides))
        self.prior_offset = config.point_offset

    @staticmethod
    def _head(config: FCOSConfig, num_classes: int) -> nn.Module:
        with_quality = config.quality != "none"
        if config.head == "task_aligned":
            return TaskAlignedHead(config.channels, num_classes, 4, config.head_norm, with_quality)
        head = _Head(config.channels, num_classes, config.head_norm, with_quality)
        if config.bins:
            head.predict_distributions(config.channels, config.bins)
        return head

    @property
    def class_layers(self) -> Sequence[nn.Conv2d]:
        """The last convolution of the classification tower."""
        return [self.head.classification_head.cls_logits]  # type: ignore[union-attr, list-item]  # torchvision is untyped

    def predict(self, features: list[Tensor], image_size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `Detector.predict`; distances are never negative. With `bins` the deltas are logits, see the coder.

        The distances of a task-aligned head may be negative: it reads each side at another place than the location.
        """
        if isinstance(self.head, TaskAlignedHead):
            return self._predict_aligned(self.head, features, image_size)
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

    def _predict_aligned(
        self, head: TaskAlignedHead, features: list[Tensor], image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Distances are exp(x) strides, as published, and their corners are moved."""
        logits, deltas, quality = [], [], []
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            out, centre = head(feature), centres(feature, image_size, self.prior_offset)
            reach = out.boxes.float().clamp(max=MOST_LOG_DISTANCE).exp() * stride
            reach = reach if self.scales is None else reach * self.scales[level]
            sides = distances(centre, moved(corners(centre, reach), out.offsets)) / stride
            logits.append(flatten_map(out.logits, self.num_classes))
            deltas.append(flatten_map(sides, 4))
            quality += [] if out.quality is None else [flatten_map(out.quality, 1)]
        return torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(quality, 1).squeeze(-1) if quality else None


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
