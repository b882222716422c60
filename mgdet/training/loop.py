"""The training of one worker, from the first step (or the last checkpoint) to the final evaluation."""

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mgdet.config import Experiment
from mgdet.config_base import resolved
from mgdet.data.order import Segment, images_seen
from mgdet.errors import CheckpointError, Interrupted
from mgdet.lease import Ownership
from mgdet.models import Detector, initialise
from mgdet.models.weights import NAMED_WEIGHTS
from mgdet.provenance import made_by
from mgdet.structures import Batch
from mgdet.tracking import Tracker
from mgdet.training.checkpoint import FORMAT, UNFIT, CheckpointInfo, CheckpointStore, UnsavedError, weights_file
from mgdet.training.compile import compile_for_training
from mgdet.training.data import open_data
from mgdet.training.distributed import World
from mgdet.training.drawing import Drawing
from mgdet.training.evaluations import MOST_WAITING, Answer, Aside, ByWorkers, Evaluations, Judge
from mgdet.training.generators import generator_state, make_reproducible, set_generator_state
from mgdet.training.nonfinite import capture, non_finite_error
from mgdet.training.optim import EMA, build_optimizer
from mgdet.training.origin import data_of, refuse_other_data, tell_other_evaluation
from mgdet.training.position import Position
from mgdet.training.precision import emulation, gradient_scaler
from mgdet.training.profile import Profile, stage, staged
from mgdet.training.progress import Lines, Throughput, progress_line, show, training_progress
from mgdet.training.question import Question
from mgdet.training.saver import Saver
from mgdet.training.schedules import Span
from mgdet.training.step import StepSums, accumulate_gradients

logger = logging.getLogger(__name__)

GRACE_S = 2.0
"""The longest wait for a checkpoint that is being written at a second signal, which ends a training at once."""

OnEvaluation = Callable[[dict[str, float]], None]
"""Called on every rank with `epoch`, `step` and the metrics; who relies on their checkpoint calls `Worker.settle`."""

StopAsked = Callable[[], bool]
"""Whether to stop: called on every rank at the same steps, and must return the same on all of them."""


