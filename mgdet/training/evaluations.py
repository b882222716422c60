"""The evaluations of a training: by its own workers between two epochs, or aside, by another process meanwhile.

Aside, a saved checkpoint is evaluated. Its record says `pending` until the training has taken notice of its metrics, so
that whoever goes on asks again.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import NamedTuple

from mgdet.bounded import Caller
from mgdet.config import Experiment
from mgdet.data.order import eval_shard
from mgdet.errors import CheckpointError, Interrupted, MgdetError
from mgdet.evaluation.evaluator import headlines
from mgdet.models import Detector
from mgdet.tracking import Tracker
from mgdet.training.checkpoint import ATTEMPTS, LAST_ATTEMPTS, CheckpointInfo, CheckpointStore, pause
from mgdet.training.data import TrainingData
from mgdet.training.distributed import World
from mgdet.training.drawing import Drawing
from mgdet.training.evaluate import Evaluated, evaluate
from mgdet.training.position import Position
from mgdet.training.progress import ProgressLog

logger = logging.getLogger(__name__)

MOST_WAITING = 2
"""Evaluations aside that may be under way while training goes on: with one more it waits at the end of an epoch."""
WAIT_S = 1.0
"""Seconds between two questions whether to stop, while a training waits for evaluations."""
GRACE_S = 2.0
"""The longest wait, at the end of a training, for what is being written at that moment."""


class Answer(NamedTuple):
    """The metrics of the weights after an epoch."""

    epoch: int
    step: int
    metrics: dict[str, float]


class Judged(NamedTuple):
    """What another process says of a checkpoint."""

    metrics: dict[str, float]
    seconds: float
    logged: dict[str, float]
    """What else is logged at its step: the seconds of parts."""
    artifacts: tuple[tuple[bytes, str], ...]
    """What was drawn, each with its name."""
    evaluated: Evaluated | None
    """Of the last epoch's, if the page of the training is drawn."""
    labels: bytes | None
    """A picture of who learns what after the last epoch."""


class Judge(ABC):
    """Evaluates checkpoints in another process."""

    @abstractmethod
    def ask(self, path: str) -> Judged | MgdetError:
        """Evaluate the checkpoint at a path or URI; returns when that is done, also why it cannot be done."""

    @abstractmethod
    def close(self) -> None:
        """End what is under way: nobody waits for it any more."""

    def __call__(self, path: str) -> Judged:
        """Evaluate the checkpoint at a path or URI; returns when that is done. Raises `MgdetError`."""
        found = self.ask(path)
        if isinstance(found, MgdetError):
            raise found
        return found


class Evaluations(ABC):
    """How a training is evaluated. Every method is called on all ranks, at the same steps."""

    pending: bool
    """Whether the evaluation of a checkpoint comes after it."""

    @abstractmethod
    def resume(self, step: int, network: Detector, position: Position) -> None:
        """Go on with the checkpoints up to `step` whose evaluation is pending; the network is that of this step."""

    @abstractmethod
    def begin(self, network: Detector, position: Position) -> dict[str, float]:
        """The metrics of the network after an epoch; empty where they come later."""

    @abstractmethod
    def saved(self, position: Position, outcome: Future[str] | None) -> None:
        """Take notice of a checkpoint of these weights; `outcome`, on rank 0, is why it could not be written."""

    @abstractmethod
    def ready(self) -> int:
        """How many answers rank 0 has that nobody has taken; 0 on other ranks."""

    @abstractmethod
    def take(self, wait_s: float = 0.0) -> tuple[list[Answer], int]:
        """The answers since the last call, in order, and how many are still to come. A collective.

        Rank 0 waits for the next one for `wait_s` seconds at most. Raises on all ranks what an evaluation has raised.
        """

    @abstractmethod
    def delivered(self, answers: Sequence[Answer]) -> None:
        """Take notice that the training has taken notice of these."""

    @abstractmethod
    def finish(self) -> None:
        """Wait until everything is recorded. Raises `CheckpointError` on all ranks where that cannot be done."""

    @abstractmethod
    def close(self) -> None:
        """End what is under way."""

    def deliver(self, deliver: Callable[[Answer], None]) -> int:
        """Deliver the answers that are there. A collective; how many are still to come."""
        return self._deliver(deliver, 0.0)

    def until(self, most: int, deliver: Callable[[Answer], None], stop_asked: Callable[[], bool]) -> None:
        """Deliver answers until at most so many are still to come. A collective. Raises `Interrupted` on request."""
        left, told = self.deliver(deliver), False
        while left > most:
            if not told:
                told = True
                logger.info("waiting for evaluations; under way: %d", left)
            if stop_asked():
                raise Interrupted(f"stopped on request with {left} evaluations under way; the same command goes on")
            left = self._deliver(deliver, WAIT_S)

    def _deliver(self, deliver: Callable[[Answer], None], wait_s: float) -> int:
        answers, left = self.take(wait_s)
        for answer in answers:
            deliver(answer)
        self.delivered(answers)
        return left


