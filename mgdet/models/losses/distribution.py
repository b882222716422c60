"""Distribution focal loss: the distances of a box are learned as distributions (Li et al., NeurIPS 2020)."""

from pydantic import Field
from torch import Tensor

from mgdet.models.coder import Coder
from mgdet.models.losses.box import BoxTerm, BoxWeighting
from mgdet.structures import Predictions

BELOW_LAST = 0.01
"""How far a target stays below the last bin, so that it lies between two."""


class DistributionFocalLoss(BoxTerm):
    """-((y_r - y) log S_l + (y - y_l) log S_r), the mean over the four sides (Generalized Focal Loss, equation 6).

    y is the distance of a side in strides, S the shares of the two bins around it, y_l and y_r. It needs a detector
    whose distances are distributions (`model.bins`), stands beside the box loss, and has that loss's weights and
    divisor. Weight 0.25, the largest class score as the weight of a positive, and the bound of y are the authors'
    (verified: `gfocal_loss.py`, `gfl_head.py`).
    """

    weight: float = Field(default=0.25, ge=0, le=1e6, description="factor of this term in the total")
    weighted_by: BoxWeighting = Field(
        default="score",
        description="what multiplies a positive's weight: nothing, the IoU of its box with its object, the centre-ness "
        "of its prior in the object, or its largest class score",
    )

    def __call__(self, predictions: Predictions, boxes: Tensor, coder: Coder) -> Tensor:
        """Loss `[B, A]` of every prior against one box per prior `[B, A, 4]`."""
        deltas = predictions.deltas
        logits = deltas.reshape(*deltas.shape[:-1], 4, -1).log_softmax(dim=-1)
        last = logits.shape[-1] - 1
        y = coder.encode(boxes, predictions.priors).clamp(0, last - BELOW_LAST)
        lower = y.floor().long()
        below, above = (logits.gather(-1, each.unsqueeze(-1)).squeeze(-1) for each in (lower, lower + 1))
        part = y - lower
        loss: Tensor = -((1 - part) * below + part * above).mean(dim=-1)
        return loss
