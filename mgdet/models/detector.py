"""What the detectors share: images to a feature pyramid, priors, scores, final detections."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from mgdet.config_base import Config
from mgdet.models.anchors import grid_priors
from mgdet.models.backbones import Backbone, BackboneConfig, BackboneNorm, ResNet
from mgdet.models.backbones.base import MEAN, STD
from mgdet.models.coder import Coder
from mgdet.models.losses.quality import QualityKind
from mgdet.models.necks import FPN, NeckConfig
from mgdet.models.norm import Norm
from mgdet.models.postprocess import PostProcess
from mgdet.models.pyramid import Pyramid
from mgdet.models.rescoring import Rescoring
from mgdet.structures import CentrePrior, Detections, Predictions, PriorLayout, Priors, Scores

HeadKind = Literal["towers", "task_aligned", "per_level"]
PRIOR_PROBABILITY = 0.01
"""Score that an untrained class head gives to everything (Lin et al., ICCV 2017, section 4.1)."""
REMEMBERED_SHAPES = 64

Outputs = tuple[list[Tensor], Tensor, Tensor, Tensor | None]
"""Maps of the pyramid, class logits `[B, A, C]`, deltas `[B, A, 4]` and quality logits `[B, A]`."""


class CocoWeights(Config):
    """One of torchvision's detectors trained on COCO."""

    builder: str
    """Name of the torchvision model."""
    settings: dict[str, Any]
    """Under which its weights mean what they were trained to mean."""
    frozen_eps: float = 1e-5
    """Of its frozen batch norms."""


