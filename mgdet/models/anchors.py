"""Priors over a feature pyramid."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torchvision.models.detection.anchor_utils import AnchorGenerator

from mgdet.config_base import Config
from mgdet.structures import PriorLayout, Priors


class AnchorConfig(Config):
    """RetinaNet's anchors (Lin et al., ICCV 2017, section 4): `scales` sizes in an octave times the aspect ratios."""

    sizes: tuple[Annotated[float, Field(ge=1, le=16_384)], ...] = Field(
        default=(32, 64, 128, 256, 512), min_length=5, max_length=5, description="smallest side on P3..P7, pixels"
    )
    scales: int = Field(default=3, ge=1, le=8, description="sizes per octave")
    ratios: tuple[Annotated[float, Field(ge=0.01, le=100)], ...] = Field(
        default=(0.5, 1.0, 2.0), min_length=1, max_length=16, description="height / width"
    )

    @property
    def per_location(self) -> int:
        """Anchors at each place of a feature map."""
        return self.scales * len(self.ratios)

    def generator(self) -> AnchorGenerator:
        """torchvision's generator for these anchors; sizes are whole pixels, as in its `retinanet_resnet50_fpn`."""
        sizes = tuple(tuple(int(s * 2 ** (i / self.scales)) for i in range(self.scales)) for s in self.sizes)
        return AnchorGenerator(sizes, (tuple(self.ratios),) * len(sizes))


def grid_priors(
    generator: AnchorGenerator,
    image_size: tuple[int, int],
    grids: Sequence[tuple[int, int]],
    device: torch.device,
    layout: PriorLayout,
) -> Priors:
    """The priors of every level for a padded `image_size` (height, width) and the levels' `grids` (height, width)."""
    strides = [(image_size[0] // h, image_size[1] // w) for h, w in grids]
    generator.set_cell_anchors(torch.float32, device)
    levels = generator.grid_anchors([list(g) for g in grids], [list(s) for s in strides])
    counts = tuple(len(level) for level in levels)
    stride = torch.tensor([float(max(s)) for s in strides], device=device)
    of_prior = stride.repeat_interleave(torch.tensor(counts, device=device))
    return Priors(torch.cat(levels).float(), of_prior, counts, layout)
