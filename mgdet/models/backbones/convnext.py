"""ConvNeXt."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import nn
from torchvision.models.convnext import LayerNorm2d

from mgdet.models.backbones.base import BackboneNorm, Stages, TorchvisionBackbone, split


class ConvNeXt(TorchvisionBackbone):
    """ConvNeXt (Liu et al., CVPR 2022); as in its detectors each map has a LayerNorm of its own."""

    norms: ClassVar[tuple[BackboneNorm, ...]] = ("ln",)
    why_no_other_norm: ClassVar[str] = "its blocks have a LayerNorm, which no norm of a map's channels replaces"

    name: Literal["convnext_tiny", "convnext_small", "convnext_base", "convnext_large"] = "convnext_tiny"

    def stages(self, body: nn.Module) -> Stages:
        """The stem and the four stages, each with the downsampling before it."""
        return split("features", (0, 1, 2, 4, 6), 8)

    def output_norms(self, network: nn.Module) -> Sequence[nn.Module]:
        """One for each map."""
        widths = [network.features[i][-1].layer_scale.shape[0] for i in (3, 5, 7)]  # type: ignore[index, union-attr]  # torchvision is untyped
        return [LayerNorm2d(width, eps=1e-6) for width in widths]