class Worker:
    """One worker's share of a training. The experiment must be resolved: it holds no `auto`."""

    def __init__(
        self,
        experiment: Experiment,
        world: World,
        tracker: Tracker,
        on_evaluation: OnEvaluation = lambda metrics: None,
        stop_asked: StopAsked = lambda: False,
        owner: Ownership | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.experiment, self.world, self.tracker = experiment, world, tracker
        self.on_evaluation, self.stop_asked = on_evaluation, stop_asked
        train = experiment.train
        slow = emulation(world.device, train.precision) if world.is_main else None
        if slow:
            logger.warning("%s", slow)
        make_reproducible(experiment.seed, world.rank, train.deterministic)
        self.data = open_data(experiment, world)
        self.store = CheckpointStore(experiment.run_uri, train.keep_best, owner)
        newest, state = self._find_newest()
        self._build_network(with_weights=newest is None)
        self.optimizer = build_optimizer(self.detector, train.optimizer)
        self.span = Span(self.data.steps_per_epoch, self.data.steps_per_epoch * train.epochs)
        self.scaler = gradient_scaler(world.device, train.precision)
        self.ema = EMA(self.detector, train.ema) if train.ema.enabled else None
        self.saver = Saver(self.store, tracker.secure)  # whoever goes on from a checkpoint logs only what comes after
        self.position = Position().on(world.size, self.data.train_loader.batches.batch_size)
        self._lines = Lines()
        self._question = Question(world, self.position.step)
        self._profile = Profile(train.profile if world.is_main else 0, world.device, experiment.run_uri, tracker)
        drawn = world.is_main and experiment.tracking.pictures
        self._drawing = Drawing(tracker, experiment, self.data.val, world.device) if drawn else None
        self.metrics: dict[str, float] = {}
        """The last evaluation's."""
        self.evaluations: Evaluations = ByWorkers(experiment, world, self.data, self.store, tracker, self._drawing)
        if experiment.evaluation.where == "aside":
            self.evaluations = Aside(judge, world, self.store, tracker, self._drawing, train.epochs)
        if newest is not None:
            self._resume(newest, state)
        self._set_rate()
        self._compiling = train.compile == "on"
        if self._compiling:
            compile_for_training(self.detector, experiment.data.transform, world.device)
        self.network: nn.Module = self.detector
        if world.size > 1:
            self.network = DistributedDataParallel(
                self.detector, device_ids=[world.device.index] if world.device.type == "cuda" else None
            )

    def run(self) -> dict[str, float]:
        """Train to the end; returns the last evaluation's metrics, on every rank.

        Raises:
            Interrupted: on request, with a checkpoint of the last step.
            OwnedError: another process has taken the run over from its `owner`.
            NonFiniteError: at a step that was not taken.
        """
        try:
            return self._run()
        except BaseException as error:
            with suppress(Exception):
                self.saver.settle(None if isinstance(error, Exception) else GRACE_S)
            raise
        finally:
            self.evaluations.close()

    def settle(self) -> str:
        """Wait until the newest checkpoint is written; empty if it is, else why not. Only rank 0 waits and knows."""
        return self.saver.settle()

    def _run(self) -> dict[str, float]:
        if self.position.step:
            self.evaluations.resume(self.position.step, self._evaluated(), self.position)
        self.evaluations.until(MOST_WAITING, self._deliver, self.stop_asked)
        for epoch in range(self.position.epoch, self.experiment.train.epochs):
            self._train_epoch(epoch)
            last = epoch + 1 == self.experiment.train.epochs
            evaluated = last or (epoch + 1) % self.experiment.train.evaluate_every == 0
            metrics: dict[str, float] = {}
            if evaluated:
                with stage("evaluate"):
                    metrics = self.evaluations.begin(self._evaluated(), self.position)
                if not self.evaluations.pending:
                    self.position.metrics = metrics
            self._save(metrics, last, pending=evaluated and self.evaluations.pending)
            self._profile.end()
            if evaluated:
                self.evaluations.saved(self.position, self.saver.outcome)
                self.evaluations.until(MOST_WAITING, self._deliver, self.stop_asked)
            if not last and self.stop_asked():
                raise Interrupted(f"stopped on request after epoch {epoch + 1}; the same command goes on")
        self.evaluations.until(0, self._deliver, self.stop_asked)
        self.evaluations.finish()
        if self._drawing:
            self._drawing.finish()
        return self.metrics

    # --- set-up

    def _build_network(self, with_weights: bool) -> None:
        e = self.experiment
        self.detector = e.model.build(len(self.data.categories))
        if with_weights:
            self._initialise()
        if e.train.sync_bn:
            self.detector = nn.SyncBatchNorm.convert_sync_batchnorm(self.detector)  # type: ignore[no-untyped-call]
        layout = torch.channels_last if e.train.channels_last else torch.contiguous_format
        self.detector.to(self.world.device, memory_format=layout)  # type: ignore[call-overload]  # torch's stub
        self.detector.train()

    def _initialise(self) -> None:
        model = self.experiment.model
        if model.weights not in NAMED_WEIGHTS:
            model = model.model_copy(update={"weights": weights_file(model.weights)})
        for note in initialise(self.detector, model, [c.name for c in self.data.categories]):
            if self.world.is_main:
                logger.info("%s", note)

    def _find_newest(self) -> tuple[CheckpointInfo | None, dict[str, Any]]:
        """The newest undamaged checkpoint with its content, if there is one: all ranks load what rank 0 found."""
        found = self.store.latest() if self.world.is_main else None
        info = self.world.broadcast(found[0] if found else None)
        if info is None:
            return None, {}
        return info, found[1] if found else self.store.load(info)

    def _resume(self, info: CheckpointInfo, state: dict[str, Any]) -> None:
        refuse_other_data(self.experiment, data_of(state), self.data.fingerprint)
        self.load_state_dict(state)
        self.metrics = info.metrics or self.position.metrics
        if self.world.is_main:
            tell_other_evaluation(self.experiment, state)
            logger.info("resuming at epoch %d, step %d from %s", self.position.epoch, info.step, self.store.path(info))

    # --- state

    def state_dict(self) -> dict[str, Any] | None:
        """The content of a checkpoint on rank 0, None on the others. A collective: every rank must call it."""
        generators = self.world.gather(generator_state(self.world.device))
        if generators is None:
            return None
        p = self.position
        return {
            "model": self.detector.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "schedule": {"step": p.step},
            "position": asdict(p),
            "generators": generators,
            "config": self.experiment.to_yaml(),
            "categories": json.dumps([[c.id, c.name] for c in self.data.categories]),
            "data": json.dumps(self.data.fingerprint),
            "made_by": json.dumps(made_by()),
            "format": FORMAT,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises `CheckpointError` where it belongs to another experiment."""
        try:
            self.detector.load_state_dict(state["model"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            position = Position.read(state["position"])
            if self.world.rank < len(state["generators"]):  # ranks that did not exist before keep their seed
                set_generator_state(state["generators"][self.world.rank], self.world.device)
        except UNFIT as error:
            raise CheckpointError(
                f"the checkpoint in {self.experiment.run_uri} is of another model: {error}"
            ) from error
        self.position = position.on(self.world.size, self.data.train_loader.batches.batch_size)
        self._set_rate()

    def _save(self, metrics: dict[str, float], last: bool = False, pending: bool = False) -> None:
        """Begin to write a checkpoint; `metrics` are those of these very weights, by which the best one is kept.

        With `pending` they come later.
        The `last` one of the training is waited for, and where it cannot be written every rank raises `UnsavedError`.
        """
        with stage("save"):
            state, p = self.state_dict(), self.position
            if state is not None:
                self.saver.save(state, step=p.step, epoch=p.epoch, metrics=metrics, pending=pending, last=last)
        if last:
            self._require_saved(self.settle())

    def _require_saved(self, failed: str) -> None:
        """Raise `UnsavedError` on every rank if rank 0 has `failed` to write the last checkpoint."""
        if failed:
            failed = (
                f"The training came to its end, but its last checkpoint is missing: {failed}. {self.store.how_far()} "
                "Mend the storage and run the same command: it trains from there to the end again."
            )
        if failed := self.world.broadcast(failed):
            raise UnsavedError(failed)

    # --- the loop

    def _rate(self, step: int) -> float:
        """The learning rate of optimizer step `step`, from 0, for all parameters."""
        train = self.experiment.train
        return train.optimizer.lr * train.schedule(step, self.span)

    def _set_rate(self) -> None:
        """Give the optimizer the rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self.position.step)

    @property
    def _epochs_done(self) -> float:
        p, images, batches = self.position, self.data.train.num_images, self.data.train_loader.batches
        together = batches.world * batches.batch_size
        before = images_seen(images, [Segment(*s) for s in p.done]) / together  # in steps of these ranks
        return p.epoch + min(1.0, (before + p.micro_step) / -(-images // together))

    def _train_epoch(self, epoch: int) -> None:
        train = self.experiment.train
        log_every = resolved(train.log_every)
        self.data.train.require_unchanged()  # and so the other split, which has the same manifest
        self.data.train_loader.start(epoch, self.position.micro_step, [Segment(*s) for s in self.position.done])
        left = len(self.data.train_loader)
        clock, sums = Throughput(), StepSums()
        group: list[Batch] = []
        batches = staged("wait", iter(self.data.train_loader))
        self._profile.begin(-(-left // train.accumulate))
        while (batch := clock.next(batches)) is not None:
            with stage("copy"):
                group.append(batch.to(self.world.device))
            left -= 1
            if len(group) < train.accumulate and left:
                continue
            self._step(group, sums)
            self.position.micro_step += len(group)
            self._profile.step()
            clock.add(sum(len(b.images) for b in group) * self.world.size)
            group = []
            if self.position.step % log_every == 0 or not left:
                self._log(sums, clock, epoch)
                clock, sums = Throughput(), StepSums()
            if left and train.checkpoint_every_steps and self.position.step % train.checkpoint_every_steps == 0:
                self._save({})
            if left and self._question.due(self.position.step):
                self._stop_if_asked()
                every_s = train.checkpoint_every_s if self.world.is_main else None
                due = every_s is not None and self.saver.due(every_s)
                step, ready = self.position.step, self.evaluations.ready()
                save, answered = self._question.agree(step, log_every, due, ready > 0)
                if save:
                    self._save({})
                if answered:
                    self.evaluations.deliver(self._deliver)
        self.position.epoch, self.position.micro_step, self.position.done = epoch + 1, 0, []

    def _stop_if_asked(self) -> None:
        if self.stop_asked():
            self._save({})
            kept = "WITHOUT" if self.settle() else "with"  # only rank 0 knows; its message is the one that is shown
            step = self.position.step
            raise Interrupted(
                f"stopped on request after step {step}, {kept} a checkpoint of it; the same command goes on"
            )

    def _step(self, group: list[Batch], sums: StepSums) -> None:
        begin = time.perf_counter()
        accumulate_gradients(
            self.network,
            self.detector,
            group,
            self.experiment,
            self.world,
            self._epochs_done,
            sums,
            self.scaler.scale,
        )
        # Gradients are averaged over workers, so a NaN of one is a NaN of all: the ranks agree without asking.
        with stage("optimizer"):
            self._update(group, sums)
        self.position.step += 1
        self._set_rate()
        if self._compiling and self.world.is_main:
            logger.info("the network was compiled: the first step took %.0f s", time.perf_counter() - begin)
        self._compiling = False

    def _update(self, group: list[Batch], sums: StepSums) -> None:
        """Change the weights by the gradient, and forget it."""
        train = self.experiment.train
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.detector.parameters(), train.clip_norm or float("inf"))
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
            if self.ema:
                self.ema.update(self.detector)
        elif self.scaler.get_scale() <= 1:  # without a scaler it is 1
            self._stop_non_finite(group, float(norm), sums)
        self.scaler.update()  # halves the scale after a gradient that was not finite: its step is left out
        self.optimizer.zero_grad(set_to_none=True)

    def _stop_non_finite(self, group: list[Batch], norm: float, sums: StepSums) -> None:
        path = capture(
            self.experiment.run_uri,
            rank=self.world.rank,
            step=self.position.step,
            epoch=self._epochs_done,
            batches=group,
            network=self.detector,
            config=self.experiment.shown(),
            data=self.data.fingerprint,
        )
        values = {"gradient norm": norm, **sums.losses()}
        raise non_finite_error(self.position.step, path, values)

    def _log(self, sums: StepSums, clock: Throughput, epoch: int) -> None:
        metrics = sums.metrics(self.world)
        metrics["train/lr"] = self._rate(self.position.step - 1)  # of the step that was taken last
        metrics["train/images_per_s"] = clock.images_per_second()
        metrics |= self._count_bad_images()
        if not self.world.is_main:
            return
        self.tracker.log({**metrics, "epoch": self._epochs_done}, step=self.position.step)
        total = self.data.steps_per_epoch * self.experiment.train.epochs
        remaining = (total - self.position.step) / clock.steps_per_second()
        now = (epoch, self.experiment.train.epochs, self.position.step, total, metrics, remaining, clock.waiting())
        if not show(training_progress(*now)) and (self.position.step >= total or self._lines.due()):
            logger.info("%s", progress_line(*now))

    def _count_bad_images(self) -> dict[str, float]:
        """The number of images that are left out, where there are any. A collective: the workers tell each other.

        Raises `DataError` on all of them where that are more than `data.max_bad_images`.
        """
        bad = self.data.train_loader.bad
        new = bad.take_new()
        if float(self.world.mean(torch.tensor(float(len(new)), device=self.world.device))):
            bad.add(self.world.share(new))
        return {"train/bad_images": float(len(bad.known))} if bad.known else {}

    # --- evaluation

    def _evaluated(self) -> Detector:
        """The network that is evaluated, with the same buffers on all ranks."""
        network = self.ema.module if self.ema else self.detector
        for module in {self.detector, network}:
            self.world.sync_buffers(module)
        return network

    def _deliver(self, answer: Answer) -> None:
        self.metrics = answer.metrics
        self.on_evaluation({"epoch": answer.epoch, "step": answer.step, **answer.metrics})
