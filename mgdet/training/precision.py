"""`train.precision`: in which number format the network computes."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which the network computes in `precision`: with `fp32` it changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
