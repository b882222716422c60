"""Optimizer and the moving average of the weights."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn, optim

from mgdet.training.config import EMAConfig
from mgdet.training.optimizers import Optimizer


def build_optimizer(network: nn.Module, optimizer: Optimizer) -> optim.Optimizer:
    """The optimizer over all trainable parameters, one-dimensional ones (biases, norms) in a group of their own."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    flat_decay = optimizer.weight_decay if optimizer.decay_norm_and_bias else 0.0
    return optimizer(
        [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": optimizer.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": flat_decay},
        ]
    )


N = TypeVar("N", bound=nn.Module)


class EMA(Generic[N]):
    """Moving average of parameters and copy of buffers; the counter is part of its state."""

    def __init__(self, network: N, config: EMAConfig) -> None:
        self.config = config
        self.module: N = deepcopy(network).eval().requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Fold the current weights in."""
        self.updates += 1
        decay = min(self.config.decay, (1 + self.updates) / (self.config.warmup + self.updates))
        average, current = [], []
        for ours, theirs in _floating_pairs(self.module, network):
            average.append(ours)
            current.append(theirs)
        torch._foreach_lerp_(average, current, 1 - decay)
        for (_, ours), (_, theirs) in zip(self.module.named_buffers(), network.named_buffers(), strict=True):
            ours.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """Weights and counter."""
        return {"weights": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.module.load_state_dict(state["weights"])
        self.updates = state["updates"]


def _floating_pairs(a: nn.Module, b: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    for ours, theirs in zip(a.parameters(), b.parameters(), strict=True):
        yield ours, theirs.detach()
