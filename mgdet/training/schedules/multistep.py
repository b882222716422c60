"""Steps down at milestones."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from mgdet.config_base import resolved
from mgdet.training.schedules.base import Schedule, Span


class MultiStep(Schedule):
    """Multiply by `gamma` at each milestone; milestones are epochs."""

    name: Literal["multistep"] = "multistep"
    milestones: tuple[Annotated[float, Field(ge=0, le=1e6)], ...] | Literal["auto"] = Field(
        default="auto",
        description="epochs after which lr is multiplied by gamma; auto: two thirds and eleven twelfths of the "
        "training, [8, 11] of 12 epochs",
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="factor of lr at each milestone")

    def factor(self, step: int, warmup: int, span: Span) -> float:
        """See `Schedule`; the milestones count from the start of the training, with the warm-up."""
        return self.gamma ** sum(step >= _step(m, span) for m in resolved(self.milestones))

    def turns(self, span: Span) -> Mapping[str, int]:
        """The milestones."""
        milestones = () if self.milestones == "auto" else self.milestones
        return {f"milestone {m:g}": _step(m, span) for m in milestones}

    def resolved_for(self, span: Span) -> Self:
        """See `Schedule`."""
        milestones = self.milestones
        if milestones == "auto":
            milestones = (round(span.epochs * 2 / 3, 2), round(span.epochs * 11 / 12, 2))
        return super().resolved_for(span).model_copy(update={"milestones": milestones})


def _step(milestone: float, span: Span) -> int:
    return round(milestone * span.steps_per_epoch)
