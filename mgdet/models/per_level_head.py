"""The head of Mutual Guidance's networks: one convolution for each task and level (Zhang et al., ACCV 2020)."""

import math

import torch
from torch import Tensor, nn

from mgdet.models.levels import flatten_map


class PerLevelHead(nn.Module):
    """A convolution of 3 x 3 from each map of the pyramid to the scores, and one to the boxes; no level shares any.

    Structure and initial weights are those of the authors' `multibox` at a24bbe4 (verified).
    """

    def __init__(self, channels: int, per_location: int, num_classes: int, levels: int, with_quality: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classification_head = nn.Module()
        self.regression_head = nn.Module()
        self.classification_head.cls_logits = _layers(channels, per_location * num_classes, levels, -math.log(99))
        self.regression_head.bbox_reg = _layers(channels, per_location * 4, levels)
        self.quality = _layers(channels, per_location, levels) if with_quality else None

    @property
    def class_layers(self) -> list[nn.Conv2d]:
        """Those that depend on the number of classes."""
        return list(self.classification_head.cls_logits)  # type: ignore[arg-type]  # a ModuleList

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits `[B, A, C]`, deltas `[B, A, 4]` and quality logits `[B, A]`."""

        def of_levels(layers: nn.ModuleList, channels: int) -> Tensor:
            maps = [flatten_map(layer(f), channels) for layer, f in zip(layers, features, strict=True)]
            return torch.cat(maps, dim=1)

        logits = of_levels(self.classification_head.cls_logits, self.num_classes)  # type: ignore[arg-type]  # a ModuleList
        deltas = of_levels(self.regression_head.bbox_reg, 4)  # type: ignore[arg-type]  # as above
        return logits, deltas, None if self.quality is None else of_levels(self.quality, 1).squeeze(-1)


def _layers(inputs: int, outputs: int, levels: int, bias: float = 0.0) -> nn.ModuleList:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1) for _ in range(levels)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]  # the layer has one
    return nn.ModuleList(layers)
