"""MobileNetV3."""

from typing import Literal

from torch import nn

from mgdet.models.backbones.base import Stages, TorchvisionBackbone, split

STARTS = {"mobilenet_v3_small": (0, 1, 2, 4, 9), "mobilenet_v3_large": (0, 2, 4, 7, 13)}
"""Numbers of the layers with stride 2 (Howard et al., tables 1 and 2)."""


class MobileNetV3(TorchvisionBackbone):
    """MobileNetV3 (Howard et al., ICCV 2019) up to and including its last convolution before pooling."""

    name: Literal["mobilenet_v3_small", "mobilenet_v3_large"] = "mobilenet_v3_large"

    def stages(self, body: nn.Module) -> Stages:
        """The layers of each resolution."""
        return split("features", STARTS[self.name], len(body.features))  # type: ignore[arg-type]  # a Sequential
