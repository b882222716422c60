"""Correlation loss (Kahraman et al., AAAI 2023): scores should rank boxes as their IoUs do."""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mgdet.models.losses.base import LossInputs, LossTerm, Term
from mgdet.models.losses.targets import box_targets, class_of, own_iou

MIN_VARIANCE = 1e-12
"""Below it (a standard deviation of 1e-6) a side counts as constant: rounding alone gives float32 scores that much."""


class CorrelationLoss(LossTerm):
    """1 - rho(score, IoU) over the classification positives of a worker's batch; gradients reach the scores only.

    concordance: Lin's coefficient (1989); pearson; spearman: Pearson's of the ranks, those of the scores made
    differentiable by pairwise sigmoids in the manner of Qin et al. (2010). Kahraman et al. report 38.7 -> 39.8 AP for
    ATSS on COCO (known to us second-hand).

    What their code calls spearman is exactly `pearson`: its soft ranks, with regularisation strength 1 on values in
    (0, 1), are the values plus a constant (docs/papers/correlation_loss.md). Its RetinaNet has `kind: pearson,
    per_level: true, min_samples: 2, weight: 0.1`; its ATSS `kind: concordance, unbiased: true, min_samples: 2`.
    Terms of workers and micro-batches are averaged by their images, however many positives each has.
    """

    kind: Literal["concordance", "pearson", "spearman"] = Field(
        default="concordance",
        description="which correlation of score and IoU; what the authors' code calls spearman is pearson here",
    )
    per_level: bool = Field(
        default=False, description="one correlation for each level of the pyramid, averaged over those that have one"
    )
    min_samples: int = Field(
        default=3, ge=2, le=2**20, description="positives from which a correlation is taken; theirs is 2"
    )
    unbiased: bool = Field(
        default=False, description="concordance: variances over n - 1, as in the authors' code, instead of Lin's n"
    )
    weight: float = Field(default=0.2, ge=0, le=1e6, description="factor of 1 - correlation in the total loss")
    max_samples: int = Field(
        default=1024, ge=3, le=2**20, description="spearman: positives that are compared with each other, at most"
    )
    temperature: float = Field(
        default=0.25,
        ge=1e-6,
        le=1e6,
        description="spearman: softness of the ranks, in standard deviations of the scores",
    )

    def __call__(self, scores: Tensor, overlaps: Tensor, positive: Tensor) -> Tensor:
        """1 - rho, a scalar, of scores and IoUs `[B, A]` in [0, 1] where `positive`.

        0 without a gradient where rho is undefined: fewer than `min_samples` positives, or all scores or all IoUs the
        same.
        """
        return self._of(scores, overlaps, positive)[0]

    def _of(self, scores: Tensor, overlaps: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and whether it is defined."""
        x, y, mask = scores.flatten(), overlaps.detach().flatten(), positive.flatten()
        if self.kind == "spearman":
            x, y, mask = _sample(x, y, mask, self.max_samples)
            x, y = soft_ranks(x, mask, self.temperature), ranks(y, mask)
        moments = _Moments.of(x, y, mask, self.min_samples)
        rho = moments.concordance(self.unbiased) if self.kind == "concordance" else moments.pearson()
        return torch.where(moments.defined, 1 - rho, 0.0), moments.defined

    def term(self, inputs: LossInputs) -> Term:
        """See `LossTerm`; it has no normaliser, since each worker correlates its own positives."""
        predictions, targets, labels = inputs.predictions, inputs.targets, inputs.assignment.cls
        boxes, positive = box_targets(labels, targets, predictions.priors)
        score = predictions.logits.gather(2, class_of(labels, targets)[..., None]).squeeze(2).sigmoid()
        values = score, own_iou(predictions, boxes), positive
        if not self.per_level:
            return Term(self(*values))
        counts = list(predictions.priors.level_counts)
        levels = zip(*(torch.split(value, counts, dim=1) for value in values), strict=True)
        losses, defined = zip(*(self._of(*level) for level in levels), strict=True)
        return Term(torch.stack(losses).sum() / torch.stack(defined).sum().clamp(min=1))


class _Moments(NamedTuple):
    """Masked moments of two variables, and whether both vary. Divisors are 1 where they do not: 0 * inf is NaN."""

    mean_x: Tensor
    mean_y: Tensor
    var_x: Tensor
    var_y: Tensor
    covariance: Tensor
    samples: Tensor
    defined: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, mask: Tensor, min_samples: int) -> "_Moments":
        n = mask.sum()

        def mean(values: Tensor) -> Tensor:
            return torch.where(mask, values, 0.0).sum() / n.clamp(min=1)

        mean_x, mean_y = mean(x), mean(y)
        dx, dy = x - mean_x, y - mean_y
        var_x, var_y = mean(dx * dx), mean(dy * dy)
        defined = (n >= min_samples) & (var_x > MIN_VARIANCE) & (var_y > MIN_VARIANCE)
        return cls(mean_x, mean_y, var_x, var_y, mean(dx * dy), n, defined)

    def concordance(self, unbiased: bool) -> Tensor:
        """2 cov / (var_x + var_y + (mean_x - mean_y)^2) (Lin, Biometrics 1989); `unbiased`: moments over n - 1."""
        factor = self.samples / (self.samples - 1).clamp(min=1) if unbiased else 1.0
        divisor = factor * (self.var_x + self.var_y) + (self.mean_x - self.mean_y) ** 2
        return 2 * factor * self.covariance / torch.where(self.defined, divisor, 1.0)

    def pearson(self) -> Tensor:
        """cov / (std_x std_y)."""
        x, y = (torch.where(self.defined, var, 1.0).sqrt() for var in (self.var_x, self.var_y))
        return self.covariance / (x * y)


def _sample(x: Tensor, y: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """At most `count` of those in the mask: all, or always the same pseudorandom ones. Other entries may come along."""
    index = torch.arange(len(mask), device=mask.device)
    # Knuth's multiplicative hash: distinct for all indices below 2^32, and any part of the range is spread evenly
    key = torch.where(mask, index * 2654435761 % 2**32, -1)
    chosen = key.topk(min(count, len(mask))).indices
    return x[chosen], y[chosen], mask[chosen]


def soft_ranks(x: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Differentiable ranks from 1 among the entries in the mask, `[n] -> [n]`; exact ones as the temperature goes to 0.

    1/2 + sum_j sigmoid((x_i - x_j) / temperature) over standardised values (Qin et al., Information Retrieval 2010).
    """
    n = mask.sum().clamp(min=1)
    centred = x - torch.where(mask, x, 0.0).sum() / n
    variance = torch.where(mask, centred**2, 0.0).sum() / n
    scale = temperature * torch.where(variance > MIN_VARIANCE, variance, 1.0).sqrt()
    standard = centred / scale
    above = (standard[:, None] - standard[None, :]).sigmoid()
    return 0.5 + torch.where(mask, above, 0.0).sum(dim=1)


def ranks(x: Tensor, mask: Tensor) -> Tensor:
    """Ranks from 1 among the entries in the mask, the average rank for equal ones, `[n] -> [n]`."""
    above = (x[:, None] > x[None, :]).to(x.dtype) + 0.5 * (x[:, None] == x[None, :])
    return 0.5 + torch.where(mask, above, 0.0).sum(dim=1)
