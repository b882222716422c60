"""Files of tensors, read so that they cannot run code: the one place that calls `torch.load`."""

import os
import re
from typing import Any

import torch

from mgdet.errors import CheckpointError
from mgdet.files import require_regular
from mgdet.text import first_line


def load_tensors(file: Any, name: str) -> dict[str, Any]:
    """A dictionary of tensors and plain values from a path or file object, on the CPU; `name` stands in errors.

    Raises `CheckpointError` where it is something else, or holds anything that would have to be executed.
    """
    try:
        if isinstance(file, str | os.PathLike):
            require_regular(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{name}: not a file that can be read safely{_reason(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{name}: holds a {type(state).__name__}, expected a dict of tensors")
    return state


def _reason(error: Exception) -> str:
    """What torch stumbled over, in a line; the text around it advises to read the file unsafely."""
    found = re.search(r"GLOBAL (\S+) was not", str(error))
    if found:
        return f"; it holds {found[1]}, which would have to be executed"
    first = first_line(error).partition(". ")[0]
    is_sentence = " " in first  # what is read as a pickle fails with any word of it
    return f": {first}" if is_sentence and "weights_only" not in first.lower() else ""
