"""The feature pyramid network."""

from collections.abc import Sequence
from typing import Literal

from torch import nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from mgdet.models.necks.base import Neck
from mgdet.models.norm import Norm, norm_layer


class FPN(Neck):
    """The feature pyramid (Lin et al., CVPR 2017) with two more levels (RetinaNet), torchvision's; P3 to P7."""

    name: Literal["fpn"] = "fpn"

    @property
    def strides(self) -> tuple[int, ...]:
        """Five levels."""
        return (8, 16, 32, 64, 128)

    def build(self, widths: Sequence[int], channels: int, p6_from: str, norm: Norm) -> nn.Module:
        """See `Neck`; parameter names are torchvision's."""
        last = LastLevelP6P7(channels if p6_from == "p5" else widths[-1], channels)
        return FeaturePyramidNetwork(list(widths), channels, last, norm_layer(norm))  # type: ignore[no-any-return]  # torchvision is untyped
