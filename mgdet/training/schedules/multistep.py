"""Steps down at milestones."""

from typing import Annotated, Literal

from pydantic import Field

from mgdet.training.schedules.base import Schedule, Span


class MultiStep(Schedule):
    """Multiply by `gamma` at each milestone; milestones are epochs."""

    name: Literal["multistep"] = "multistep"
    milestones: tuple[Annotated[float, Field(ge=0, le=1e6)], ...] = Field(
        default=(8, 11), description="epochs after which lr is multiplied by gamma"
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="factor of lr at each milestone")

    def factor(self, step: int, warmup: int, span: Span) -> float:
        """See `Schedule`; the milestones count from the start of the training, with the warm-up."""
        return self.gamma ** sum(step >= round(m * span.steps_per_epoch) for m in self.milestones)
