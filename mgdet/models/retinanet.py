"""RetinaNet (Lin et al., ICCV 2017) from torchvision's parts, on whole batch tensors."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead

from mgdet.config_base import Config
from mgdet.models.anchors import AnchorConfig, grid_priors
from mgdet.models.backbone import Norm, ResNetName, build_backbone, norm_layer
from mgdet.models.coder import AnchorCoder
from mgdet.models.postprocess import PostProcess
from mgdet.structures import Predictions, Priors

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class RetinaNetConfig(Config):
    """Defaults build torchvision's `retinanet_resnet50_fpn`; see `weights` for what can be loaded into it."""

    name: Literal["retinanet"] = "retinanet"
    backbone: ResNetName = "resnet50"
    weights: str = Field(
        default="none",
        description="none, imagenet (backbone), coco_v1 or coco_v2 (torchvision's detectors), or a checkpoint's path",
    )
    norm: Norm = Field(default="bn", description="norm of the ResNet; frozen_bn only makes sense with weights")
    fpn_norm: Norm = "none"
    head_norm: Norm = "none"
    channels: int = Field(default=256, ge=8, multiple_of=8, description="width of pyramid and head")
    p6_from: Literal["p5", "c5"] = Field(default="p5", description="input of P6: p5 as torchvision's v1, c5 as its v2")
    trainable_layers: int = Field(default=5, ge=0, le=5, description="ResNet stages that train, counted from the last")
    anchors: AnchorConfig = AnchorConfig()
    coder_weights: tuple[float, float, float, float] = Field(
        default=(1.0, 1.0, 1.0, 1.0), description="of dx, dy, dw, dh; (10, 10, 5, 5) is SSD's variance coding"
    )
    postprocess: PostProcess = PostProcess()

    def build(self, num_classes: int) -> "RetinaNet":
        """The network with random weights; `mgdet.models.weights.initialise` loads what `weights` asks for."""
        return RetinaNet(self, num_classes)


class RetinaNet(nn.Module):
    """Backbone, pyramid and head; parameter names are those of torchvision's `RetinaNet`."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: RetinaNetConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        # torchvision computes its COCO_V1 statistics with eps 0 (its `overwrite_eps`)
        eps = 0.0 if config.weights == "coco_v1" else 1e-5
        self.backbone = build_backbone(
            config.backbone,
            norm=config.norm,
            fpn_norm=config.fpn_norm,
            channels=config.channels,
            p6_from=config.p6_from,
            trainable_layers=config.trainable_layers,
            frozen_eps=eps,
        )
        self.head = RetinaNetHead(
            config.channels, config.anchors.per_location, num_classes, norm_layer=norm_layer(config.head_norm)
        )
        self.coder = AnchorCoder(config.coder_weights)
        self.anchor_generator = config.anchors.generator()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self._priors: dict[tuple[int, int, str], Priors] = {}

    def forward(self, images: Tensor, sizes: Tensor) -> Predictions:
        """Predict for `images` `[B, 3, H, W]` uint8 RGB with unpadded `sizes` `[B, 2]` (height, width)."""
        features = list(self.backbone(normalise(images, sizes, self.mean, self.std)).values())
        out = self.head(features)
        priors = self._remember_priors(images, features)
        deltas = out["bbox_regression"].float()
        return Predictions(out["cls_logits"].float(), deltas, self.coder.decode(deltas, priors))

    def priors(self, images: Tensor) -> Priors:
        """The anchors of a batch of this shape, after `forward` has seen that shape."""
        return self._priors[(images.shape[-2], images.shape[-1], str(images.device))]

    def scores(self, predictions: Predictions) -> dict[str, Tensor]:
        """Scores `[B, A, C]` by name; the last one ranks the detections."""
        return {"raw": predictions.logits.sigmoid()}

    def reset_class_head(self) -> None:
        """Fresh weights for the layer that depends on the number of classes (prior probability 0.01)."""
        layer = self.head.classification_head.cls_logits
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(layer.bias, -math.log((1 - 0.01) / 0.01))

    def _remember_priors(self, images: Tensor, features: list[Tensor]) -> Priors:
        key = (images.shape[-2], images.shape[-1], str(images.device))
        if key not in self._priors:
            if len(self._priors) >= 64:  # many image shapes: do not hold the anchors of all of them
                self._priors.clear()
            grids = [(f.shape[-2], f.shape[-1]) for f in features]
            self._priors[key] = grid_priors(self.anchor_generator, key[:2], grids, images.device)
        return self._priors[key]


def normalise(images: Tensor, sizes: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 `[B, 3, H, W]` to the network's float input; padding is 0 after normalisation, as in torchvision."""
    x = (images.float() / 255.0 - mean) / std
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    inside = (rows[None, :, None] < sizes[:, 0, None, None]) & (columns[None, None, :] < sizes[:, 1, None, None])
    return x * inside.unsqueeze(1)
