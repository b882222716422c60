"""Between boxes and what a head regresses."""

from typing import NamedTuple

from torch import Tensor

from mgdet.boxes import decode_deltas, encode_deltas
from mgdet.structures import Priors


class AnchorCoder(NamedTuple):
    """Centre shift and log size ratio with respect to the anchor (R-CNN's parametrisation, Girshick et al., 2014)."""

    weights: tuple[float, float, float, float]

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """Regression targets `[B, A, 4]` of one box per prior `[B, A, 4]`; no box may be degenerate."""
        return encode_deltas(boxes, priors.boxes, self.weights)

    def decode(self, deltas: Tensor, priors: Priors) -> Tensor:
        """Boxes `[B, A, 4]` in pixels from raw regression `[B, A, 4]`, always in float32."""
        return decode_deltas(deltas.float(), priors.boxes, self.weights)
