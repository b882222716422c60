"""Mutual Guidance's PAFPN: a context module, a top-down and a bottom-up pass."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mgdet.models.necks.base import block
from mgdet.models.necks.fssd import Fused, FusedPyramid, TopDown
from mgdet.models.norm import Norm


class PAFPN(Fused):
    """Path aggregation (Liu et al., CVPR 2018) on maps fused by addition, with their global context.

    That of the official code of Mutual Guidance, `pafpn.py` at 51dbb17 (verified); its fusion is ThunderNet's context
    enhancement (Qin et al., ICCV 2019).
    """

    name: Literal["pafpn"] = "pafpn"
    maps: int = Field(default=2, ge=2, le=2, description="maps of the backbone that are fused, from stride 8 on")

    def build(self, widths: Sequence[int], channels: int, p6_from: str, norm: Norm) -> nn.Module:
        """See `Neck`."""
        context, after = Context(widths, channels, norm), BottomUp(channels, self.levels, norm)
        return FusedPyramid(context, channels, self.levels, norm, after)


class Context(nn.Module):
    """The finer of two maps, plus the coarser one enlarged, plus the latter's mean over the image."""

    def __init__(self, widths: Sequence[int], channels: int, norm: Norm) -> None:
        super().__init__()
        self.fine = block(widths[0], channels, norm, side=1)
        self.coarse = block(widths[1], channels, norm, side=1)
        self.context = block(widths[1], channels, norm, side=1)
        self.channels = channels

    def forward(self, maps: list[Tensor]) -> Tensor:
        """`[B, channels, H, W]` at stride 8."""
        fine: Tensor = self.fine(maps[0])
        enlarged: Tensor = interpolate(self.coarse(maps[1]), size=fine.shape[-2:])
        context: Tensor = self.context(maps[1].mean(dim=(2, 3), keepdim=True))
        return fine + enlarged + context


class BottomUp(nn.Module):
    """A top-down pass, then each level plus the finer one through a convolution of stride 2, then one more of 3 x 3."""

    def __init__(self, channels: int, levels: int, norm: Norm) -> None:
        super().__init__()
        self.top_down = TopDown(channels, levels, norm)
        self.down = nn.ModuleList(block(channels, channels, norm, stride=2) for _ in range(levels - 1))
        self.output = nn.ModuleList(block(channels, channels, norm) for _ in range(levels))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """As many maps of the same sizes."""
        sums = self.top_down(levels)
        for i, down in enumerate(self.down):
            sums[i + 1] = sums[i + 1] + down(sums[i])
        return [output(level) for output, level in zip(self.output, sums, strict=True)]
