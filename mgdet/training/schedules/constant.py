"""No schedule but the warm-up."""

from typing import Literal

from mgdet.training.schedules.base import Schedule, Span


class Constant(Schedule):
    """The configured learning rate from the end of the warm-up on."""

    name: Literal["constant"] = "constant"

    def factor(self, step: int, warmup: int, span: Span) -> float:
        """See `Schedule`."""
        return 1.0
