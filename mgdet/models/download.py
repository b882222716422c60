"""Published weights, from torchvision's servers or its cache on this machine."""

import os
from typing import Any

import torch
from torch import Tensor

from mgdet.errors import CheckpointError
from mgdet.files import cache_directory


def fetch(enum: Any) -> dict[str, Tensor]:
    """The state dict of a member of one of torchvision's weights enums, its checksum compared.

    Raises `CheckpointError` where it can be neither downloaded nor found in the cache.
    """
    if not os.path.isabs(torch.hub.get_dir()):  # without a home directory it would be one that is called "~"
        torch.hub.set_dir(str(cache_directory() / "torch" / "hub"))
    try:
        return dict(enum.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # URLError, HTTPError, OSError, RuntimeError (hash): all mean the same to the user
        raise CheckpointError(
            f"{enum} could not be downloaded from {enum.url} ({error}). Without internet access put the file into "
            f"{torch.hub.get_dir()}/checkpoints/ by hand, or set model.weights=none, or give the path of a checkpoint. "
            "TORCH_HOME is another place for downloads, if that one cannot be written to."
        ) from error
