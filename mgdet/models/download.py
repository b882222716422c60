"""Published weights, from torchvision's servers or its cache on this machine."""

from typing import Any

import torch
from torch import Tensor

from mgdet.errors import CheckpointError
from mgdet.files import ensure_home


def fetch(enum: Any) -> dict[str, Tensor]:
    """The state dict of a member of one of torchvision's weights enums, its checksum compared.

    Raises `CheckpointError` where it can be neither downloaded nor found in the cache.
    """
    ensure_home()
    try:
        return dict(enum.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # URLError, HTTPError, OSError, RuntimeError (hash): all mean the same to the user
        raise CheckpointError(
            f"{enum} could not be downloaded from {enum.url} ({error}). Without internet access put the file into "
            f"{torch.hub.get_dir()}/checkpoints/ by hand, or set model.weights=none, or give the path of a checkpoint. "
            "TORCH_HOME is another place for downloads, if that one cannot be written to."
        ) from error
