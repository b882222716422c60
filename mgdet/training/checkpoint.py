"""Checkpoints of a run: committed as a whole, verified when read; the best and the latest are kept.

A checkpoint is `checkpoints/step-00001234.pt` and, written last, `step-00001234.json`: its size, SHA-256, step and
metrics. A `.pt` that has no `.json`, or does not match it, was cut off or damaged, and is never loaded.
Files are read with `weights_only=True`: a checkpoint from elsewhere cannot run code.
"""

import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from mgdet.errors import CheckpointError
from mgdet.evaluation.evaluator import AP
from mgdet.safe_load import load_tensors
from mgdet.storage import Location, locate

logger = logging.getLogger(__name__)

LATEST_KEPT = 2  # one more than needed: should the newest be damaged, a whole one is left
ATTEMPTS = 3
T = TypeVar("T")


class CheckpointInfo(BaseModel):
    """The record of a checkpoint, its `.json`: what is known of it without loading it."""

    file: str
    """Name of the `.pt` in the same directory."""
    step: int
    """Optimizer steps completed."""
    epoch: int
    """Epochs completed."""
    size: int
    """Bytes of the `.pt`."""
    sha256: str
    metrics: dict[str, float]
    """The evaluation of these very weights; empty where there was none."""


class CheckpointStore:
    """The checkpoints of one run, under `uri` (a local directory or a `pyarrow.fs` URI)."""

    def __init__(self, uri: str, keep_best: int = 1) -> None:
        self.keep_best = keep_best
        self.directory = locate(uri) / "checkpoints"

    def save(self, state: dict[str, Any], *, step: int, epoch: int, metrics: dict[str, float]) -> CheckpointInfo:
        """Write and commit a checkpoint, then drop those that are no longer wanted.

        Raises `CheckpointError` after `ATTEMPTS` failures; nothing that was saved before is touched in that case.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        info = CheckpointInfo(
            file=f"step-{step:08d}.pt",
            step=step,
            epoch=epoch,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            metrics=metrics,
        )
        try:
            _retry(lambda: self._commit(info, data))
        except OSError as error:
            raise CheckpointError(
                f"checkpoint of step {step} ({len(data) / 2**20:.0f} MiB) not written to {self.directory}: {error}"
            ) from error
        self._prune()
        return info

    def committed(self) -> list[CheckpointInfo]:
        """The committed checkpoints, oldest first. Raises `CheckpointError` where the storage cannot be read."""
        found = []
        with self._reading():
            names = _retry(self.directory.children)
            for record in (self.directory / name for name in names if name.endswith(".json")):
                try:
                    found.append(CheckpointInfo.model_validate_json(_retry(record.read_bytes)))
                except (ValueError, FileNotFoundError) as error:  # damaged, or deleted meanwhile
                    logger.warning("%s is not readable and is passed over: %s", record, error)
        return sorted(found, key=lambda i: i.step)

    def complete(self) -> list[CheckpointInfo]:
        """The committed checkpoints whose file has the recorded size, oldest first; the content is not read.

        Raises `CheckpointError` where the storage cannot be read.
        """
        infos = self.committed()
        with self._reading():
            sizes = _retry(self.directory.children) if infos else {}
        return [info for info in infos if sizes.get(info.file) == info.size]

    def best(self) -> CheckpointInfo | None:
        """The complete checkpoint with the best AP (the later one on a tie), or None."""
        return best_of(self.complete())

    def latest(self) -> tuple[CheckpointInfo, dict[str, Any]] | None:
        """The newest undamaged checkpoint with its content, or None; damaged ones are logged and passed over.

        Raises `CheckpointError` if none can be read because of the storage: training must not start anew then.
        """
        unreadable: CheckpointError | None = None
        for info in reversed(self.committed()):
            try:
                return info, self.load(info)
            except CheckpointError as error:
                logger.warning("%s; trying the one before it", error)
                if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                    unreadable = error
        if unreadable is not None:
            raise CheckpointError(f"{unreadable}. Nothing was trained; try again when the storage can be read.")
        return None

    def load(self, info: CheckpointInfo) -> dict[str, Any]:
        """The content of a checkpoint, as `save` got it. Raises `CheckpointError` if it is damaged or unreadable."""
        path = self.path(info)
        try:
            data = _retry(path.read_bytes)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        verify(path, data, info)
        return read_checkpoint(io.BytesIO(data), str(path))

    def path(self, info: CheckpointInfo) -> Location:
        """The checkpoint's file."""
        return self.directory / info.file

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raise `CheckpointError` for an `OSError` within the block: a run whose storage fails must not start anew."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"the checkpoints in {self.directory} cannot be read: {error}") from error

    def _commit(self, info: CheckpointInfo, data: bytes) -> None:
        self.directory.mkdir()
        self.path(info).replace(data)
        record_of(self.path(info)).replace(info.model_dump_json(indent=1).encode())

    def _prune(self) -> None:
        try:
            found = self.committed()
        except CheckpointError as error:  # the next save does it
            logger.warning("old checkpoints are not deleted: %s", error)
            return
        keep = {i.file for i in [*found[-LATEST_KEPT:], *_by_score(found)[-self.keep_best :]]}
        for info in found:
            if info.file in keep:
                continue
            for file in (record_of(self.path(info)), self.path(info)):
                try:
                    file.delete()
                except OSError as error:  # it only takes up space
                    logger.warning("%s could not be deleted: %s", file, error)


def best_of(infos: Iterable[CheckpointInfo]) -> CheckpointInfo | None:
    """The checkpoint with the best AP (the later one on a tie), or None if none was evaluated."""
    return next(reversed(_by_score(infos)), None)


def _by_score(infos: Iterable[CheckpointInfo]) -> list[CheckpointInfo]:
    """The checkpoints that were evaluated, from the worst AP to the best, then by step: the best is the last."""
    sign = 1 if AP.direction == "max" else -1
    return sorted((i for i in infos if AP.name in i.metrics), key=lambda i: (sign * i.metrics[AP.name], i.step))


def verify(file: Location, data: bytes, info: CheckpointInfo) -> None:
    """Check that `data`, read from `file`, is what was committed. Raises `CheckpointError`."""
    if len(data) != info.size or hashlib.sha256(data).hexdigest() != info.sha256:
        raise CheckpointError(f"{file}: damaged ({len(data)} bytes, {info.size} were written, or another checksum)")


def read_checkpoint(file: Any, name: str) -> dict[str, Any]:
    """A checkpoint's content from a path or file object, on the CPU, without running code that it may hold."""
    state = load_tensors(file, name)
    if "model" not in state:
        raise CheckpointError(f"{name}: not a checkpoint of mgdet (no 'model' in it)")
    return state


def record_of(file: Location) -> Location:
    """The `.json` that commits a checkpoint's `.pt`."""
    return file.with_name(file.name.removesuffix(".pt") + ".json")


def _retry(action: Callable[[], T]) -> T:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError as error:
            if attempt == ATTEMPTS:
                raise
            logger.warning("storage failed (%s), attempt %d of %d", error, attempt, ATTEMPTS)
            time.sleep(2.0 ** (attempt - 1))
    raise AssertionError("unreachable")
