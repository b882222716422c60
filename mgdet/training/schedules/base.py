"""What every schedule is: a frozen set of hyperparameters, and a function from the step to the learning rate."""

from abc import abstractmethod
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field

from mgdet.config_base import Config


class Span(NamedTuple):
    """How long a training is, in optimizer steps."""

    steps_per_epoch: int
    total_steps: int


class Schedule(Config):
    """A linear warm-up, and then whatever `factor` says. Subclasses have a `name` and keys of their own."""

    name: str
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] | Literal["auto"] = Field(
        default="auto", description="optimizer steps of linear warm-up; auto: 500, at most a tenth of the training"
    )
    warmup_factor: float = Field(default=0.001, gt=0, le=1, description="learning rate of the first step / lr")

    def __call__(self, step: int, span: Span) -> float:
        """Learning rate of optimizer step `step` (from 0), relative to the configured one."""
        warmup = self.warmup(span.total_steps)
        if step < warmup:
            return self.warmup_factor + (1 - self.warmup_factor) * step / warmup
        return self.factor(step, warmup, span)

    @abstractmethod
    def factor(self, step: int, warmup: int, span: Span) -> float:
        """The same after a warm-up of `warmup` steps: `step >= warmup`; both count from the start of the training."""

    def warmup(self, total_steps: int) -> int:
        """Steps of the warm-up in a training of `total_steps`."""
        return min(500, total_steps // 10) if self.warmup_steps == "auto" else self.warmup_steps

    def resolved_for(self, total_steps: int) -> Self:
        """The same schedule for a training of so many steps, every `auto` replaced."""
        return self.model_copy(update={"warmup_steps": self.warmup(total_steps)})
