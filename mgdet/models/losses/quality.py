"""The loss of a branch that predicts how well a prior's box fits."""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mgdet.config_base import Config
from mgdet.models.losses.targets import centerness, own_iou
from mgdet.structures import Predictions, Priors

QualityKind = Literal["none", "centerness", "iou"]
"""What a quality branch predicts; `none`: there is no such branch."""


class QualityLoss(Config):
    """Binary cross-entropy between predicted and actual quality of the localization positives.

    `centerness` is FCOS's (Tian et al., ICCV 2019, equation 3). `iou` is that of IoU-aware RetinaNet (Wu et al., 2020),
    except that they let a gradient flow through the actual IoU and we do not: a box must not get worse to be as
    predicted.
    """

    weight: float = Field(default=1.0, ge=0, description="factor of this term in the total loss")

    def __call__(self, kind: QualityKind, predictions: Predictions, boxes: Tensor, priors: Priors) -> Tensor:
        """Loss `[B, A]` of every prior whose target is `boxes` `[B, A, 4]`; `predictions.quality` must be there."""
        if predictions.quality is None:
            raise TypeError(f"a quality loss on {kind} needs a detector that predicts it")
        target = centerness(priors, boxes) if kind == "centerness" else own_iou(predictions, boxes)
        logits = predictions.quality
        return binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
