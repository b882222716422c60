"""Rescoring: a predicted localization quality joins the class score at test time."""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from mgdet.config_base import Config

VECTOR = 64
"""A multiple of the elements that PyTorch computes at once, on any processor."""


class Rescoring(Config):
    """How class score p and predicted quality v become the score that ranks the detections.

    `geometric_mean`: sqrt(p v), torchvision's FCOS; `product`: p v, FCOS's paper (Tian et al., ICCV 2019, section 3.3);
    `power`: p^(1 - exponent) v^exponent, IoU-aware RetinaNet (Wu et al., 2020). Geometric mean and product rank alike:
    they differ in what `postprocess.score_threshold` is compared with, sqrt(p v) or, for the product, p. A product of
    two scores is small, and the threshold was made for one.
    """

    combine: Literal["geometric_mean", "product", "power"] = Field(
        default="geometric_mean", description="how class score and predicted quality become the score of a detection"
    )
    exponent: float = Field(default=0.5, ge=0, le=1, description="of `power`: share of the predicted quality")

    def __call__(self, score: Tensor, quality: Tensor) -> Tensor:
        """Scores `[B, A, C]` from class scores `[B, A, C]` in [0, 1] and quality logits `[B, A]`."""
        v = quality.sigmoid().unsqueeze(-1)
        if self.combine == "product":
            return score * v
        if self.combine == "geometric_mean":
            return (score * v).sqrt()
        return score ** (1 - self.exponent) * v**self.exponent

    def scores(self, logits: Tensor, quality: Tensor | None) -> dict[str, Tensor]:
        """Scores `[B, A, C]` by name from class logits `[B, A, C]` and quality logits; the last one ranks the boxes."""
        raw = logits.sigmoid()
        return {"raw": raw} if quality is None else {"raw": raw, "rescored": self(raw, quality)}

    def scores_of_some(self, logits: Tensor, quality: Tensor | None) -> dict[str, Tensor]:
        """`scores` of some of the predictions, to the bit what they are among all of them.

        PyTorch computes the last elements of a tensor one by one where they do not fill a vector register, and its
        sigmoid and power then differ by one bit. So the tensors are filled up.
        """
        count = logits.shape[1]
        spare = -count % VECTOR
        logits = pad(logits, (0, 0, 0, spare))
        quality = None if quality is None else pad(quality, (0, spare))
        return {name: score[:, :count] for name, score in self.scores(logits, quality).items()}

    def gate(self, score: Tensor, rescored: Tensor) -> Tensor:
        """The scores that the threshold applies to."""
        return score if self.combine == "product" else rescored
