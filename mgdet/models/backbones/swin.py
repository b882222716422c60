"""Swin Transformer."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import nn
from torchvision.ops import Permute

from mgdet.models.backbones.base import BackboneNorm, Stages, TorchvisionBackbone, split


class Swin(TorchvisionBackbone):
    """Swin Transformer (Liu et al., ICCV 2021; V2: CVPR 2022); as in its detectors each map has a LayerNorm."""

    norms: ClassVar[tuple[BackboneNorm, ...]] = ("ln",)
    why_no_other_norm: ClassVar[str] = "its blocks have a LayerNorm, which no norm of a map's channels replaces"
    unused: ClassVar[tuple[str, ...]] = ("norm", "permute", "avgpool", "flatten", "head")

    name: Literal["swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b"] = "swin_t"

    def stages(self, body: nn.Module) -> Stages:
        """The embedding of the patches and the four stages, each with the merging of patches before it."""
        return split("features", (0, 1, 2, 4, 6), 8)

    def output_norms(self, network: nn.Module) -> Sequence[nn.Module]:
        """One for each map, which also turns `[B, H, W, C]` into `[B, C, H, W]`."""
        widths = [network.features[i][-1].norm1.normalized_shape[0] for i in (3, 5, 7)]  # type: ignore[index, union-attr]  # torchvision is untyped
        return [nn.Sequential(nn.LayerNorm(width), Permute([0, 3, 1, 2])) for width in widths]
