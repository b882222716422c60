"""ResNet and what was made of it: ResNeXt and the wide ResNet."""

from typing import ClassVar, Literal

from torch import nn

from mgdet.models.backbones.base import Stages, TorchvisionBackbone


class _Residual(TorchvisionBackbone):
    """The stem and four stages of residual blocks, at strides 4 to 32."""

    unused: ClassVar[tuple[str, ...]] = ("avgpool", "fc")

    def stages(self, body: nn.Module) -> Stages:
        """The stem with its norm, and the four stages."""
        return [["conv1", "bn1", "relu", "maxpool"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]]


class ResNet(_Residual):
    """ResNet (He et al., CVPR 2016), in the bottleneck with the stride in its 3 x 3 convolution."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet50"


class ResNeXt(_Residual):
    """ResNeXt (Xie et al., CVPR 2017): the 3 x 3 convolution of a block in groups."""

    name: Literal["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"] = "resnext50_32x4d"


class WideResNet(_Residual):
    """Wide ResNet (Zagoruyko and Komodakis, BMVC 2016): the 3 x 3 convolution of a block twice as wide."""

    name: Literal["wide_resnet50_2", "wide_resnet101_2"] = "wide_resnet50_2"
