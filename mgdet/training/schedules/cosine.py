"""Half a cosine."""

import math
from typing import Literal

from pydantic import Field

from mgdet.training.schedules.base import Schedule, Span


class Cosine(Schedule):
    """Half a cosine from lr to lr * final_factor (Loshchilov and Hutter, ICLR 2017, equation 5, one cycle)."""

    name: Literal["cosine"] = "cosine"
    final_factor: float = Field(
        default=0.0, ge=0, le=1, description="learning rate / lr that the cosine reaches at its end"
    )

    def factor(self, step: int, warmup: int, span: Span) -> float:
        """See `Schedule`; the cosine spans the steps after the warm-up, and beyond them it stays at its end."""
        progress = min(1.0, (step - warmup) / max(1, span.total_steps - warmup))
        return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
