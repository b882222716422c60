"""ResNet + feature pyramid, from torchvision's parts, with the norm layer chosen by configuration."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

Norm = Literal["none", "bn", "frozen_bn", "gn"]
ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101"]

GROUPS = 32  # groups of every GroupNorm (Wu and He, ECCV 2018, section 4)


def norm_layer(norm: Norm, frozen_eps: float = 1e-5) -> Callable[[int], nn.Module] | None:
    """The constructor of a norm layer, given the number of channels; None for `none`."""
    if norm == "none":
        return None
    if norm == "bn":
        return nn.BatchNorm2d
    if norm == "frozen_bn":
        return partial(FrozenBatchNorm2d, eps=frozen_eps)
    return _group_norm


def _group_norm(channels: int) -> nn.Module:
    """At least two channels in a group: with one, a map of one pixel would be normalised to nothing."""
    groups = min(GROUPS, channels // 2)
    return nn.GroupNorm(groups if channels % groups == 0 else 1, channels)


def build_backbone(
    name: ResNetName,
    *,
    norm: Norm,
    fpn_norm: Norm,
    channels: int,
    p6_from: Literal["p5", "c5"],
    trainable_layers: int,
    frozen_eps: float,
) -> nn.Module:
    """P3 to P7 of a ResNet: an ordered dict of five `[B, channels, H/2^l, W/2^l]` maps.

    `trainable_layers` counts the ResNet's stages from the last one (5: all of it, 3: stem and first stage frozen).
    """
    body = getattr(resnet, name)(weights=None, norm_layer=norm_layer(norm, frozen_eps))
    stages = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable_layers]
    trainable = [*stages, "bn1"] if trainable_layers == 5 else stages
    for parameter_name, parameter in body.named_parameters():
        parameter.requires_grad_(any(parameter_name.startswith(layer) for layer in trainable))
    width = body.inplanes // 8
    in_channels = [width * 2, width * 4, width * 8]
    return BackboneWithFPN(  # type: ignore[no-any-return]  # torchvision is untyped
        body,
        {"layer2": "0", "layer3": "1", "layer4": "2"},
        in_channels,
        channels,
        extra_blocks=LastLevelP6P7(channels if p6_from == "p5" else in_channels[-1], channels),
        norm_layer=norm_layer(fpn_norm),
    )
