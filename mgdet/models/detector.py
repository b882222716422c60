"""What all dense detectors share: pyramid features in, predictions for every prior and final detections out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from mgdet.config_base import Config
from mgdet.models.anchors import grid_priors
from mgdet.models.backbone import Norm, ResNetName, build_backbone
from mgdet.models.coder import Coder
from mgdet.models.postprocess import PostProcess
from mgdet.models.rescoring import Rescoring
from mgdet.structures import Detections, Predictions, PriorLayout, Priors

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class CocoWeights(NamedTuple):
    """A detector of torchvision that was trained on COCO."""

    builder: str  # torchvision's name of the network
    settings: Mapping[str, Any]  # keys of the configuration under which the weights mean what they were trained to mean
    frozen_eps: float = 1e-5  # of the FrozenBatchNorm; torchvision's `overwrite_eps` makes it 0 for the oldest weights
    quality: str = "none"  # what its quality branch predicts


class DetectorConfig(Config):
    """The keys that every detector has; see `mgdet.models.weights` for what can be loaded."""

    coco: ClassVar[Mapping[str, CocoWeights]] = {}
    """The COCO weights that there are, by their value of `weights`."""

    name: str
    backbone: ResNetName = "resnet50"
    weights: str = Field(
        default="none",
        description="none, imagenet (backbone), coco_v1 (torchvision's detector; RetinaNet has coco_v2 too), or a "
        "checkpoint's path",
    )
    norm: Norm = Field(default="bn", description="norm of the ResNet; frozen_bn only makes sense with weights")
    fpn_norm: Norm = "none"
    head_norm: Norm = "none"
    channels: int = Field(default=256, ge=8, multiple_of=8, description="width of pyramid and head")
    p6_from: Literal["p5", "c5"] = Field(default="p5", description="input of P6: p5 as torchvision's v1, c5 as its v2")
    trainable_layers: int = Field(default=5, ge=0, le=5, description="ResNet stages that train, counted from the last")
    quality: str  # what the quality branch predicts; each detector says which ones it knows
    rescoring: Rescoring = Rescoring()
    postprocess: PostProcess = PostProcess()

    @property
    @abstractmethod
    def layout(self) -> PriorLayout:
        """What kind of priors the network will have."""

    @abstractmethod
    def build(self, num_classes: int) -> "Detector":
        """The network with random weights; `mgdet.models.weights.initialise` loads what `weights` asks for."""


class HeadOutputs(NamedTuple):
    """What a head says about the priors of all levels."""

    logits: Tensor  # [B, A, C]
    deltas: Tensor  # [B, A, 4]
    quality: Tensor | None  # [B, A]


class Detector(nn.Module, ABC):
    """Backbone, pyramid and, in subclasses, a head; parameter names are those of torchvision's detectors."""

    quality_prefix: ClassVar[str]
    """What the names of the quality branch's parameters start with."""

    head: Any  # has torchvision's `classification_head` and `regression_head`
    mean: Tensor
    std: Tensor

    def __init__(self, config: DetectorConfig, num_classes: int, coder: Coder, generator: AnchorGenerator) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.coder = coder
        self.anchor_generator = generator
        eps = config.coco[config.weights].frozen_eps if config.weights in config.coco else 1e-5
        self.backbone = build_backbone(
            config.backbone,
            norm=config.norm,
            fpn_norm=config.fpn_norm,
            channels=config.channels,
            p6_from=config.p6_from,
            trainable_layers=config.trainable_layers,
            frozen_eps=eps,
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self._priors: dict[tuple[int, int, str], Priors] = {}

    @abstractmethod
    def predict(self, features: list[Tensor]) -> HeadOutputs:
        """Run the head on the levels' maps `[B, channels, h, w]`, finest first."""

    def forward(self, images: Tensor, sizes: Tensor) -> Predictions:
        """Predict for `images` `[B, 3, H, W]` uint8 RGB with unpadded `sizes` `[B, 2]` (height, width)."""
        features = list(self.backbone(normalise(images, sizes, self.mean, self.std)).values())
        out = self.predict(features)
        priors = self._remember_priors(images, features)
        deltas = out.deltas.float()
        quality = None if out.quality is None else out.quality.float()
        return Predictions(out.logits.float(), deltas, self.coder.decode(deltas, priors), quality)

    def priors(self, images: Tensor) -> Priors:
        """The priors of a batch of this shape, after `forward` has seen that shape."""
        return self._priors[(images.shape[-2], images.shape[-1], str(images.device))]

    def scores(self, predictions: Predictions) -> dict[str, Tensor]:
        """Scores `[B, A, C]` in [0, 1] by name; the last one ranks the detections.

        `raw` is the class score; a network with a quality branch also has `rescored`.
        """
        scores = {"raw": predictions.logits.sigmoid()}
        if predictions.quality is not None:
            scores["rescored"] = self.config.rescoring(scores["raw"], predictions.quality.sigmoid())
        return scores

    def detect(
        self, predictions: Predictions, images: Tensor, sizes: Tensor, original_sizes: Tensor
    ) -> tuple[Detections, dict[str, Tensor]]:
        """Final detections in pixels of the original files, and the scores by name as `scores` gives them.

        `predictions` are those of `images`; `sizes` and `original_sizes` `[B, 2]` are (height, width) of the network
        input without padding and of the file.
        """
        scores = self.scores(predictions)
        ranking = next(reversed(scores.values()))
        gate = scores["raw"] if self.config.rescoring.threshold_on_class_score else ranking
        post = self.config.postprocess
        return post(ranking, predictions, self.priors(images), sizes, original_sizes, gate), scores

    def reset_class_head(self) -> None:
        """Fresh weights for the layer that depends on the number of classes (prior probability 0.01)."""
        layer = self.head.classification_head.cls_logits
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(layer.bias, -math.log((1 - 0.01) / 0.01))

    def _remember_priors(self, images: Tensor, features: list[Tensor]) -> Priors:
        key = (images.shape[-2], images.shape[-1], str(images.device))
        if key not in self._priors:
            if len(self._priors) >= 64:  # many image shapes: do not hold the priors of all of them
                self._priors.clear()
            grids = [(f.shape[-2], f.shape[-1]) for f in features]
            layout = self.config.layout
            self._priors[key] = grid_priors(self.anchor_generator, key[:2], grids, images.device, layout)
        return self._priors[key]


def regress(head: Any, branch: nn.Module | None, features: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """What the box layer of torchvision's regression `head`, and a quality `branch` beside it, say of its last maps.

    Box regression `[B, A, 4]` and quality logits `[B, A]` (None without a branch).
    """
    towers = [head.conv(f) for f in features]
    deltas = per_prior([head.bbox_reg(t) for t in towers], 4)
    quality = None if branch is None else per_prior([branch(t) for t in towers], 1).squeeze(2)
    return deltas, quality


def per_prior(maps: Sequence[Tensor], values: int) -> Tensor:
    """The levels' maps `[B, per_location * values, h, w]` as `[B, A, values]`, in the order of the priors."""
    return torch.cat([m.unflatten(1, (-1, values)).permute(0, 3, 4, 1, 2).flatten(1, 3) for m in maps], dim=1)


def normalise(images: Tensor, sizes: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 `[B, 3, H, W]` to the network's float input; padding is 0 after normalisation, as in torchvision."""
    x = (images.float() / 255.0 - mean) / std
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    inside = (rows[None, :, None] < sizes[:, 0, None, None]) & (columns[None, None, :] < sizes[:, 1, None, None])
    return x * inside.unsqueeze(1)
