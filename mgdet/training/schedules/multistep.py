"""Steps down at milestones."""

from typing import Literal

from pydantic import Field

from mgdet.training.schedules.base import Schedule, Span


class MultiStep(Schedule):
    """Multiply by `gamma` at each milestone; milestones are epochs."""

    name: Literal["multistep"] = "multistep"
    milestones: tuple[float, ...] = (8, 11)
    gamma: float = Field(default=0.1, gt=0, le=1)

    def factor(self, step: int, warmup: int, span: Span) -> float:
        """See `Schedule`; the milestones count from the start of the training, with the warm-up."""
        return self.gamma ** sum(step >= round(m * span.steps_per_epoch) for m in self.milestones)
