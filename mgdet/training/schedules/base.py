"""What every schedule is: a frozen set of hyperparameters, and a function from the step to the learning rate."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field

from mgdet.config_base import Config, resolved
from mgdet.errors import ConfigError


class Span(NamedTuple):
    """How long a training is, in optimizer steps."""

    steps_per_epoch: int
    total_steps: int

    @property
    def epochs(self) -> float:
        """Its length in epochs."""
        return self.total_steps / self.steps_per_epoch


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

    def turns(self, span: Span) -> Mapping[str, int]:
        """The steps that the configuration names, after which the rate changes its course, by what messages call them.

        The warm-up, and what an `auto` stands for, are not among them. `cautions` compares them with the training.
        """
        return {}

    def warmup(self, total_steps: int) -> int:
        """Steps of the warm-up in a training of `total_steps`."""
        return min(500, total_steps // 10) if self.warmup_steps == "auto" else self.warmup_steps

    def resolved_for(self, span: Span) -> Self:
        """The same schedule for a training of this length, every `auto` replaced.

        Raises `ConfigError` where the warm-up does not end within the training.
        """
        warmup = self.warmup(span.total_steps)
        if warmup >= span.total_steps > 0:
            highest = self(span.total_steps - 1, span)
            raise ConfigError(
                f"train.schedule.warmup_steps = {warmup}: the training ends after {_steps(span)}, when the learning "
                f"rate has reached {_percent(highest)} of train.optimizer.lr. Allowed: less than {span.total_steps}, "
                "or auto (500 steps, at most a tenth of the training)"
            )
        return self.model_copy(update={"warmup_steps": warmup})

    def cautions(self, span: Span) -> list[str]:
        """One sentence for each thing that the schedule asks for and a training of this length does not have.

        Every step of the training is looked at, so that this holds for any schedule. Raises `ConfigError` where the
        rate of a step is not a finite number of at least 0.
        """
        schedule = self.resolved_for(span)
        warmup = resolved(schedule.warmup_steps)
        found = []
        for name, step in self.turns(span).items():
            if step >= span.total_steps:
                found.append(f"train.schedule: {name} never comes, because the training ends after {_steps(span)}")
            elif step < warmup:
                found.append(f"train.schedule: {name} comes within the warm-up of {warmup} steps")
        rates = [schedule(step, span) for step in range(span.total_steps)]
        for step, rate in enumerate(rates):
            if not (math.isfinite(rate) and rate >= 0):
                raise ConfigError(f"train.schedule ({self.name}) gives step {step} a learning rate of {rate} * lr")
        if rates and max(rates) < 0.995:
            found.append(
                f"train.schedule: the learning rate reaches {_percent(max(rates))} of train.optimizer.lr at most"
            )
        if self.turns(span) and len(set(rates[warmup:])) == 1:
            found.append("train.schedule: after the warm-up the learning rate never changes")
        return found


def _percent(factor: float) -> str:
    return f"{100 * factor:.3g} %"


def _steps(span: Span) -> str:
    return f"{span.total_steps} steps ({span.epochs:g} epochs of {span.steps_per_epoch})"
