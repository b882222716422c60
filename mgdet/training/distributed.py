"""The other workers, as one value: every collective that training needs, each the identity for a single worker."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

HOST_TIMEOUT = timedelta(minutes=60)
"""Bound of collectives between hosts' memories: rank 0 computes AP meanwhile, which takes minutes on large data."""


@dataclass(frozen=True)
class World:
    """This worker's place among `size` workers."""

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
        """True on the one worker that writes."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Mean over workers, on the device, without waiting for it."""
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.size

    def gather(self, value: T) -> list[T] | None:
        """Every worker's `value` at rank 0 (in rank order), None elsewhere."""
        if self.size == 1:
            return [value]
        out: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, out, dst=0, group=self.host_group)
        return out

    def broadcast(self, value: T) -> T:
        """Rank 0's `value` everywhere."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=self.host_group)
        return box[0]  # type: ignore[no-any-return]  # what rank 0 passed is a T

    def sync_buffers(self, network: nn.Module) -> None:
        """Give every worker rank 0's buffers: BatchNorm statistics drift apart between workers."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.size > 1:
            dist.barrier(group=self.host_group)
