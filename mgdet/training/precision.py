"""`train.precision`: in which number format the network computes, and what the hardware makes of it."""

import functools
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mgdet.config_base import resolved

Precision = Literal["fp32", "bf16", "fp16"]
Asked = Precision | Literal["auto"]
"""What a configuration may ask for."""

TENSOR_CORES = (7, 0)
"""The first compute capability whose GPUs multiply matrices of fp16 faster than of fp32."""


class Hardware(NamedTuple):
    """What computes a training: its name for messages, and the half-precision formats that it has instructions for."""

    name: str
    bf16: bool
    fp16: bool

    @property
    def best(self) -> Precision:
        """bf16 where there is hardware for it, since it needs no scaling of the gradient; else on GPUs fp16."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"

    def why(self) -> str:
        """The reason for `best`."""
        has = {"bf16": "instructions for bf16", "fp16": "those for fp16, but not for bf16", "fp32": "none for bf16"}
        return f"{self.name} has {has[self.best]}"


def hardware(device: torch.device) -> Hardware:
    """The hardware behind `device`: for a GPU its compute capability decides, for a CPU its instructions.

    A CPU counts as one with bf16 if it has `avx512_bf16` or `amx_bf16` (on Arm `bf16`), and if oneDNN, which torch's
    convolutions run on, may use them. fp16 is for GPUs only: torch's kernels for CPUs are slow with it.
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"
        return Hardware(name, torch.cuda.is_bf16_supported(including_emulation=False), (major, minor) >= TENSOR_CORES)
    found = [flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in _cpu_flags()]
    bf16 = bool(found) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return Hardware(f"the CPU ({found[0]})" if bf16 else "the CPU", bf16, False)


def resolve_precision(asked: Asked, device: torch.device) -> Precision:
    """What `auto` stands for on this device; any other value as it is."""
    return hardware(device).best if asked == "auto" else asked


def autocast(device: torch.device, precision: Asked) -> torch.autocast:
    """A context in which the network computes in `precision`, which is not `auto`: with `fp32` it changes nothing."""
    dtype = torch.float16 if resolved(precision) == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def gradient_scaler(device: torch.device, precision: Asked) -> torch.amp.GradScaler:
    """The scaler that keeps gradients of fp16 from vanishing; for other formats it changes nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def emulation(device: torch.device, precision: Asked) -> str | None:
    """A sentence with the measured factor where this hardware has no instructions for `precision`; None where it has.

    Without them the values are converted before and after each operation.
    """
    found = hardware(device)
    if precision in ("fp32", "auto") or (found.bf16 if precision == "bf16" else found.fp16):
        return None
    factor = _seconds(device, precision) / _seconds(device, "fp32")
    return (
        f"train.precision = {precision}: {found.name} has no instructions for it, so it is emulated: a convolution "
        f"takes {factor:.1f} times as long as in fp32. train.precision=auto chooses {found.best} here"
    )


def _seconds(device: torch.device, precision: Asked) -> float:
    """The shortest of three times that a convolution takes forward and backward."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.Conv2d(64, 64, 3, padding=1).to(device)
    image = torch.ones(2, 64, 24, 24, device=device, requires_grad=True)

    def once() -> None:
        with autocast(device, precision):
            out: Tensor = layer(image)
        out.float().sum().backward()  # type: ignore[no-untyped-call]  # torch's stub
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    once()
    return min(_timed(once) for _ in range(3))


def _timed(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """The instruction sets in the kernel's description of the first CPU; empty where it gives none."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        return frozenset()
    listed = (value for key, _, value in lines if key.strip() in ("flags", "Features"))
    return frozenset(next(listed, "").split())
