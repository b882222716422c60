"""The random number generators that a training draws from: how they start, and their states."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def make_reproducible(seed: int, rank: int, deterministic: bool) -> None:
    """Seed the generators, and let torch choose the algorithms that always give the same sums, as far as it can."""
    torch.manual_seed(seed)  # the same weights everywhere; data has its own generators
    random.seed(seed + rank)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  # untyped; costs a tenth of a step
    torch.backends.cudnn.benchmark = not deterministic


def generator_state(device: torch.device) -> dict[str, Any]:
    """The states of torch's generators, for the CPU and `device`, and of Python's; fit for a checkpoint."""
    state = {"torch": torch.get_rng_state(), "python": json.dumps(random.getstate())}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_generator_state(state: dict[str, Any], device: torch.device) -> None:
    """Inverse of `generator_state`."""
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = json.loads(state["python"])
    random.setstate((version, tuple(numbers), gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def replayed(state: dict[str, Any], device: torch.device) -> Iterator[None]:
    """Draw the numbers that follow `state` within the block, and go on after it as if it had drawn none."""
    now = generator_state(device)
    set_generator_state(state, device)
    try:
        yield
    finally:
        set_generator_state(now, device)
