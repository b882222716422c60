"""The capture of a step whose loss or gradient is not finite: everything that is needed to find out why."""

import io
import json
import logging
from typing import Any

import torch
from torch import Tensor, nn

from mgdet.errors import CheckpointError, NonFiniteError
from mgdet.host import command
from mgdet.safe_load import load_tensors
from mgdet.storage import locate
from mgdet.structures import Batch, Targets

logger = logging.getLogger(__name__)

_KINDS: dict[str, type | tuple[type, ...]] = {"model": dict, "config": dict, "step": int, "epoch": (int, float)}
"""What stands in a capture beside its batches and the data set."""


def capture(
    run_uri: str,
    *,
    rank: int,
    step: int,
    epoch: float,
    batches: list[Batch],
    network: nn.Module,
    config: dict[str, Any],
    data: dict[str, Any],
) -> str:
    """Write this rank's micro-batches and the weights before the step to the run; returns the path of the file.

    Args:
        run_uri: path or URI of the run's directory.
        rank: this worker's rank.
        step: optimizer steps completed.
        epoch: epochs completed, with a fraction.
        batches: the micro-batches of the step.
        network: the network, whose weights are those before the step.
        config: the experiment as plain values.
        data: the fingerprint of the data set.
    """
    directory = locate(run_uri) / "nonfinite"
    directory.mkdir()
    file = directory / f"step-{step:08d}-rank-{rank}.pt"
    buffer = io.BytesIO()
    torch.save(
        {
            "model": {k: v.cpu() for k, v in network.state_dict().items()},
            "batches": [_flatten(b.to("cpu")) for b in batches],
            "config": config,
            "data": json.dumps(data),
            "step": step,
            "epoch": epoch,
        },
        buffer,
    )
    file.write(buffer.getvalue())
    return str(file)


def non_finite_error(step: int, path: str, values: dict[str, float]) -> NonFiniteError:
    """The error that every rank raises, with `values` (such as losses) by name and the `path` of its own capture."""
    shown = ", ".join(f"{k} = {v:g}" for k, v in values.items())
    return NonFiniteError(
        f"step {step}: the gradient is not finite ({shown}). Weights and batch of every rank, as they were before this "
        f"step, are kept; see which layer and which image it comes from with\n    {command('replay')} {path}\n"
        "What usually helps: a lower train.optimizer.lr, a longer train.schedule.warmup_steps, train.clip_norm=10, "
        "train.precision=fp32."
    )


def load_capture(path: str) -> dict[str, Any]:
    """The content of a file that `capture` wrote: `model`, `batches`, `config`, `data`, `step`, `epoch`.

    Raises:
        CheckpointError: it cannot be read, or is something else.
    """
    try:
        state = load_tensors(io.BytesIO(locate(path).read_bytes()), path)
        state["batches"] = [_unflatten(b) for b in state["batches"]]
        if not all(isinstance(state[key], kind) for key, kind in _KINDS.items()):
            raise ValueError(f"expected {', '.join(_KINDS)}, each as it was written")
    except Exception as error:
        raise CheckpointError(f"{path}: not a capture of a non-finite step: {error}") from error
    return state


def _flatten(batch: Batch) -> dict[str, Tensor]:
    fields = batch.fields()
    targets: Targets = fields.pop("targets")
    return {**fields, **{f"targets.{k}": v for k, v in targets.fields().items()}}


def _unflatten(fields: dict[str, Tensor]) -> Batch:
    targets = {k.removeprefix("targets."): v for k, v in fields.items() if k.startswith("targets.")}
    rest = {k: v for k, v in fields.items() if not k.startswith("targets.")}
    return Batch(targets=Targets(**targets), **rest)
