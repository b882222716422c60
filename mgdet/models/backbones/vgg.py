"""VGG with batch norm; Mutual Guidance (Zhang et al., ACCV 2020) was measured on its 16 layers."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import nn
from torchvision.models import vgg

from mgdet.models.backbones.base import Stages, TorchvisionBackbone, split

LAYOUTS = {"vgg11_bn": "A", "vgg13_bn": "B", "vgg16_bn": "D", "vgg19_bn": "E"}
"""Columns of table 1 of the paper."""


class VGG(TorchvisionBackbone):
    """VGG (Simonyan and Zisserman, ICLR 2015) with a batch norm after each convolution.

    The maps are the outputs of the fourth and the fifth block (SSD's conv4_3 and conv5_3) and the latter's after
    pooling. The fully connected layers are left out.
    """

    unused: ClassVar[tuple[str, ...]] = ("classifier",)

    name: Literal["vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"] = "vgg16_bn"

    def network(self) -> nn.Module:
        """torchvision's `features`, initialised as it does, without the 120 million weights of its classifier."""
        features = vgg.make_layers(vgg.cfgs[LAYOUTS[self.name]], batch_norm=True)
        for layer in features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # the layer has one
        network = nn.Module()
        network.features = features
        return network

    def stages(self, body: nn.Module) -> Stages:
        """The five blocks, each with the pooling that ends it."""
        features = list(body.features)  # type: ignore[arg-type]  # a Sequential
        ends = [i + 1 for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
        return split("features", [0, *ends[:-1]], len(features))

    def maps(self, stages: Stages) -> Sequence[str]:
        """The last two blocks before their pooling, and the last one after it."""
        return [stages[-2][-2], stages[-1][-2], stages[-1][-1]]
