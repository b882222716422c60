"""How far a training has come, in numbers that a checkpoint keeps and other workers can continue from."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mgdet.data.order import Segment
from mgdet.records import Count, first_problem


@dataclass
class Position:
    """How far a training has come; part of every checkpoint."""

    epoch: Count = 0  # epochs completed
    micro_step: Count = 0  # micro-batches completed in the current epoch by the current number of ranks
    step: Count = 0  # optimizer steps completed
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    world: Count = 0  # number of ranks that `micro_step` refers to; 0: not known
    batch_size: Count = 0  # images in a micro-batch of each of these ranks
    done: list[list[Count]] = field(default_factory=list)  # `Segment`s of this epoch with other ranks

    @classmethod
    def read(cls, state: dict[str, Any]) -> "Position":
        """The position in a checkpoint. Raises `ValueError` where it is none that could have been written there."""
        if unknown := state.keys() - {f.name for f in fields(cls)}:
            raise ValueError(f"position: unknown {min(unknown)!r}")
        try:
            position: Position = TypeAdapter(cls).validate_python(state)
        except ValidationError as error:
            raise ValueError(f"position: {first_problem(error)}") from error
        if any(len(segment) != len(Segment._fields) for segment in position.done):
            raise ValueError(f"done: {position.done}: expected lists of {', '.join(Segment._fields)}")
        return position

    def on(self, world: int, batch_size: int) -> "Position":
        """The same position for these ranks; if they are not the ranks so far, what those did is appended to `done`."""
        here = replace(self, world=world, batch_size=batch_size)
        if self.micro_step and self.world and (self.world, self.batch_size) != (world, batch_size):
            here.done, here.micro_step = [*self.done, [self.world, self.batch_size, self.micro_step]], 0
        return here
