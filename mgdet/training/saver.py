"""Saving beside the training: the state is copied to the host, and one thread writes the copy while training goes on.

A step waits for the copy only. The copy has buffers that are kept from one checkpoint to the next, so that it costs no
allocation (in page-locked memory where the state is on a GPU). At most one checkpoint is on its way: the next one waits
for it, and so does everything that relies on a checkpoint.
"""

import copy
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from mgdet.errors import CheckpointError
from mgdet.training.checkpoint import ATTEMPTS, LAST_ATTEMPTS, CheckpointStore, tensors_in

logger = logging.getLogger(__name__)

TOLERATED_WAIT_S = 1.0
"""A step that waits longer for the checkpoint before is told, once."""
STALL_SHARE, WRITING_SHARE = 0.02, 0.1
"""Of the time between checkpoints that are made by time: the most that a step waits, and that one is being written."""


class Saver:
    """Writes the checkpoints of one worker to `store`, one after another.

    Args:
        store: of the run.
        secure: called in the thread before a checkpoint is written, to make durable what it relies on.
    """

    def __init__(self, store: CheckpointStore, secure: Callable[[], None] = lambda: None) -> None:
        self.store, self._secure = store, secure
        self._kept: dict[str, Any] | None = None
        self.outcome: Future[str] | None = None
        """Of the newest checkpoint: empty once it is written, else why it could not be."""
        self._told = False
        self._begun, self._stalled, self._took = time.monotonic(), 0.0, 0.0

    def due(self, every_s: float) -> bool:
        """Whether `every_s` seconds have passed since the newest checkpoint, or as many more as its cost asks for."""
        if self.outcome is not None and not self.outcome.done():
            return False
        pause = max(every_s, self._stalled / STALL_SHARE, self._took / WRITING_SHARE)
        return time.monotonic() - self._begun >= pause

    def save(self, state: dict[str, Any], *, last: bool = False, **about: Any) -> None:
        """Copy the state and start to write it; `about` and errors are those of `CheckpointStore.save`.

        A checkpoint that cannot be written is an error in the log, and training goes on. That of the `last` one, which
        is tried longer, is only told by `settle`.
        """
        start = time.monotonic()
        self.settle()
        if (waited := time.monotonic() - start) > TOLERATED_WAIT_S and not self._told:
            self._told = True
            logger.warning(
                "training has waited %.1f s for the checkpoint before: the storage is slower than checkpoints are "
                "made. A larger train.checkpoint_every_steps makes fewer",
                waited,
            )
        self._kept = on_host(state, self._kept)
        self._begun = time.monotonic()
        self._stalled = self._begun - start
        self.outcome = Future()
        arguments = (self.outcome, self._kept, last, about)
        # A daemon: a storage that hangs must not keep the process from ending at a second signal.
        threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True).start()

    def settle(self, within_s: float | None = None) -> str:
        """Wait until no checkpoint is on its way; why the newest could not be written, empty where it was.

        Raises what stopped the thread otherwise, which is no matter of the storage, and `TimeoutError` where it is
        still on its way `within_s` seconds.
        """
        return self.outcome.result(within_s) if self.outcome else ""

    def _write(self, outcome: Future[str], state: dict[str, Any], last: bool, about: dict[str, Any]) -> None:
        begun = self._begun
        try:
            self._secure()
            self.store.save(state, **about, attempts=LAST_ATTEMPTS if last else ATTEMPTS)
            self._took = time.monotonic() - begun
        except CheckpointError as error:
            if not last:  # no reason to stop training: the next save may succeed
                logger.error("%s; training goes on, the newest checkpoint stays the one before", error)
            outcome.set_result(str(error))
        except BaseException as error:  # it belongs to whoever waits
            outcome.set_exception(error)
        else:
            outcome.set_result("")


def on_host(state: Any, kept: Any = None) -> Any:
    """A copy of nested dicts, lists and tuples whose tensors are on the CPU, in the same layout.

    Args:
        state: the original; what is neither container nor tensor is shared with the copy.
        kept: an earlier copy: its tensors are written over where they have the same shape, type and layout.
    """
    copied = _copied(state, kept)
    for device in {tensor.device for tensor in tensors_in(state) if tensor.is_cuda}:
        torch.cuda.current_stream(
            device
        ).synchronize()  # the copies into page-locked memory are on their way until then
    return copied


def _copied(value: Any, kept: Any) -> Any:
    if isinstance(value, Tensor):
        return _tensor(value.detach(), kept)
    if isinstance(value, dict):
        before = kept if isinstance(kept, dict) else {}
        copied = copy.copy(value)  # with what an OrderedDict of torch carries along
        for key, inner in value.items():
            copied[key] = _copied(inner, before.get(key))
        return copied
    if isinstance(value, list | tuple):
        earlier = kept if isinstance(kept, list | tuple) and len(kept) == len(value) else [None] * len(value)
        items = [_copied(inner, old) for inner, old in zip(value, earlier, strict=True)]
        same = isinstance(value, tuple) and all(a is b for a, b in zip(items, value, strict=True))
        return value if same else type(value)(items)
    return value


def _tensor(value: Tensor, kept: Any) -> Tensor:
    fits = (
        isinstance(kept, Tensor)
        and kept.shape == value.shape
        and kept.dtype == value.dtype
        and kept.stride() == value.stride()
    )
    host: Tensor = kept if fits else torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
    return host.copy_(value, non_blocking=True)
