"""The machine and the command that mgdet was started with."""

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from mgdet.errors import MgdetError


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
