"""Backbones: what a detector sees an image with. Adding one takes its file and its place in the union below."""

from typing import Annotated

from mgdet.config_base import ByName
from mgdet.models.backbones.base import Backbone, BackboneNorm
from mgdet.models.backbones.convnext import ConvNeXt
from mgdet.models.backbones.mobilenet import MobileNetV3
from mgdet.models.backbones.regnet import RegNet
from mgdet.models.backbones.resnet import ResNet, ResNeXt, WideResNet
from mgdet.models.backbones.swin import Swin
from mgdet.models.backbones.timm import Timm
from mgdet.models.backbones.vgg import VGG

BackboneConfig = Annotated[
    ResNet | ResNeXt | WideResNet | VGG | MobileNetV3 | RegNet | ConvNeXt | Swin | Timm,
    ByName(),
]

__all__ = [
    "VGG",
    "Backbone",
    "BackboneConfig",
    "BackboneNorm",
    "ConvNeXt",
    "MobileNetV3",
    "RegNet",
    "ResNeXt",
    "ResNet",
    "Swin",
    "Timm",
    "WideResNet",
]
