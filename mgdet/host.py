"""The machine and the command that mgdet was started with."""

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from mgdet.errors import ConfigError, MgdetError


def require_linux() -> None:
    """Refuse to start on an operating system that mgdet was not made for. Raises `MgdetError`."""
    if not hasattr(os, "sched_getaffinity"):
        raise MgdetError(
            f"mgdet runs on Linux only, and this is {platform.system() or 'another system'}. Run it on a Linux "
            "machine, in a Linux container, or on Windows in WSL 2."
        )


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the block and restore them after it."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def safe_path() -> AbstractContextManager[None]:
    """Let no Python process that is started within the block import from its working directory.

    A `numpy.py` that lies where a command is typed would run in processes that Ray and data loaders start.
    """
    return environment({"PYTHONSAFEPATH": "1"})


def command(name: str) -> str:
    """How the user of this process types the sub-command `name`: `mgdet train`.

    In a process that was started as a script of `jobs/` it is `python jobs/train.py`, as `mgdet` need not be installed.
    """
    started = Path(sys.argv[0])
    if started.suffix == ".py" and started.parent.name == "jobs":
        return f"python {started.with_name(name)}.py"
    return f"mgdet {name}"


class Rank(NamedTuple):
    """This process among those that torchrun has started."""

    rank: int
    world: int
    """Processes on all machines."""
    local_rank: int
    local_world: int
    """Processes on this machine."""


def torchrun_rank() -> Rank | None:
    """Which of torchrun's processes this is; None where torchrun, or what sets the same variables, did not start it.

    Raises `ConfigError` where the variables contradict each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(os.environ.get(name) for name in (*names, "MASTER_ADDR", "MASTER_PORT")):
        return None
    found = {name: os.environ.get(name, "") for name in (*names, "LOCAL_WORLD_SIZE")}
    found["LOCAL_WORLD_SIZE"] = found["LOCAL_WORLD_SIZE"] or found["WORLD_SIZE"]
    if all(value.isdecimal() for value in found.values()):
        rank = Rank(*(int(value) for value in found.values()))
        if rank.rank < rank.world and rank.local_rank < rank.local_world <= rank.world:
            return rank
    raise ConfigError(
        f"{', '.join(f'{name}={value!r}' for name, value in found.items())}: not what torchrun sets, which is "
        "0 <= RANK < WORLD_SIZE and 0 <= LOCAL_RANK < LOCAL_WORLD_SIZE <= WORLD_SIZE. Start with torchrun, or "
        "unset RANK, WORLD_SIZE and LOCAL_RANK"
    )


def speaks() -> bool:
    """Whether this process tells the user what all processes of torchrun know alike: the first one does."""
    return os.environ.get("RANK", "0") == "0" or torchrun_rank() is None
