"""Optimizer, learning-rate schedule and the moving average of the weights."""

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mgdet.training.config import AdamWConfig, CosineConfig, EMAConfig, MultiStepConfig, SGDConfig


def build_optimizer(network: nn.Module, config: SGDConfig | AdamWConfig) -> Optimizer:
    """The optimizer over all trainable parameters, one-dimensional ones (biases, norms) in a group of their own."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    flat_decay = config.weight_decay if config.decay_norm_and_bias else 0.0
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": flat_decay},
    ]
    if isinstance(config, SGDConfig):
        return SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    return AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate_factor(
    config: MultiStepConfig | CosineConfig, step: int, steps_per_epoch: int, total_steps: int
) -> float:
    """Learning rate of optimizer step `step` (from 0), relative to the configured one."""
    warmup = resolve_warmup(config, total_steps)
    if step < warmup:
        return config.warmup_factor + (1 - config.warmup_factor) * step / warmup
    if isinstance(config, MultiStepConfig):
        return config.gamma ** sum(step >= round(m * steps_per_epoch) for m in config.milestones)
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return config.final_factor + (1 - config.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def resolve_warmup(config: MultiStepConfig | CosineConfig, total_steps: int) -> int:
    """Warm-up steps: as configured, or 500 and at most a tenth of the training."""
    return min(500, total_steps // 10) if config.warmup_steps == "auto" else config.warmup_steps


def build_schedule(
    optimizer: Optimizer, config: MultiStepConfig | CosineConfig, steps_per_epoch: int, total_steps: int
) -> LambdaLR:
    """The schedule as a pure function of the step."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(config, step, steps_per_epoch, total_steps))


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
