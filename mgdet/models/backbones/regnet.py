"""RegNet."""

from typing import ClassVar, Literal

from torch import nn

from mgdet.models.backbones.base import Stages, TorchvisionBackbone


class RegNet(TorchvisionBackbone):
    """RegNetX, and RegNetY with squeeze and excitation (Radosavovic et al., CVPR 2020)."""

    unused: ClassVar[tuple[str, ...]] = ("avgpool", "fc")

    name: Literal[
        "regnet_x_400mf",
        "regnet_x_800mf",
        "regnet_x_1_6gf",
        "regnet_x_3_2gf",
        "regnet_x_8gf",
        "regnet_x_16gf",
        "regnet_x_32gf",
        "regnet_y_400mf",
        "regnet_y_800mf",
        "regnet_y_1_6gf",
        "regnet_y_3_2gf",
        "regnet_y_8gf",
        "regnet_y_16gf",
        "regnet_y_32gf",
    ] = "regnet_y_1_6gf"

    def stages(self, body: nn.Module) -> Stages:
        """The stem and the four stages of the trunk."""
        return [["stem"], *([f"trunk_output.block{i}"] for i in (1, 2, 3, 4))]
