"""What makes a result: the program, the libraries and the machine, as records, checkpoints and MLflow keep it."""

import functools
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mgdet
from mgdet.text import redacted

LIBRARIES = (
    *("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "faster-coco-eval", "hotcoco", "pycocotools"),
    *("scipy", "ray", "mlflow", "optuna", "pyarrow"),
)
"""Those that may change a result: networks, decoders, metrics. The last four compute nothing of a training; optuna is
the searcher of sweeps."""
_SECONDS = 10.0


def made_by() -> dict[str, Any]:
    """JSON: versions, git commit of mgdet, command and hardware of this process. No user or password in any URI."""
    return {**_program(), "command": redacted(shlex.join(sys.argv))[:2000], "hardware": _hardware()}


def as_tags(made: dict[str, Any]) -> dict[str, str]:
    """The same as tags of an MLflow run."""
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    tags = {
        "mgdet.version": made["mgdet"],
        "mgdet.versions": versions,
        "mgdet.command": made["command"],
        "mgdet.hardware": ", ".join(f"{key} {value}" for key, value in made["hardware"].items()),
    }
    if made["git_commit"]:
        tags |= {"mlflow.source.git.commit": made["git_commit"], "mgdet.git_dirty": str(made["git_dirty"]).lower()}
    return tags


def as_facts(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same as names and texts for a page, without the command."""
    commit = f", commit {made['git_commit'][:12]}" if made["git_commit"] else ""
    changed = " with changes" if made["git_dirty"] else ""
    return [
        ("mgdet", f"{made['mgdet']}{commit}{changed}"),
        ("hardware", ", ".join(f"{key} {value}" for key, value in made["hardware"].items())),
    ]


@functools.cache
def _program() -> dict[str, Any]:
    commit, dirty = _git(Path(mgdet.__file__).resolve().parents[1])
    versions = {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}}
    versions["cuda"] = torch.version.cuda or "none"
    return {"mgdet": mgdet.__version__, "git_commit": commit, "git_dirty": dirty, "versions": versions}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _git(root: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout whose root this is, and whether it has changes; None where it is no checkout."""

    def ask(*arguments: str) -> str:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=_SECONDS, check=True
        )
        return answer.stdout.strip()

    try:
        # An installed package may lie in a virtual environment inside somebody else's checkout
        if Path(ask("rev-parse", "--show-toplevel")).resolve() != root:
            return None, None
        return ask("rev-parse", "HEAD"), bool(ask("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpus": ", ".join(gpus) or "none",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
