"""Checkpoints of a run: committed as a whole, verified when read; the best and the latest are kept.

A checkpoint is `checkpoints/step-00001234.pt` and, written last, `step-00001234.json`: its size, SHA-256, step and
metrics. A `.pt` that has no `.json`, or does not match it, was cut off or damaged, and is never loaded.
Files are read with `weights_only=True`: a checkpoint from elsewhere cannot run code. What a `.json` says is checked
against what `save` would have written under its name, before any file is opened or deleted by it.
"""

import hashlib
import io
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mgdet.errors import CheckpointError
from mgdet.evaluation.evaluator import AP
from mgdet.lease import Ownership
from mgdet.records import Count, Metrics, RecordError, read_as, seal
from mgdet.safe_load import load_tensors
from mgdet.storage import Location, locate

logger = logging.getLogger(__name__)

LATEST_KEPT = 2  # one more than needed: should the newest be damaged, a whole one is left
ATTEMPTS = 3
LAST_ATTEMPTS = 8
"""Attempts to write the last checkpoint of a training, a minute and a half: after it there is no next one."""
LOOKS = 10
"""How often a reader looks for the best checkpoint of a training that deletes them."""
LONGEST_WAIT_S = 30.0
FORMAT = 1
"""The version of a checkpoint's content, under its key `format`."""
UNFIT = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, OverflowError)
"""What torch and Python raise where the content of a checkpoint is not what its reader expects."""
T = TypeVar("T")


class FormatError(CheckpointError):
    """A checkpoint that another version of mgdet wrote: it is whole, and must not be passed over as if it were not."""


class UnsavedError(CheckpointError):
    """The last checkpoint of a training could not be written: what it learned since the one before is lost."""


class CheckpointInfo(BaseModel):
    """The record of a checkpoint, its `.json`: what is known of it without loading it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    file: str
    """Name of the `.pt` in the same directory."""
    step: Count
    """Optimizer steps completed."""
    epoch: Count
    """Epochs completed."""
    size: Count
    """Bytes of the `.pt`."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    metrics: Metrics
    """The evaluation of these very weights; empty where there was none. What is undefined is NaN, and null on disk."""
    pending: bool = False
    """Whether their evaluation is still to come."""

    @model_validator(mode="after")
    def _named_by_its_step(self) -> Self:
        if self.file != file_name(self.step):
            raise ValueError(f"file {self.file!r} of step {self.step}: expected {file_name(self.step)!r}")
        return self


