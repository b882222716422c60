"""Priors over a feature pyramid."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

from mgdet.config_base import Config
from mgdet.structures import PriorLayout, Priors


class AnchorConfig(Config):
    """RetinaNet's anchors (Lin et al., ICCV 2017, section 4): `scales` sizes in an octave times the aspect ratios."""

    sizes: tuple[Annotated[float, Field(ge=1, le=16_384)], ...] = Field(
        default=(32, 64, 128, 256, 512),
        min_length=1,
        max_length=8,
        description="smallest side on each level of the pyramid, P3 to P7 by default, pixels",
    )
    scales: int = Field(default=3, ge=1, le=8, description="sizes per octave")
    ratios: tuple[Annotated[float, Field(ge=0.01, le=100)], ...] = Field(
        default=(0.5, 1.0, 2.0), min_length=1, max_length=16, description="height / width"
    )

    rounded: bool = Field(
        default=True,
        description="sides in whole pixels, as in torchvision; false: exact, as in MMDetection and Mutual Guidance",
    )
    offset: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="where anchors are centred in their cell, in strides from its upper left: 0 as in torchvision and "
        "MMDetection, 0.5 as in Mutual Guidance",
    )

    fit_image: bool = Field(
        default=False, description="no side is longer than the image's, as in Mutual Guidance; false: as long as it is"
    )

    @property
    def per_location(self) -> int:
        """Anchors at each place of a feature map."""
        return self.scales * len(self.ratios)

    def generator(self) -> AnchorGenerator:
        """torchvision's generator for these anchors; `rounded` to whole pixels as in its `retinanet_resnet50_fpn`."""
        exact = tuple(tuple(s * 2 ** (i / self.scales) for i in range(self.scales)) for s in self.sizes)
        ratios = (tuple(self.ratios),) * len(exact)
        if not self.rounded:
            return ExactAnchorGenerator(exact, ratios)
        return AnchorGenerator(tuple(tuple(int(s) for s in sizes) for sizes in exact), ratios)


class ExactAnchorGenerator(AnchorGenerator):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's generator without the rounding of the corners."""

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008  # torchvision's signature
    ) -> Tensor:
        """Anchors `[R * S, 4]` around the origin, of area scale^2 each, ratio by ratio."""
        root = torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        side = torch.tensor(scales, dtype=dtype, device=device)
        half = 0.5 * torch.stack([side / root, side * root], dim=-1).flatten(0, 1)
        return torch.cat([-half, half], dim=1)


def grid_priors(
    generator: AnchorGenerator,
    image_size: tuple[int, int],
    grids: Sequence[tuple[int, int]],
    device: torch.device,
    layout: PriorLayout,
    offset: float = 0.0,
    fit_image: bool = False,
) -> Priors:
    """The priors of every level for a padded `image_size` (height, width) and the levels' `grids` (height, width).

    Location (i, j) of a level is at `(i + offset) * stride` in each direction. With `fit_image` no side of a prior is
    longer than the image's.
    """
    strides = [(image_size[0] // h, image_size[1] // w) for h, w in grids]
    generator.set_cell_anchors(torch.float32, device)
    levels = generator.grid_anchors([list(g) for g in grids], [list(s) for s in strides])
    shifts = [torch.tensor([w, h, w, h], device=device) * offset for h, w in strides]
    levels = [level + shift for level, shift in zip(levels, shifts, strict=True)]
    counts = tuple(len(level) for level in levels)
    stride = torch.tensor([float(max(s)) for s in strides], device=device)
    of_prior = stride.repeat_interleave(torch.tensor(counts, device=device))
    boxes = torch.cat(levels).float()
    return Priors(within_image(boxes, image_size) if fit_image else boxes, of_prior, counts, layout)


def within_image(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes `[A, 4]` around the same centres, no side longer than that of an image (height, width)."""
    centre, half = 0.5 * (boxes[:, :2] + boxes[:, 2:]), 0.5 * (boxes[:, 2:] - boxes[:, :2])
    x, y = half.unbind(1)
    half = torch.stack([x.clamp(max=0.5 * image_size[1]), y.clamp(max=0.5 * image_size[0])], dim=1)
    return torch.cat([centre - half, centre + half], dim=1)
