"""Between boxes and what a head regresses."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mgdet.boxes import decode_deltas, encode_deltas
from mgdet.structures import Priors


class Coder(Protocol):
    """How a box is written with respect to its prior."""

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """Regression targets `[B, A, 4]` of one box per prior `[B, A, 4]`; no box may be degenerate."""

    def decode(self, deltas: Tensor, priors: Priors) -> Tensor:
        """Boxes `[B, A, 4]` in pixels from raw regression `[B, A, 4]`, always in float32."""


class AnchorCoder(NamedTuple):
    """Centre shift and log size ratio with respect to the anchor (R-CNN's parametrisation, Girshick et al., 2014)."""

    weights: tuple[float, float, float, float]

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """Regression targets `[B, A, 4]` of one box per prior `[B, A, 4]`; no box may be degenerate."""
        return encode_deltas(boxes, priors.boxes, self.weights)

    def decode(self, deltas: Tensor, priors: Priors) -> Tensor:
        """Boxes `[B, A, 4]` in pixels from raw regression `[B, A, 4]`, always in float32."""
        return decode_deltas(deltas.float(), priors.boxes, self.weights)


class PointCoder:
    """Distances from the prior's centre to the box's left, top, right and bottom (Tian et al., ICCV 2019, equation 1).

    They are counted in the prior's sides, that is in strides, as torchvision's FCOS does: a level's numbers are then of
    the same size on every level. Negative where the centre lies beyond that side.
    """

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """Distances `[B, A, 4]` of one box per prior `[B, A, 4]`."""
        centres, sizes = _centres_and_sizes(priors)
        boxes = boxes.float()
        return torch.cat([centres - boxes[..., :2], boxes[..., 2:] - centres], dim=-1) / sizes

    def decode(self, deltas: Tensor, priors: Priors) -> Tensor:
        """Boxes `[B, A, 4]` in pixels from distances `[B, A, 4]`, always in float32."""
        centres, sizes = _centres_and_sizes(priors)
        distances = deltas.float() * sizes
        return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)


def _centres_and_sizes(priors: Priors) -> tuple[Tensor, Tensor]:
    """`[A, 2]` (x, y) and `[A, 4]` (width, height, width, height), pixels."""
    first, last = priors.boxes[:, :2], priors.boxes[:, 2:]
    return 0.5 * (first + last), (last - first).repeat(1, 2)