class CheckpointStore:
    """The checkpoints of one run, under `uri` (a local directory or a `pyarrow.fs` URI).

    Nothing is written or deleted where another process has taken over from the `owner` of the run.
    """

    def __init__(self, uri: str, keep_best: int = 1, owner: Ownership | None = None) -> None:
        self.keep_best, self._owner = keep_best, owner
        self.directory = locate(uri) / "checkpoints"
        self._pruning = threading.Lock()
        self._named: set[str] = set()  # records of which it was said that they are passed over

    def save(
        self,
        state: dict[str, Any],
        *,
        step: int,
        epoch: int,
        metrics: dict[str, float],
        pending: bool = False,
        attempts: int = ATTEMPTS,
    ) -> CheckpointInfo:
        """Write and commit a checkpoint, then drop those that are no longer wanted.

        Raises `CheckpointError` after so many failed `attempts`, and `OwnedError` where another process owns the run;
        nothing that was saved before is touched then.
        """
        try:
            info = _retry(lambda: self._commit(state, step, epoch, metrics, pending), attempts)
        except OSError as error:
            size = sum(tensor.nbytes for tensor in tensors_in(state))
            raise CheckpointError(
                f"checkpoint of step {step} ({size / 2**20:.0f} MiB) not written to {self.directory} in "
                f"{attempts} attempts: {error}"
            ) from error
        self._prune()
        return info

    def judged(self, step: int, metrics: dict[str, float], attempts: int = ATTEMPTS) -> bool:
        """Record the evaluation of a checkpoint that was pending; whether that is done, or it stays pending.

        Raises `OwnedError` where another process owns the run.
        """
        record = record_of(self.file(step))
        try:
            known = self._info(step, attempts).model_copy(update={"metrics": _floats(metrics), "pending": False})
            self._require_ownership()
            _retry(lambda: record.replace(_sealed(known)), attempts)
        except FileNotFoundError:
            logger.warning("the evaluation of step %d is not recorded: %s is gone", step, record)
        except (OSError, RecordError) as error:
            logger.error("the evaluation of step %d is not recorded: %s", step, error)
            return False
        self._prune()
        return True

    def _info(self, step: int, attempts: int = ATTEMPTS) -> CheckpointInfo:
        record = record_of(self.file(step))
        return read_info(record, _retry(record.read_bytes, attempts))

    def is_lost(self, step: int) -> bool:
        """Whether a checkpoint is damaged or gone, and not only out of reach."""
        try:
            self.load(self._info(step))
        except (FileNotFoundError, RecordError):
            return True
        except OSError:
            return False
        except CheckpointError as error:
            return not isinstance(error.__cause__, OSError) or isinstance(error.__cause__, FileNotFoundError)
        return False

    def committed(self) -> list[CheckpointInfo]:
        """The committed checkpoints, oldest first; a record that does not fit its file's name is named and passed over.

        Raises `CheckpointError` where the storage cannot be read.
        """
        found = []
        with self._reading():
            sizes = _retry(self.directory.children)
            names = [name for name, size in sizes.items() if name.endswith(".json") and size is not None]
            for record in (self.directory / name for name in names):
                try:
                    found.append(read_info(record, _retry(record.read_bytes)))
                except FileNotFoundError:  # deleted meanwhile
                    continue
                except RecordError as error:
                    if record.name not in self._named:
                        self._named.add(record.name)
                        logger.warning("%s is passed over: %s", record, error)
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

    def read_best(self, read: Callable[[CheckpointInfo], T]) -> tuple[CheckpointInfo, T] | None:
        """The best checkpoint and what `read` makes of it; None where none was evaluated.

        A training that goes on deletes the best one when there is a better one: it is looked for again then.
        """
        for left in reversed(range(LOOKS)):
            if (best := self.best()) is None:
                return None
            try:
                return best, read(best)
            except (CheckpointError, FileNotFoundError) as error:
                gone = isinstance(error, FileNotFoundError) or isinstance(error.__cause__, FileNotFoundError)
                if not gone or not left:
                    raise
        raise AssertionError("unreachable")

    def latest(self) -> tuple[CheckpointInfo, dict[str, Any]] | None:
        """The newest undamaged checkpoint with its content, or None; damaged ones are logged and passed over.

        Raises `CheckpointError` if none can be read because of the storage, or one is of another version of mgdet:
        training must not start anew then.
        """
        unreadable: CheckpointError | None = None
        for info in reversed(self.committed()):
            try:
                return info, self.load(info)
            except FormatError:
                raise
            except CheckpointError as error:
                logger.warning("%s; trying the one before it", error)
                if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                    unreadable = error
        if unreadable is not None:
            raise CheckpointError(f"{unreadable}. Nothing was trained; try again when the storage can be read.")
        return None

    def how_far(self) -> str:
        """A sentence on the newest complete checkpoint, for the message that a later one is missing."""
        try:
            kept = self.complete()
        except CheckpointError as error:
            return f"Whether an earlier one is kept is not known: {error}."
        return (
            f"The newest that is kept is of step {kept[-1].step}, epoch {kept[-1].epoch}." if kept else "None is kept."
        )

    def load(self, info: CheckpointInfo) -> dict[str, Any]:
        """The content of a checkpoint, as `save` got it. Raises `CheckpointError` if it is damaged or unreadable."""
        path = self.path(info)
        try:
            data = _retry(path.read_bytes)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        verify(path, data, info)
        state = read_checkpoint(io.BytesIO(data), str(path))
        position = state.get("position", {})
        for key, said in (("step", info.step), ("epoch", info.epoch)):
            found = position.get(key, said)
            if not isinstance(found, int) or found != said:
                raise CheckpointError(f"{path}: it is of {key} {str(found)[:40]}, and its record says {said}")
        return state

    def path(self, info: CheckpointInfo) -> Location:
        """The checkpoint's file."""
        return self.directory / info.file

    def file(self, step: int) -> Location:
        """The file of the checkpoint after so many steps."""
        return self.directory / file_name(step)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raise `CheckpointError` for an `OSError` within the block: a run whose storage fails must not start anew."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"the checkpoints in {self.directory} cannot be read: {error}") from error

    def _require_ownership(self) -> None:
        if self._owner is not None:
            self._owner.require()

    def _commit(
        self, state: dict[str, Any], step: int, epoch: int, metrics: dict[str, float], pending: bool
    ) -> CheckpointInfo:
        self._require_ownership()
        self.directory.mkdir()
        file = self.file(step)
        with file.replacing() as stream:
            written = _Hashed(stream)
            torch.save(state, written)  # type: ignore[arg-type]  # torch asks for `write` and `flush` only
            sha256 = written.finish()
        info = CheckpointInfo(
            file=file.name,
            step=step,
            epoch=epoch,
            size=written.size,
            sha256=sha256,
            metrics=_floats(metrics),
            pending=pending,
        )
        self._require_ownership()
        record_of(file).replace(_sealed(info))
        return info

    def _prune(self) -> None:
        """Delete what is not kept; two threads do so, one after the other."""
        with self._pruning:
            self._delete_unwanted()

    def _delete_unwanted(self) -> None:
        try:
            found = self.committed()
        except CheckpointError as error:  # the next save does it
            logger.warning("old checkpoints are not deleted: %s", error)
            return
        self._require_ownership()
        pending = [i for i in found if i.pending]
        keep = {i.file for i in [*found[-LATEST_KEPT:], *pending, *_by_score(found)[-self.keep_best :]]}
        for info in found:
            if info.file in keep:
                continue
            for file in (record_of(self.path(info)), self.path(info)):
                try:
                    file.delete()
                except OSError as error:  # it only takes up space
                    logger.warning("%s could not be deleted: %s", file, error)


