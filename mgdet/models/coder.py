"""Between boxes and what a head regresses."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mgdet.boxes import decode_deltas, encode_deltas
from mgdet.structures import Priors


class Coder(Protocol):
    """How a detector writes a box with respect to a prior."""

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """Regression targets `[B, A, 4]` of one box per prior `[B, A, 4]`; no box may be degenerate."""

    def decode(self, deltas: Tensor, priors: Priors) -> Tensor:
        """Boxes `[B, A, 4]` in pixels from raw regression `[B, A, 4]`, always in float32."""


class AnchorCoder(NamedTuple):
    """Centre shift and log size ratio with respect to the anchor (R-CNN's parametrisation, Girshick et al., 2014)."""

    weights: tuple[float, float, float, float]

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """See `Coder`."""
        return encode_deltas(boxes, priors.boxes, self.weights)

    def decode(self, deltas: Tensor, priors: Priors) -> Tensor:
        """See `Coder`."""
        return decode_deltas(deltas.float(), priors.boxes, self.weights)


class PointCoder(NamedTuple):
    """Distances from a point to the left, top, right and bottom side, in strides (Tian et al., ICCV 2019, eq. 1)."""

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """See `Coder`; negative where the point lies outside."""
        centres, sizes = self._centres_and_sizes(priors)
        return torch.cat([centres - boxes[..., :2], boxes[..., 2:] - centres], dim=-1) / sizes

    def decode(self, deltas: Tensor, priors: Priors) -> Tensor:
        """See `Coder`."""
        centres, sizes = self._centres_and_sizes(priors)
        distances = deltas.float() * sizes
        return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)

    @staticmethod
    def _centres_and_sizes(priors: Priors) -> tuple[Tensor, Tensor]:
        low, high = priors.boxes[:, :2], priors.boxes[:, 2:]
        return 0.5 * (low + high), (high - low).repeat(1, 2)


class DistributionCoder(NamedTuple):
    """The same distances, each the mean of a distribution over 0 to `bins` strides (Li et al., NeurIPS 2020, eq. 5).

    Raw regression is `[B, A, 4 * (bins + 1)]`: of each side, the logits of the bins.
    """

    bins: int

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """See `Coder`: the distances, `[B, A, 4]`."""
        return PointCoder().encode(boxes, priors)

    def decode(self, deltas: Tensor, priors: Priors) -> Tensor:
        """See `Coder`."""
        share = deltas.float().reshape(*deltas.shape[:-1], 4, self.bins + 1).softmax(dim=-1)
        distances = share @ torch.arange(self.bins + 1, device=share.device, dtype=share.dtype)
        return PointCoder().decode(distances, priors)
