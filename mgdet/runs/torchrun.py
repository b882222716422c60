"""A training whose workers are the processes that torchrun has started, without Ray.

    torchrun --nproc-per-node 2 -m mgdet train my.yaml

Every process runs the same command. Rank 0 prepares the data, opens the record and the run in the tracker, and gives
the others the resolved experiment; then all of them train. The loop, its checkpoints and what a resume guarantees are
those of a training under Ray. Restarts are torchrun's (`--max-restarts`), from the last checkpoint.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mgdet.config import Experiment, validate
from mgdet.errors import ClusterError, ConfigError, Interrupted
from mgdet.host import Rank
from mgdet.lease import Ownership
from mgdet.runs.aside import judge_of
from mgdet.runs.launch import absolute, launch, prepare, worker_tracker
from mgdet.runs.record import Summary, summarise
from mgdet.runs.resources import this_machine
from mgdet.signals import on_stop
from mgdet.tracking import NullTracker, RunHandle, Tracker
from mgdet.training.checkpoint import UnsavedError
from mgdet.training.distributed import World
from mgdet.training.loop import Worker

logger = logging.getLogger(__name__)

TOGETHER = (Interrupted, UnsavedError)
"""The errors with which all ranks end a training at the same step."""


def train_under_torchrun(experiment: Experiment, rank: Rank) -> tuple[Summary, RunHandle | None]:
    """Train, or continue the run of the same storage and name, to its end; every process of torchrun calls it.

    Only rank 0 has a handle of the tracker's run.

    Raises:
        ConfigError: the configuration contradicts what torchrun has started.
        MgdetError: anything else that the user can mend; its message says how.
        Interrupted: on all ranks, after SIGTERM or Ctrl-C to any of them, with a checkpoint of the last step.
    """
    asked = absolute(with_workers(experiment, rank))
    with _speaking_as(rank.rank), _process_group(asked, rank) as world:
        return _lead(asked, rank, world) if world.is_main else _follow(asked, world)


def with_workers(experiment: Experiment, rank: Rank) -> Experiment:
    """The experiment with as many workers as torchrun has started. Raises `ConfigError` where it asks for others."""
    cluster = experiment.cluster
    if cluster.address is not None:
        raise ConfigError(
            f"cluster.address = {cluster.address!r}, but torchrun has started this process: it trains without Ray. Set "
            "cluster.address=null, or start mgdet train without torchrun"
        )
    if cluster.workers not in ("auto", rank.world, *([0] if rank.world == 1 else [])):
        asked = list(cluster.workers) if isinstance(cluster.workers, tuple) else cluster.workers
        raise ConfigError(
            f"cluster.workers = {asked}, but torchrun has started {rank.world} (WORLD_SIZE). Set cluster.workers=auto, "
            "or change --nnodes and --nproc-per-node"
        )
    return experiment.model_copy(update={"cluster": cluster.model_copy(update={"workers": rank.world})})


@contextmanager
def _process_group(asked: Experiment, rank: Rank) -> Iterator[World]:
    """torch's process group of all ranks within the block: NCCL where each has a GPU of its own, else Gloo."""
    gpus = torch.cuda.device_count()
    gpu = gpus > 0 if asked.cluster.gpu == "auto" else asked.cluster.gpu
    if gpu and rank.local_rank >= gpus:
        raise ConfigError(
            f"torchrun has started {rank.local_world} processes on this machine, which has {gpus} GPUs: each needs one "
            "of its own. Lower --nproc-per-node, or set cluster.gpu=false"
        )
    device = torch.device("cuda", rank.local_rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    limit = timedelta(seconds=asked.cluster.collective_timeout_s)
    try:
        dist.init_process_group("nccl" if gpu else "gloo", timeout=limit)
    except (RuntimeError, ValueError) as error:
        raise ClusterError(
            f"the {rank.world} processes of torchrun did not find each other at MASTER_ADDR:MASTER_PORT: {error}"
        ) from error
    try:
        yield World.current(device)
    finally:
        dist.destroy_process_group()


def _lead(asked: Experiment, rank: Rank, world: World) -> tuple[Summary, RunHandle | None]:
    """Rank 0: everything around the training, as `launch` does it, and its own share of the training."""
    others_wait = True

    def execute(experiment: Experiment, handle: RunHandle | None, owner: Ownership) -> None:
        nonlocal others_wait
        world.broadcast(experiment.model_dump(mode="json"))
        others_wait = False
        try:
            _train(experiment, world, worker_tracker(experiment, handle, owner), owner)
        except TOGETHER:
            others_wait = True
            raise
        others_wait = True

    machine = this_machine()
    cpus = machine.cpus * rank.world / rank.local_world
    try:
        resolved, reasons = prepare(asked, cpus, float(rank.world) if world.device.type == "cuda" else 0.0)
        where = f"{rank.world} workers of torchrun, {rank.local_world} on this machine, {world.device.type}"
        return launch(asked, resolved, [*reasons, where], execute)
    finally:
        if others_wait:  # for a training that does not begin, or for the end of everything around it
            with suppress(RuntimeError):
                world.broadcast(None)


def _follow(asked: Experiment, world: World) -> tuple[Summary, None]:
    """Any other rank: its share of the training, if rank 0 begins one.

    It stays until rank 0 has recorded the end: torchrun stops all processes when one has failed.
    """
    tree: dict[str, Any] | None = None
    tree = world.broadcast(tree)
    experiment = asked if tree is None else validate(tree, "the experiment of rank 0")
    if tree is not None:
        try:
            _train(experiment, world, NullTracker())
        except TOGETHER:
            _wait_for_the_end(world)
            raise
        _wait_for_the_end(world)
    summary = summarise(experiment)
    if summary is None or not summary.already_finished:
        raise ClusterError(f"rank {world.rank} has nothing to train: rank 0 has ended, and its own message says why")
    return summary, None


def _wait_for_the_end(world: World) -> None:
    with suppress(RuntimeError):  # rank 0 is gone
        world.broadcast(None)


def _train(experiment: Experiment, world: World, tracker: Tracker, owner: Ownership | None = None) -> None:
    asked = threading.Event()

    def stop_asked() -> bool:
        # torchrun passes a signal on to every process, but not at the same step: the first one counts for all.
        return bool(world.mean(torch.tensor(float(asked.is_set()), device=world.device)))

    try:
        with on_stop(asked.set):
            if stop_asked():
                raise Interrupted("stopped on request before the first step; the same command goes on")
            judge = judge_of(experiment, world.device) if world.is_main else None
            Worker(experiment, world, tracker, stop_asked=stop_asked, owner=owner, judge=judge).run()
    finally:
        tracker.close()


@contextmanager
def _speaking_as(rank: int) -> Iterator[None]:
    """Other ranks than 0 log warnings and errors only, with the rank before each: rank 0 says what all know alike."""
    if not rank:
        yield
        return
    said, handlers = logging.getLogger("mgdet"), logging.getLogger().handlers[:]
    level = said.level

    def named(record: logging.LogRecord) -> bool:
        if not hasattr(record, "rank"):  # several handlers get the same record
            record.rank = rank
            record.msg, record.args = f"rank {rank}: {record.getMessage()}", ()
        return True

    said.setLevel(logging.WARNING)
    for handler in handlers:
        handler.addFilter(named)
    try:
        yield
    finally:
        said.setLevel(level)
        for handler in handlers:
            handler.removeFilter(named)
