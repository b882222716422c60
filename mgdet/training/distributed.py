"""The group of workers as a value, with every collective that training needs; for a single worker they do nothing."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

HOST_TIMEOUT = timedelta(minutes=60)
"""Time limit of collectives on the CPU group: the others wait there while rank 0 computes AP, minutes on large data."""


@dataclass(frozen=True)
class World:
    """This worker's rank and device, and the number of workers."""

    rank: int
    size: int
    device: torch.device
    host_group: Any = None  # a gloo group: objects are exchanged over it, never inside NCCL's watchdog

    @classmethod
    def current(cls, device: torch.device) -> "World":
        """The world of the initialised process group, or a single worker where there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(0, 1, device)
        return cls(
            dist.get_rank(),
            dist.get_world_size(),
            device,
            dist.new_group(backend="gloo", timeout=HOST_TIMEOUT),
        )

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only worker that writes files and metrics."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean of `value` over all workers, computed on the device without waiting for it."""
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.size

    def gather(self, value: T) -> list[T] | None:
        """On rank 0 a list of every worker's `value`, in order of rank; None on the other ranks."""
        if self.size == 1:
            return [value]
        out: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, out, dst=0, group=self.host_group)
        return out

    def broadcast(self, value: T) -> T:
        """On every rank the `value` of rank 0."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=self.host_group)
        return box[0]  # type: ignore[no-any-return]  # what rank 0 passed is a T

    def share(self, value: T) -> list[T]:
        """On every rank a list of every worker's `value`, in order of rank."""
        return self.broadcast(self.gather(value)) or []

    def sync_buffers(self, network: nn.Module) -> None:
        """Copy rank 0's buffers to every worker: the BatchNorm statistics of workers drift apart."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)
