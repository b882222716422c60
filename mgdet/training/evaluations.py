"""The evaluations of a training: by its own workers between two epochs, or aside, by another process meanwhile.

An evaluation aside is that of a checkpoint, which says of itself that its evaluation is pending until it is there:
whoever goes on with the training asks for it again.
"""

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from mgdet.config import Experiment
from mgdet.data.order import eval_shard
from mgdet.errors import CheckpointError, Interrupted
from mgdet.evaluation.evaluator import headlines
from mgdet.models import Detector
from mgdet.tracking import Tracker
from mgdet.training.checkpoint import CheckpointInfo, CheckpointStore
from mgdet.training.data import TrainingData
from mgdet.training.distributed import World
from mgdet.training.drawing import Drawing
from mgdet.training.evaluate import Evaluated, evaluate
from mgdet.training.position import Position
from mgdet.training.progress import ProgressLog

logger = logging.getLogger(__name__)

MOST_WAITING = 2
"""Evaluations aside that may be under way while training goes on; with one more it waits."""
WAIT_S = 1.0
"""Seconds between two questions whether to stop, while a training waits for evaluations."""
READS, PAUSE_S = 3, 5.0
"""How often a checkpoint is tried that cannot be read, and the seconds between two tries."""


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
    def __call__(self, path: str) -> Judged:
        """Evaluate the checkpoint at a path or URI; returns when that is done. Raises `MgdetError`."""

    @abstractmethod
    def close(self) -> None:
        """End what is under way: nobody waits for it any more."""


class Evaluations(ABC):
    """How a training is evaluated. Every method is called on all ranks at the same steps."""

    pending: bool
    """Whether the evaluation of a checkpoint comes after it."""

    @abstractmethod
    def resume(self, infos: Sequence[CheckpointInfo]) -> None:
        """On rank 0, go on with checkpoints whose evaluation is pending."""

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
    def close(self) -> None:
        """End what is under way."""

    def until(self, most: int, deliver: Callable[[Answer], None], stop_asked: Callable[[], bool]) -> None:
        """Deliver answers until at most so many are still to come. A collective. Raises `Interrupted` on request."""
        answers, left = self.take()
        told = False
        while True:
            for answer in answers:
                deliver(answer)
            if left <= most:
                return
            if not told:
                told = True
                logger.info("waiting for %d evaluations that are under way", left)
            if stop_asked():
                raise Interrupted(f"stopped on request with {left} evaluations under way; the same command goes on")
            answers, left = self.take(WAIT_S)


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

    def resume(self, infos: Sequence[CheckpointInfo]) -> None:
        """See `Evaluations`: it leaves them out."""
        for info in infos:
            logger.warning(
                "epoch %d is left without an evaluation, which was to be made aside; `mgdet evaluate %s` makes one",
                *(info.epoch, self._store.path(info)),
            )
            self._store.judged(info.step, {})

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

    def close(self) -> None:
        """See `Evaluations`."""


class Aside(Evaluations):
    """A judge evaluates the checkpoints one after another. Rank 0 has a thread that asks it.

    Args:
        judge: on rank 0.
        world: the workers.
        store: of the checkpoints.
        tracker: gets the metrics, at the step that they belong to.
        drawing: gets what the judge has drawn.
    """

    pending = True

    def __init__(
        self, judge: Judge | None, world: World, store: CheckpointStore, tracker: Tracker, drawing: Drawing | None
    ) -> None:
        self._judge, self._world, self._store = judge, world, store
        self._tracker, self._drawing = tracker, drawing
        self._asked: queue.SimpleQueue[tuple[int, int, Future[str] | None] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer | BaseException | None] = queue.SimpleQueue()
        self._outstanding = 0
        self._writing, self._closed = threading.Lock(), False
        if world.is_main:
            threading.Thread(target=self._work, name="evaluations", daemon=True).start()

    def resume(self, infos: Sequence[CheckpointInfo]) -> None:
        """See `Evaluations`."""
        for info in infos:
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
        return self._answers.qsize()

    def take(self, wait_s: float = 0.0) -> tuple[list[Answer], int]:
        """See `Evaluations`."""
        answers: list[Answer] = []
        failed: BaseException | None = None
        try:
            while failed is None and self._outstanding:
                found = self._answers.get(timeout=wait_s) if wait_s else self._answers.get_nowait()
                self._outstanding, wait_s = self._outstanding - 1, 0.0
                if isinstance(found, Answer):
                    answers.append(found)
                else:
                    failed = found
        except queue.Empty:
            pass
        answers, left, failed = self._world.broadcast((answers, self._outstanding, failed))
        if failed is not None:
            raise failed
        return answers, left

    def close(self) -> None:
        """See `Evaluations`. Nothing is logged or written after it."""
        with self._writing:
            self._closed = True
        self._asked.put(None)
        if self._judge is not None:
            self._judge.close()

    def _ask(self, epoch: int, step: int, outcome: Future[str] | None) -> None:
        self._outstanding += 1
        self._asked.put((epoch, step, outcome))

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            try:
                self._answers.put(self._answer(*asked))
            except BaseException as error:  # it belongs to the training
                self._answers.put(error)

    def _answer(self, epoch: int, step: int, outcome: Future[str] | None) -> Answer | None:
        """Have a checkpoint evaluated, and log and record what is found; None where there is no such checkpoint."""
        if outcome is not None and outcome.result():  # which is in the log
            logger.error("epoch %d is not evaluated: its checkpoint is missing", epoch)
            return None
        judged = self._judged(step)
        with self._writing:
            if self._closed:
                return None
            if judged is None:
                self._store.judged(step, {})
                return None
            logged = {**judged.metrics, "val/seconds": judged.seconds, **judged.logged}
            self._tracker.log(logged, step=step)
            for data, name in judged.artifacts:
                self._tracker.artifact(data, name)
            if self._drawing:
                self._drawing.take(judged.evaluated, judged.labels)
            _say(epoch, judged.metrics, judged.seconds)
            self._tracker.secure()
            self._store.judged(step, judged.metrics)
        return Answer(epoch, step, judged.metrics)

    def _judged(self, step: int) -> Judged | None:
        assert self._judge is not None, "rank 0 has one"
        for left in reversed(range(READS)):
            try:
                return self._judge(str(self._store.file(step)))
            except CheckpointError as error:
                if left:
                    time.sleep(PAUSE_S)
                    continue
                logger.warning("its evaluation is left out: %s", error)
        return None


def _say(epoch: int, metrics: dict[str, float], seconds: float) -> None:
    shown = [f"{name} {metrics[name]:.3f}" for name in headlines(metrics, brief=True)]
    logger.info("epoch %d: %s (%.0f s)", epoch, ", ".join(shown), seconds)