class DetectorConfig(Config):
    """The keys that all detectors have."""

    coco_weights: ClassVar[Mapping[str, CocoWeights]] = {}

    name: str
    backbone: BackboneConfig = Field(
        default=ResNet(name="resnet50"), description="a name alone stands for the backbone of this name"
    )
    weights: str = Field(
        default="none",
        description="none; imagenet (of the backbone, the newest) or imagenet_v1; coco_v1 or coco_v2 (torchvision's "
        "detectors); or the path of a checkpoint or of a run, whose best one it is",
    )
    norm: BackboneNorm = Field(
        default="own",
        description="norm of the backbone; own: the one that it was published with (bn; ln for ConvNeXt and Swin); "
        "frozen_bn only makes sense with weights",
    )
    neck: NeckConfig = Field(
        default=FPN(), description="what makes the pyramid; a name alone stands for the neck of this name"
    )
    fpn_norm: Norm = Field(default="none", description="norm of the pyramid's convolutions")
    head_norm: Norm = Field(default="none", description="norm of the head's convolutions")
    head: HeadKind = Field(
        default="towers",
        description="towers: four convolutions for each task, shared by the levels; task_aligned: TOOD's T-head, six "
        "convolutions that the tasks share (one anchor per location); per_level: one for each task and level",
    )
    channels: int = Field(default=256, ge=8, le=2048, multiple_of=8, description="width of pyramid and head")
    p6_from: str = "p5"
    trainable_layers: int = Field(
        default=5, ge=0, le=5, description="backbone stages that train, counted from the last; 5: all"
    )
    quality: QualityKind = "none"
    centre_prior: bool = Field(
        default=False,
        description="learn where the samples of each class lie around the centres of its objects, as loss.bag's "
        "auto_assign does",
    )
    rescoring: Rescoring = Rescoring()
    postprocess: PostProcess = PostProcess()

    @field_validator("backbone", "neck", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("norm")
    @classmethod
    def _norm_of_the_backbone(cls, value: BackboneNorm, info: ValidationInfo) -> BackboneNorm:
        backbone: Backbone | None = info.data.get("backbone")  # None: it was refused itself
        return backbone.resolved_norm(value) if backbone else value

    @property
    @abstractmethod
    def layout(self) -> PriorLayout:
        """What kind of priors it has."""

    @abstractmethod
    def build(self, num_classes: int) -> "Detector":
        """The network with random weights; `mgdet.models.weights.initialise` loads what `weights` asks for."""


class Detector(nn.Module):
    """Backbone, pyramid and head; parameter names are those of torchvision's detectors.

    A subclass sets `head`, `coder`, `anchor_generator`, `prior_offset` (where in its cell a location lies, in strides)
    and perhaps `priors_fit_image` (no side of a prior is longer than the image's), and says in `predict` what its head
    makes of the pyramid.
    """

    mean: Tensor
    std: Tensor
    head: nn.Module
    coder: Coder
    anchor_generator: AnchorGenerator
    prior_offset: float
    priors_fit_image: bool = False

    def __init__(self, config: DetectorConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        pretrained = config.coco_weights.get(config.weights)
        self.backbone = Pyramid(
            config.backbone(config.norm, config.trainable_layers, pretrained.frozen_eps if pretrained else None),
            f"model.backbone = {config.backbone}",
            channels=config.channels,
            p6_from=config.p6_from,
            norm=config.fpn_norm,
            neck=config.neck,
        )
        self.centre_prior = LearnedCentrePrior(num_classes) if config.centre_prior else None
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self._priors: dict[tuple[int, int, str], Priors] = {}
        self._compiled: Callable[[Tensor, Tensor], Outputs] | None = None

    @abstractmethod
    def predict(self, features: list[Tensor], image_size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits `[B, A, C]`, deltas `[B, A, 4]` and quality logits `[B, A]` from the maps of the pyramid.

        `image_size` is the height and width of the padded images.
        """

    @property
    @abstractmethod
    def class_layers(self) -> Sequence[nn.Conv2d]:
        """The layers that depend on the number of classes: one, or one for each level."""

    def forward(self, images: Tensor, sizes: Tensor) -> Predictions:
        """Predict for `images` `[B, 3, H, W]` uint8 RGB with unpadded `sizes` `[B, 2]` (height, width)."""
        outputs = self._compiled if self._compiled is not None and self.training else self.outputs
        features, logits, deltas, quality = outputs(images, sizes)
        priors = self._remember_priors(images, features)
        boxes = self.coder.decode(deltas.float(), priors)
        quality = None if quality is None else quality.float()
        centre = None if self.centre_prior is None else self.centre_prior()
        return Predictions(priors, logits.float(), deltas.float(), boxes, quality, centre)

    def outputs(self, images: Tensor, sizes: Tensor) -> "Outputs":
        """The maps of the pyramid, and what `predict` makes of them: all that has weights."""
        features = list(self.backbone(normalise(images, sizes, self.mean, self.std)).values())
        return features, *self.predict(features, (images.shape[-2], images.shape[-1]))

    def compile_outputs(self, few_shapes: bool, backend: str = "inductor") -> None:
        """Compile `outputs` for training with `torch.compile`, at the first call for each shape.

        In evaluation mode the network stays as it is, so that a checkpoint is judged by the same numbers everywhere. A
        deep copy made before is not compiled.

        Args:
            few_shapes: compile anew for each shape; otherwise, from the second one on, for all shapes at once.
            backend: of `torch.compile`.
        """
        self._compiled = torch.compile(self.outputs, dynamic=False if few_shapes else None, backend=backend)

    def scores(self, predictions: Predictions) -> Scores:
        """Scores `[B, A, C]` by name, computed when they are looked at; the last one ranks the detections."""
        rescoring = self.config.rescoring
        return Scores(predictions, rescoring.scores, rescoring.scores_of_some)

    def detect(self, predictions: Predictions, sizes: Tensor, original_sizes: Tensor) -> tuple[Detections, Scores]:
        """Final detections in pixels of the original files, and the scores of everything before suppression."""
        detections = self.config.postprocess(predictions, self.config.rescoring, sizes, original_sizes)
        return detections, self.scores(predictions)

    def reset_class_head(self) -> None:
        """Fresh weights for the layers that depend on the number of classes."""
        bias = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        for layer in self.class_layers:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]  # the layer has one

    def _remember_priors(self, images: Tensor, features: list[Tensor]) -> Priors:
        key = (images.shape[-2], images.shape[-1], str(images.device))
        if key not in self._priors:
            if len(self._priors) >= REMEMBERED_SHAPES:  # many image shapes: do not hold the priors of all of them
                self._priors.clear()
            grids = [(f.shape[-2], f.shape[-1]) for f in features]
            self._priors[key] = grid_priors(
                self.anchor_generator,
                key[:2],
                grids,
                images.device,
                self.config.layout,
                self.prior_offset,
                self.priors_fit_image,
            )
        return self._priors[key]


class LearnedCentrePrior(nn.Module):
    """AutoAssign's centre prior: mean and width of a Gaussian for each class, in strides, 0 and 1 before training."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(num_classes, 2))
        self.sigma = nn.Parameter(torch.ones(num_classes, 2))

    def forward(self) -> CentrePrior:
        """What it has learned."""
        return CentrePrior(self.mean, self.sigma)


def normalise(images: Tensor, sizes: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 `[B, 3, H, W]` to the network's float input; padding is 0 after normalisation, as in torchvision."""
    x = (images.float() / 255.0 - mean) / std
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    inside = (rows[None, :, None] < sizes[:, 0, None, None]) & (columns[None, None, :] < sizes[:, 1, None, None])
    return x * inside.unsqueeze(1)
