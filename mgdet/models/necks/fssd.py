"""FSSD's pyramid, and the top-down pass that Mutual Guidance's RetinaNet puts on it."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mgdet.models.necks.base import Neck, block
from mgdet.models.norm import Norm

Maps = dict[str, Tensor]


class Fused(Neck):
    """The keys of necks that fuse some of the backbone's maps at stride 8 and make all levels of the result."""

    levels: int = Field(default=4, ge=1, le=6, description="maps of the pyramid, from stride 8 on")
    maps: int = Field(default=3, ge=2, le=3, description="maps of the backbone that are fused, from stride 8 on")

    @property
    def inputs(self) -> int:
        """`maps`."""
        return self.maps

    @property
    def strides(self) -> tuple[int, ...]:
        """From 8 on."""
        return tuple(8 * 2**level for level in range(self.levels))


class FSSD(Fused):
    """Maps fused at stride 8 by concatenation, then convolutions of stride 2 (Li and Zhou, 2017, arXiv 1712.00960).

    `fssd_fpn` adds a top-down pass, the "RetinaNet" of Mutual Guidance. Both are those of the official code of Mutual
    Guidance at a24bbe4, `fssd.py` and `retinanet.py` (verified), which fuses two maps of VGG-16 and three of ResNet-18.
    """

    name: Literal["fssd", "fssd_fpn"] = "fssd"

    def build(self, widths: Sequence[int], channels: int, p6_from: str, norm: Norm) -> nn.Module:
        """See `Neck`."""
        top_down = TopDown(channels, self.levels, norm) if self.name == "fssd_fpn" else None
        return FusedPyramid(Concatenation(widths[: self.maps], channels, norm), channels, self.levels, norm, top_down)


class Concatenation(nn.Module):
    """Each map through a convolution of 1 x 1, enlarged to the finest, all together."""

    def __init__(self, widths: Sequence[int], channels: int, norm: Norm) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(block(width, channels, norm, side=1) for width in widths)
        self.channels = channels * len(widths)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """`[B, channels of all, H, W]` of maps from stride 8 on."""
        size = maps[0].shape[-2:]
        each = [interpolate(t(m), size=size) for t, m in zip(self.transforms, maps, strict=False)]
        return torch.cat(each, dim=1)


class FusedPyramid(nn.Module):
    """A fusion to stride 8, one more convolution there, and one of stride 2 for each further level."""

    def __init__(self, fusion: nn.Module, channels: int, levels: int, norm: Norm, after: nn.Module | None) -> None:
        super().__init__()
        self.fusion = fusion
        inputs: int = fusion.channels  # type: ignore[assignment]  # of `Concatenation` and `Context`
        first = block(inputs, channels, norm)
        self.extract = nn.ModuleList([first, *(block(channels, channels, norm, stride=2) for _ in range(levels - 1))])
        self.after = after
        slow_statistics(self)

    def forward(self, maps: Maps) -> Maps:
        """The pyramid's maps by name, the finest first."""
        x, levels = self.fusion(list(maps.values())), []
        for convolution in self.extract:
            x = convolution(x)
            levels.append(x)
        levels = self.after(levels) if self.after is not None else levels
        return {str(i): level for i, level in enumerate(levels)}


class TopDown(nn.Module):
    """Each level through a convolution of 1 x 1, plus the coarser one enlarged, through one of 3 x 3."""

    def __init__(self, channels: int, levels: int, norm: Norm) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(block(channels, channels, norm, side=1) for _ in range(levels))
        self.output = nn.ModuleList(block(channels, channels, norm) for _ in range(levels))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """As many maps of the same sizes."""
        sums = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        for i in range(len(sums) - 1, 0, -1):
            sums[i - 1] = sums[i - 1] + interpolate(sums[i], size=sums[i - 1].shape[-2:])
        return [output(level) for output, level in zip(self.output, sums, strict=True)]


def slow_statistics(network: nn.Module) -> None:
    """The momentum of the official code's batch norms."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.01