class ByWorkers(Evaluations):
    """The workers evaluate a shard each, and train on when all are done."""

    pending = False

    def __init__(
        self,
        experiment: Experiment,
        world: World,
        data: TrainingData,
        store: CheckpointStore,
        tracker: Tracker,
        drawing: Drawing | None,
    ) -> None:
        self._experiment, self._world, self._data, self._store = experiment, world, data, store
        self._tracker, self._drawing = tracker, drawing
        self._answers: list[Answer] = []

    def resume(self, step: int, network: Detector, position: Position) -> None:
        """See `Evaluations`: the newest one is evaluated now; others, whose networks are gone, are left out."""
        found = pending(self._store, step) if self._world.is_main else []
        found = self._world.broadcast(found)
        for info in found:
            if info.step == step:
                position.metrics = self.begin(network, position)
            elif self._world.is_main:
                logger.warning("epoch %d is left without an evaluation, which was to be made aside", info.epoch)
            if self._world.is_main:
                self._store.judged(info.step, position.metrics if info.step == step else {})

    def begin(self, network: Detector, position: Position) -> dict[str, float]:
        """See `Evaluations`."""
        start = time.perf_counter()
        data, world = self._data, self._world
        share = len(eval_shard(len(data.ground_truth.image_ids), world.size, world.rank))
        pace = ProgressLog(f"epoch {position.epoch}: evaluated", share)
        metrics, evaluated = evaluate(
            network,
            pace.over(data.val_loader) if world.is_main else data.val_loader,
            data.ground_truth,
            self._experiment.evaluation,
            world,
            self._experiment.train.precision,
        )
        self._answers.append(Answer(position.epoch, position.step, metrics))
        if not world.is_main:
            return metrics
        seconds = time.perf_counter() - start
        parts = {f"time/{part}": taken for part, taken in evaluated.seconds.items()} if evaluated else {}
        extra = {"val/seconds": seconds, **parts, "epoch": float(position.epoch)}
        self._tracker.log({**metrics, **extra}, step=position.step)
        _say(position.epoch, metrics, seconds)
        if self._drawing and evaluated is not None:
            self._drawing.after_evaluation(evaluated, network, position)
        return metrics

    def saved(self, position: Position, outcome: Future[str] | None) -> None:
        """See `Evaluations`."""

    def ready(self) -> int:
        """See `Evaluations`."""
        return 0

    def take(self, wait_s: float = 0.0) -> tuple[list[Answer], int]:
        """See `Evaluations`."""
        taken, self._answers = self._answers, []
        return taken, 0

    def delivered(self, answers: Sequence[Answer]) -> None:
        """See `Evaluations`: their checkpoints have the metrics already."""

    def finish(self) -> None:
        """See `Evaluations`."""

    def close(self) -> None:
        """See `Evaluations`."""


