"""A pyramid of maps over any backbone."""

import torch
from torch import Tensor, nn

from mgdet.errors import ConfigError
from mgdet.models.backbones.base import STRIDES
from mgdet.models.necks import FPN, Neck
from mgdet.models.norm import Norm

PROBE = 64
"""Side in pixels of the black image that finds out a backbone's maps."""


class Pyramid(nn.Module):
    """A neck over a backbone's maps, P3 to P7 by default, under the names of torchvision's `BackboneWithFPN`.

    `body` gives a list of maps at strides 8, 16 and 32 for images `[B, 3, H, W]`. Raises `ConfigError`, which begins
    with `name`, where it does not.
    """

    def __init__(
        self, body: nn.Module, name: str, *, channels: int, p6_from: str, norm: Norm = "none", neck: Neck | None = None
    ) -> None:
        super().__init__()
        self.body = body
        neck = neck or FPN()
        self.fpn = neck.build(_channels_of_maps(body, name), channels, p6_from, norm)
        if neck.inputs < len(STRIDES):
            _freeze_what_is_not_used(body, neck.inputs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps `[B, channels, H/2^l, W/2^l]` from P3 on."""
        maps: dict[str, Tensor] = self.fpn({str(i): m for i, m in enumerate(self.body(images))})
        return maps


@torch.no_grad()
def _channels_of_maps(body: nn.Module, name: str) -> list[int]:
    """What a black image shows: no random number is drawn, no statistic changes."""
    training = body.training
    body.eval()
    try:
        maps: list[Tensor] = body(torch.zeros(1, 3, PROBE, PROBE))
    except (AssertionError, RuntimeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"{name}: refuses an image of {PROBE} x {PROBE} pixels ({error}); a detector needs a backbone that takes "
            "images of any size"
        ) from error
    body.train(training)
    found = [tuple(PROBE / side for side in m.shape[2:]) for m in maps]
    if found != [(s, s) for s in STRIDES]:
        shown = ", ".join(" x ".join(f"{s:g}" for s in sides) for sides in found)
        raise ConfigError(f"{name}: gives maps at strides {shown}; the pyramid needs 8, 16, 32")
    return [m.shape[1] for m in maps]


@torch.enable_grad()
def _freeze_what_is_not_used(body: nn.Module, maps: int) -> None:
    """Parameters that only later maps depend on do not train: DDP would wait for their gradient."""
    trained = [p for p in body.parameters() if p.requires_grad]
    if not trained:
        return
    training = body.training
    body.eval()
    found: list[Tensor] = body(torch.zeros(1, 3, PROBE, PROBE))
    used = torch.stack([m.sum() for m in found[:maps]]).sum()
    body.train(training)
    for parameter, gradient in zip(trained, torch.autograd.grad(used, trained, allow_unused=True), strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
