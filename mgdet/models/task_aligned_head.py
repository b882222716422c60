"""TOOD's task-aligned head (Feng et al., ICCV 2021, arXiv 2108.07755, section 3.2)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, logsigmoid

from mgdet.models.norm import Norm, norm_layer

LAYERS = 6
"""Convolutions of the tower that both tasks share."""
NORMAL, NARROW = 0.01, 0.001
"""Standard deviations of weights before training: of most layers, and of attention and offsets."""
NEVER_ONE = -1e-7
"""Bound of the logarithm of a score: a score of 1 has no logit."""


class LevelOutput(NamedTuple):
    """What the head says of one level."""

    logits: Tensor  # [B, classes, H, W] of the aligned scores
    boxes: Tensor  # [B, channels of the boxes, H, W], raw
    offsets: Tensor  # [B, 8, H, W] shift (y, x) in locations of left, top, right and bottom
    quality: Tensor | None  # [B, 1, H, W]


class TaskAlignedHead(nn.Module):
    """A shared tower, a choice of its layers for each task, and two maps that align what the tasks predict.

    The tower's outputs, all `LAYERS` together, are the task-interactive features (equation 1). Each task weighs these
    layers by an attention computed from their mean over the map (equations 2 and 3) and reduces them to one map. The
    score of a class is sqrt(p * M), with a map M of probabilities (equation 5), and each side of a box is read at a
    place of its own near the location, which is predicted too (equation 6). Structure, sizes and initial weights are
    those of the authors' `tood_head.py` (verified); the numbers of the equations are from memory (inferred).

    Args:
        channels: of the maps and of the tower.
        num_classes: of the scores.
        box_channels: what is predicted for a box at a location.
        norm: of the tower and the reductions; `gn` as published.
        with_quality: whether a quality is predicted beside the boxes; it is not in the paper.
    """

    def __init__(self, channels: int, num_classes: int, box_channels: int, norm: Norm, with_quality: bool) -> None:
        super().__init__()
        layer, together = norm_layer(norm), channels * LAYERS
        self.tower = nn.ModuleList(
            nn.Sequential(
                _convolution(channels, channels, 3, bias=layer is None),
                *([layer(channels)] if layer else []),
                nn.ReLU(),
            )
            for _ in range(LAYERS)
        )
        self.classification_head = _Task(channels, layer)
        self.classification_head.cls_logits = _convolution(channels, num_classes, 3)
        nn.init.constant_(self.classification_head.cls_logits.bias, -math.log(99))  # type: ignore[arg-type]  # it has one
        self.classification_head.alignment = nn.Sequential(
            _convolution(together, channels // 4, 1), nn.ReLU(), _convolution(channels // 4, 1, 3)
        )
        nn.init.constant_(self.classification_head.alignment[-1].bias, -math.log(99))  # type: ignore[arg-type]  # as above
        self.regression_head = _Task(channels, layer)
        self.regression_head.bbox_reg = _convolution(channels, box_channels, 3)
        self.regression_head.alignment = nn.Sequential(
            _convolution(together, channels // 4, 1, std=NARROW),
            nn.ReLU(),
            _convolution(channels // 4, 8, 3, std=NARROW),
        )
        if with_quality:
            self.regression_head.bbox_ctrness = _convolution(channels, 1, 3)

    def forward(self, feature: Tensor) -> LevelOutput:
        """The outputs of one level from its map `[B, channels, H, W]`."""
        layers = []
        for block in self.tower:
            feature = block(feature)
            layers.append(feature)
        together = torch.cat(layers, dim=1)
        average = together.mean(dim=(2, 3), keepdim=True)
        classes, boxes = self.classification_head, self.regression_head
        for_classes, for_boxes = classes(together, average), boxes(together, average)
        quality = boxes.bbox_ctrness(for_boxes) if hasattr(boxes, "bbox_ctrness") else None
        logits = aligned_logits(classes.cls_logits(for_classes), classes.alignment(together))
        return LevelOutput(logits, boxes.bbox_reg(for_boxes), boxes.alignment(together), quality)


class _Task(nn.Module):
    """What a task takes of the shared layers; its last layers are added by the head."""

    cls_logits: nn.Conv2d
    bbox_reg: nn.Conv2d
    bbox_ctrness: nn.Conv2d
    alignment: nn.Sequential

    def __init__(self, channels: int, norm: Callable[[int], nn.Module] | None) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            _convolution(channels * LAYERS, channels // 8, 1, std=NARROW),
            nn.ReLU(),
            _convolution(channels // 8, LAYERS, 1, std=NARROW),
            nn.Sigmoid(),
        )
        self.reduction = _convolution(channels * LAYERS, channels, 1, bias=norm is None)
        self.norm = norm(channels) if norm else nn.Identity()

    def forward(self, layers: Tensor, average: Tensor) -> Tensor:
        """The task's map `[B, C, H, W]` from all layers `[B, L * C, H, W]` and their means `[B, L * C, 1, 1]`.

        The attention is multiplied into the weights of the reduction, which is the same and needs less memory.
        """
        batch, _, height, width = layers.shape
        channels = self.reduction.out_channels
        attention = self.attention(average).view(batch, 1, LAYERS, 1)
        weight = self.reduction.weight.view(1, channels, LAYERS, channels) * attention
        reduced = torch.bmm(weight.flatten(2), layers.flatten(2))
        if self.reduction.bias is not None:
            reduced = reduced + self.reduction.bias[:, None]
        return self.norm(reduced.view(batch, channels, height, width)).relu()  # type: ignore[no-any-return]  # a module's


def _convolution(inputs: int, outputs: int, side: int, *, std: float = NORMAL, bias: bool = True) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=bias)
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _block(channels: int, norm: Callable[[int], nn.Module] | None) -> nn.Sequential:
    convolution = _convolution(channels, channels, 3, bias=norm is None)
    return nn.Sequential(convolution, *([norm(channels)] if norm else []), nn.ReLU())


def aligned_logits(logits: Tensor, alignment: Tensor) -> Tensor:
    """The logits of sqrt(sigmoid(logits) * sigmoid(alignment)), float32: what losses and rescoring take."""
    log_score = (0.5 * (logsigmoid(logits.float()) + logsigmoid(alignment.float()))).clamp(max=NEVER_ONE)
    return log_score - torch.log(-torch.expm1(log_score))


def moved(sides: Tensor, offsets: Tensor) -> Tensor:
    """A map of four values, each read bilinearly at a place of its own; 0 beyond the map.

    Args:
        sides: `[B, 4, H, W]`.
        offsets: `[B, 8, H, W]` for each value how far away, in rows and in columns.
    """
    batch, _, height, width = sides.shape
    shift = offsets.float().view(batch * 4, 2, height, width)
    row = torch.arange(height, device=sides.device)[:, None] + shift[:, 0]
    column = torch.arange(width, device=sides.device) + shift[:, 1]
    place = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dim=-1)
    read = grid_sample(sides.float().reshape(batch * 4, 1, height, width), place, align_corners=False)
    return read.view(batch, 4, height, width)


def centres(feature: Tensor, image_size: tuple[int, int], offset: float) -> Tensor:
    """Where the locations of a map lie in the image, `[2, H, W]` x and y in pixels."""
    height, width = feature.shape[-2:]
    y = (torch.arange(height, device=feature.device) + offset) * (image_size[0] // height)
    x = (torch.arange(width, device=feature.device) + offset) * (image_size[1] // width)
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])


def corners(centre: Tensor, distances: Tensor) -> Tensor:
    """Sides x1, y1, x2, y2 `[B, 4, H, W]` of boxes at distances `[B, 4, H, W]` around centres `[2, H, W]`."""
    return torch.cat([centre - distances[:, :2], centre + distances[:, 2:]], dim=1)


def distances(centre: Tensor, sides: Tensor) -> Tensor:
    """Inverse of `corners`; negative where a centre lies outside."""
    return torch.cat([centre - sides[:, :2], sides[:, 2:] - centre], dim=1)
