"""Processes that train together, without Ray."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing as mp


def both(worker: Callable[..., None], directory: Path, *args: object, seconds: float) -> list[Any]:
    """`ranks` of two processes."""
    return ranks(2, worker, directory, *args, seconds=seconds)


def ranks(count: int, worker: Callable[..., None], directory: Path, *args: object, seconds: float) -> list[Any]:
    """What `worker(rank, directory, *args)` has saved as `rank-0.pt`, `rank-1.pt`, ... in the directory.

    A collective that one of them misses ends after `seconds`, not in a hang.
    """
    context = mp.start_processes(worker, (str(directory), *args), nprocs=count, join=False, start_method="forkserver")
    deadline = time.monotonic() + seconds
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f"{count} workers did not finish in {seconds:g} s")
    return [torch.load(directory / f"rank-{rank}.pt", weights_only=False) for rank in range(count)]
