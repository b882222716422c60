"""`train.compile`: whether the network is compiled for training, and what that needs."""

import importlib.util
import os
import shutil
from typing import Literal

import torch

from mgdet.data.transforms import FixedSize, TransformConfig
from mgdet.errors import ConfigError
from mgdet.models import Detector
from mgdet.training.precision import TENSOR_CORES

RECOMPILE_LIMIT = 64
"""Compilations of one network, at most: up to 16 sizes of `multi_scale`, each for full batches and the last one of an
epoch. torch's own limit, 8, ends in uncompiled steps without an error."""


def has_few_shapes(transform: TransformConfig) -> bool:
    """Whether the images of the network have one size, or the few of `multi_scale`."""
    return isinstance(transform.resize, FixedSize)


def resolve_compile(transform: TransformConfig, gpu: bool) -> tuple[Literal["on", "off"], str]:
    """What `auto` stands for, and why."""
    if not gpu:
        return "off", "on a CPU the compilation takes longer than it gains"
    if not torch.cuda.is_available():
        return "off", "this machine has no GPU that would show what those of the workers can; say it if they can"
    if torch.cuda.get_device_capability() < TENSOR_CORES:
        return "off", "Triton, which compiles for GPUs, does not know this one"
    if not has_few_shapes(transform):
        return "off", f"with data.transform.resize = {transform.resize.name} images have many shapes"
    return "on", "a GPU, and images of few shapes"


def compile_for_training(detector: Detector, transform: TransformConfig, device: torch.device) -> None:
    """Compile the network at its first steps.

    Raises:
        ConfigError: there is no compiler on this machine.
    """
    compiler = os.environ.get("CXX", "g++")
    missing = [] if shutil.which(compiler) else [f"a C++ compiler ({compiler})"]
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        missing.append("the package triton")
    if missing:
        raise ConfigError(
            f"train.compile = on needs {' and '.join(missing)}, which the machine of this worker lacks. Install that "
            "there (Debian: apt-get install g++), or set train.compile=off"
        )
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    detector.compile_outputs(has_few_shapes(transform))
