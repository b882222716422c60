"""Norm layers by name, for the pyramid, the heads and the backbones."""

from collections.abc import Callable
from typing import Literal

from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

Norm = Literal["none", "bn", "frozen_bn", "gn"]

GROUPS = 32  # groups of every GroupNorm (Wu and He, ECCV 2018, section 4)


def norm_layer(norm: Norm) -> Callable[[int], nn.Module] | None:
    """The constructor of a norm layer, given the number of channels; None for `none`."""
    layers: dict[Norm, Callable[[int], nn.Module] | None]
    layers = {"none": None, "bn": nn.BatchNorm2d, "frozen_bn": FrozenBatchNorm2d, "gn": group_norm}
    return layers[norm]


def group_norm(channels: int) -> nn.Module:
    """At least two channels in a group: with one, a map of one pixel would be normalised to nothing."""
    groups = min(GROUPS, channels // 2)
    return nn.GroupNorm(groups if channels % groups == 0 else 1, channels)


def exchange_batch_norms(network: nn.Module, norm: Norm, frozen_eps: float | None = None) -> None:
    """Put a `norm` layer in the place of every `BatchNorm2d` of `network`, which keeps its names and draws no number.

    A frozen batch norm has the epsilon of the one that it replaces, or `frozen_eps`.
    """
    if norm == "bn":
        return
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                setattr(parent, name, _instead_of(layer, norm, frozen_eps))


def _instead_of(layer: nn.BatchNorm2d, norm: Norm, frozen_eps: float | None) -> nn.Module:
    if norm == "frozen_bn":
        return FrozenBatchNorm2d(layer.num_features, layer.eps if frozen_eps is None else frozen_eps)  # type: ignore[no-any-return]  # torchvision is untyped
    if norm == "gn":
        return group_norm(layer.num_features)
    return nn.Identity()