class Aside(Evaluations):
    """A judge evaluates the checkpoints one after another. Rank 0 has a thread that asks it, and one that records.

    Args:
        judge: on rank 0.
        world: the workers.
        store: of the checkpoints.
        tracker: gets the metrics, at the step that they belong to.
        drawing: gets what the judge has drawn.
        epochs: of the whole training.
    """

    pending = True

    def __init__(
        self,
        judge: Judge | None,
        world: World,
        store: CheckpointStore,
        tracker: Tracker,
        drawing: Drawing | None,
        epochs: int,
    ) -> None:
        self._judge, self._world, self._store, self._epochs = judge, world, store, epochs
        self._tracker, self._drawing = tracker, drawing
        self._asker: Caller | None = None
        self._recorder: Caller | None = None
        self._asked: deque[Future[Answer | None]] = deque()
        self._unrecorded: list[Answer] = []
        self._recorded: Future[None] | None = None
        self._writing, self._closed = threading.Lock(), False

    def resume(self, step: int, network: Detector, position: Position) -> None:
        """See `Evaluations`."""
        for info in pending(self._store, step) if self._world.is_main else []:
            self._ask(info.epoch, info.step, None)

    def begin(self, network: Detector, position: Position) -> dict[str, float]:
        """See `Evaluations`."""
        return {}

    def saved(self, position: Position, outcome: Future[str] | None) -> None:
        """See `Evaluations`."""
        if self._world.is_main:
            self._ask(position.epoch, position.step, outcome)

    def ready(self) -> int:
        """See `Evaluations`."""
        return sum(asked.done() for asked in self._asked)

    def take(self, wait_s: float = 0.0) -> tuple[list[Answer], int]:
        """See `Evaluations`. An error is raised once the answers before it were taken."""
        answers: list[Answer] = []
        failed: BaseException | None = None
        if self._asked and wait_s:
            wait([self._asked[0]], wait_s)
        while self._asked and self._asked[0].done():
            failed = self._asked[0].exception()
            if failed is not None:
                break
            if (answer := self._asked.popleft().result()) is not None:
                answers.append(answer)
        answers, left, failed = self._world.broadcast((answers, len(self._asked), None if answers else failed))
        if failed is not None:
            raise failed
        return answers, left

    def delivered(self, answers: Sequence[Answer]) -> None:
        """See `Evaluations`: the thread records them."""
        if answers and self._recorder is not None:
            self._recorded = self._recorder.submit(self._record, answers)

    def finish(self) -> None:
        """See `Evaluations`."""
        failed = ""
        if self._recorded is not None:
            self._recorded.result()
            if self._unrecorded:
                epochs = ", ".join(str(answer.epoch) for answer in self._unrecorded)
                failed = (
                    f"The training came to its end, but the evaluations of the epochs {epochs} are not recorded in "
                    f"{self._store.directory}. Mend the storage and run the same command: it makes them again."
                )
        if failed := self._world.broadcast(failed):
            raise CheckpointError(failed)

    def close(self) -> None:
        """See `Evaluations`. Nothing is logged or written after it."""
        held = self._writing.acquire(timeout=GRACE_S)
        self._closed = True
        if held:
            self._writing.release()
        if self._judge is not None:
            self._judge.close()
        for caller in (self._asker, self._recorder):
            if caller is not None:
                caller.end()

    def _ask(self, epoch: int, step: int, outcome: Future[str] | None) -> None:
        if self._asker is None:
            self._asker, self._recorder = Caller("evaluations"), Caller("evaluations-recorded")
        self._asked.append(self._asker.submit(self._answer, epoch, step, outcome))

    def _answer(self, epoch: int, step: int, outcome: Future[str] | None) -> Answer | None:
        """Have a checkpoint evaluated, and log what is found; None where there is no such checkpoint."""
        if outcome is not None and outcome.result():  # which is in the log
            logger.error("epoch %d is not evaluated: its checkpoint is missing", epoch)
            return None
        judged = None if self._closed else self._judged(epoch, step)
        with self._writing:
            if self._closed:
                return None
            if judged is None:
                self._store.judged(step, {})
                return None
            self._tracker.log({**judged.metrics, "val/seconds": judged.seconds, **judged.logged}, step=step)
            for data, name in judged.artifacts:
                self._tracker.artifact(data, name)
            if self._drawing:
                self._drawing.take(judged.evaluated, judged.labels)
            _say(epoch, judged.metrics, judged.seconds)
            self._tracker.secure()
        return Answer(epoch, step, judged.metrics)

    def _judged(self, epoch: int, step: int) -> Judged | None:
        """The judge's answer; None for a checkpoint that is lost, which is not the last one."""
        assert self._judge is not None, "rank 0 has one"
        for attempt in range(LAST_ATTEMPTS):
            try:
                return self._judge(str(self._store.file(step)))
            except CheckpointError as error:
                if self._closed:
                    return None
                if epoch < self._epochs and self._store.is_lost(step):
                    logger.warning("epoch %d is left without an evaluation: %s", epoch, error)
                    return None
                if attempt + 1 == LAST_ATTEMPTS:
                    raise
                logger.warning("%s; attempt %d of %d", error, attempt + 1, LAST_ATTEMPTS)
                time.sleep(pause(attempt))
        raise AssertionError("unreachable")

    def _record(self, answers: Sequence[Answer]) -> None:
        """Record these, and those that could not be recorded before."""
        with self._writing:
            if not self._closed:
                waiting = [*self._unrecorded, *answers]
                last = any(answer.epoch == self._epochs for answer in answers)
                attempts = LAST_ATTEMPTS if last else ATTEMPTS
                self._unrecorded = [a for a in waiting if not self._store.judged(a.step, a.metrics, attempts)]


def pending(store: CheckpointStore, step: int) -> list[CheckpointInfo]:
    """The checkpoints up to this step whose evaluation is still to come."""
    return [info for info in store.complete() if info.pending and info.step <= step]


def _say(epoch: int, metrics: dict[str, float], seconds: float) -> None:
    shown = [f"{name} {metrics[name]:.3f}" for name in headlines(metrics, brief=True)]
    logger.info("epoch %d: %s (%.0f s)", epoch, ", ".join(shown), seconds)
