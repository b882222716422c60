"""RetinaNet (Lin et al., ICCV 2017) from torchvision's parts, on whole batch tensors."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead

from mgdet.boxes import MAX_LOG_RATIO
from mgdet.models.anchors import AnchorConfig
from mgdet.models.coder import AnchorCoder, PointCoder
from mgdet.models.detector import CocoWeights, Detector, DetectorConfig
from mgdet.models.levels import flatten_map
from mgdet.models.norm import norm_layer
from mgdet.models.per_level_head import PerLevelHead
from mgdet.models.task_aligned_head import TaskAlignedHead, centres, distances, moved
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

    @model_validator(mode="after")
    def _anchors_suit_pyramid_and_head(self) -> Self:
        levels = len(self.neck.strides)
        if len(self.anchors.sizes) != levels:
            raise ValueError(
                f"model.anchors.sizes has {len(self.anchors.sizes)} values, and the pyramid of model.neck={self.neck} "
                f"{levels} levels: give one size for each"
            )
        if self.head == "task_aligned" and self.anchors.per_location != 1:
            raise ValueError(
                f"model.head=task_aligned predicts one box at a location, and there are {self.anchors.per_location} "
                "anchors: use model.anchors.scales=1 model.anchors.ratios=[1.0]"
            )
        return self

    @property
    def layout(self) -> PriorLayout:
        """Anchors."""
        return PriorLayout(points=False, per_location=self.anchors.per_location)

    def build(self, num_classes: int) -> "RetinaNet":
        """The network with random weights; `mgdet.models.weights.initialise` loads what `weights` asks for."""
        return RetinaNet(self, num_classes)


class RetinaNet(Detector):
    """Anchors on every level; towers of four convolutions for each task, shared by the levels, or another head.

    A task-aligned head predicts a box with respect to its anchor, and gives the distances from the anchor's centre to
    its sides, which it has moved, in anchor sizes.
    """

    def __init__(self, config: RetinaNetConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        per_location = config.anchors.per_location
        self.coder_weights = config.coder_weights
        with_quality, self.quality = config.quality != "none", None
        self.coder = AnchorCoder(config.coder_weights)
        if config.head == "task_aligned":
            self.head = TaskAlignedHead(config.channels, num_classes, 4, config.head_norm, with_quality)
            self.coder = PointCoder()
        elif config.head == "per_level":
            levels = len(config.neck.strides)
            self.head = PerLevelHead(config.channels, per_location, num_classes, levels, with_quality)
        else:
            layer = norm_layer(config.head_norm)
            self.head = RetinaNetHead(config.channels, per_location, num_classes, norm_layer=layer)
            self.quality = nn.Conv2d(config.channels, per_location, 3, padding=1) if with_quality else None
        if self.quality is not None:
            nn.init.normal_(self.quality.weight, std=0.01)
            nn.init.zeros_(self.quality.bias)  # type: ignore[arg-type]  # the layer has one
        self.anchor_generator = config.anchors.generator()
        self.prior_offset = config.anchors.offset
        self.priors_fit_image = config.anchors.fit_image

    @property
    def class_layers(self) -> Sequence[nn.Conv2d]:
        """The last convolution of the classification tower, or of each level."""
        if isinstance(self.head, PerLevelHead):
            return self.head.class_layers
        return [self.head.classification_head.cls_logits]  # type: ignore[union-attr, list-item]  # torchvision is untyped

    def predict(self, features: list[Tensor], image_size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `Detector.predict`; the quality branch sits on the regression tower."""
        if isinstance(self.head, TaskAlignedHead):
            return self._predict_aligned(self.head, features, image_size)
        if isinstance(self.head, PerLevelHead):
            return self.head(features)  # type: ignore[no-any-return]  # a module's
        if self.quality is None:
            out = self.head(features)
            return out["cls_logits"], out["bbox_regression"], None
        boxes = self.head.regression_head
        towers = [boxes.conv(f) for f in features]  # type: ignore[union-attr, operator]  # torchvision is untyped
        deltas = torch.cat([flatten_map(boxes.bbox_reg(t), 4) for t in towers], 1)  # type: ignore[union-attr, operator]
        quality = torch.cat([flatten_map(self.quality(t), 1) for t in towers], dim=1).squeeze(-1)
        return self.head.classification_head(features), deltas, quality  # type: ignore[operator]  # as above

    def _predict_aligned(
        self, head: TaskAlignedHead, features: list[Tensor], image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Boxes are predicted as shift and size ratio of the anchor, and their corners are moved."""
        logits, deltas, quality = [], [], []
        for feature, cell in zip(features, self.anchor_generator.cell_anchors, strict=True):
            out, centre = head(feature), centres(feature, image_size, self.prior_offset)
            width, height = (cell[0, 2:] - cell[0, :2]).to(centre.device)
            if self.priors_fit_image:
                width, height = width.clamp(max=image_size[1]), height.clamp(max=image_size[0])
            size = torch.stack([width, height]).view(2, 1, 1)
            raw = out.boxes.float() / out.boxes.new_tensor(self.coder_weights).float().view(4, 1, 1)
            half = 0.5 * raw[:, 2:].clamp(max=MAX_LOG_RATIO).exp() * size
            middle = centre + raw[:, :2] * size
            sides = moved(torch.cat([middle - half, middle + half], dim=1), out.offsets)
            logits.append(flatten_map(out.logits, self.num_classes))
            deltas.append(flatten_map(distances(centre, sides) / size.repeat(2, 1, 1), 4))
            quality += [] if out.quality is None else [flatten_map(out.quality, 1)]
        return torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(quality, 1).squeeze(-1) if quality else None