class _Hashed:
    """Passes on to `stream` what torch writes, and takes its size and checksum in the same pass.

    torch would replace an error of `write` by one of its own. So `finish` raises the first one, and nothing is written
    after it.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.size = stream, 0
        self._digest = hashlib.sha256()
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Take all of `data`; its length."""
        if self._error is None:
            self._digest.update(data)
            try:
                self.stream.write(data)
            except OSError as error:
                self._error = error
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: the stream is flushed when it is closed."""

    def finish(self) -> str:
        """The SHA-256 of what was written. Raises `OSError` where that failed."""
        if self._error is not None:
            raise self._error
        return self._digest.hexdigest()


def tensors_in(state: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested dicts, lists and tuples."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for inside in state.values() if isinstance(state, dict) else state:
            yield from tensors_in(inside)


def best_of(infos: Iterable[CheckpointInfo]) -> CheckpointInfo | None:
    """The checkpoint with the best AP (the later one on a tie), or None if none was evaluated."""
    return next(reversed(_by_score(infos)), None)


def _by_score(infos: Iterable[CheckpointInfo]) -> list[CheckpointInfo]:
    """The checkpoints that were evaluated, from the worst AP to the best, then by step: the best is the last."""
    sign = 1 if AP.direction == "max" else -1
    scored = (i for i in infos if math.isfinite(i.metrics.get(AP.name, math.nan)))
    return sorted(scored, key=lambda i: (sign * i.metrics[AP.name], i.step))


def _floats(metrics: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _sealed(info: CheckpointInfo) -> bytes:
    """The record's content, which earlier versions can read too if the evaluation is not pending."""
    return seal(info.model_dump(exclude=None if info.pending else {"pending"}))


def file_name(step: int) -> str:
    """The name of the file of a checkpoint."""
    return f"step-{step:08d}.pt"


def read_info(record: Location, data: bytes) -> CheckpointInfo:
    """The content `data` of a checkpoint's `.json`. Raises `RecordError` where it could not have been written there."""
    info = read_as(CheckpointInfo, data)
    if record.name != record_of(record.with_name(info.file)).name:
        raise RecordError(f"it is the record of {info.file}, not of a file of its own name")
    return info


def weights_file(place: str) -> str:
    """The file that a value of `model.weights` stands for: of a run's directory its best checkpoint, else itself.

    Raises `CheckpointError` where a directory holds no whole checkpoint.
    """
    if not locate(place).is_directory():
        return place
    store = CheckpointStore(place)

    def whole(info: CheckpointInfo) -> str:
        path = store.path(info)
        verify(path, _retry(path.read_bytes), info)
        return str(path)

    if found := store.read_best(whole):
        return found[1]
    newest = next(reversed(store.complete()), None)
    if newest is None:
        raise CheckpointError(
            f"model.weights = {place}: a directory without a whole checkpoint. Give a run's directory, whose best "
            "checkpoint is taken, or a file checkpoints/step-*.pt"
        )
    return whole(newest)


def verify(file: Location, data: bytes, info: CheckpointInfo) -> None:
    """Check that `data`, read from `file`, is what was committed. Raises `CheckpointError`."""
    if len(data) != info.size or hashlib.sha256(data).hexdigest() != info.sha256:
        raise CheckpointError(f"{file}: damaged ({len(data)} bytes, {info.size} were written, or another checksum)")


def read_checkpoint(file: Any, name: str) -> dict[str, Any]:
    """A checkpoint's content from a path or file object, on the CPU, without running code that it may hold.

    Raises `CheckpointError` where it is something else, and `FormatError` where another version of mgdet wrote it.
    """
    state = load_tensors(file, name)
    if "model" not in state:
        raise CheckpointError(f"{name}: not a checkpoint of mgdet (no 'model' in it)")
    version = state.get("format", FORMAT)
    if not isinstance(version, int) or version != FORMAT:
        raise FormatError(
            f"{name}: format {str(version)[:40]}, this version of mgdet reads {FORMAT}. Use the version that wrote it."
        )
    if not isinstance(state.get("position", {}), dict):
        raise CheckpointError(f"{name}: its position is a {type(state['position']).__name__}, expected a dict")
    return state


def record_of(file: Location) -> Location:
    """The `.json` that commits a checkpoint's `.pt`."""
    return file.with_name(file.name.removesuffix(".pt") + ".json")


def pause(attempt: int) -> float:
    """Seconds to wait after so many attempts, from 0, before the next one."""
    return min(2.0**attempt, LONGEST_WAIT_S)


def _retry(action: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError as error:
            if attempt == attempts:
                raise
            logger.warning("storage failed (%s), attempt %d of %d", error, attempt, attempts)
            time.sleep(pause(attempt - 1))
    raise AssertionError("unreachable")
