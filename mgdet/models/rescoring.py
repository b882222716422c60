"""One ranking score from a class score and a predicted localization quality."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from mgdet.config_base import Config


class Rescoring(Config):
    """How a quality branch takes part in the scores; without such a branch nothing is rescored.

    `product` is FCOS's (Tian et al., ICCV 2019, section 3.3), `geometric_mean` its root: the order of the detections is
    the same, the numbers are those of torchvision and of arXiv 2006.09214. `power` is that of IoU-aware RetinaNet (Wu
    et al., 2020).
    """

    combine: Literal["geometric_mean", "product", "power"] = Field(
        default="geometric_mean",
        description="sqrt(p v), p v or p^(1 - exponent) v^exponent of class score p and predicted quality v",
    )
    exponent: float = Field(default=0.5, ge=0, le=1, description="of the quality, for `power` only")

    @property
    def threshold_on_class_score(self) -> bool:
        """Whether the score threshold is for p alone: it was made for p, and a product of two scores is smaller."""
        return self.combine == "product"

    def __call__(self, class_scores: Tensor, quality: Tensor) -> Tensor:
        """Scores `[B, A, C]` in [0, 1] from class scores `[B, A, C]` and qualities `[B, A]`, both in [0, 1]."""
        v = quality.unsqueeze(-1)
        if self.combine == "power":
            return class_scores ** (1 - self.exponent) * v**self.exponent
        combined = class_scores * v
        return combined if self.combine == "product" else combined.sqrt()
