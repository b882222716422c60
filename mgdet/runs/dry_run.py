"""The dry run: one batch through every part of a training, without Ray, and no run is left behind."""

import resource
import tempfile
import time

import torch
from torch import Tensor

from mgdet.config import Experiment
from mgdet.data.findings import examine_data
from mgdet.data.order import micro_batch
from mgdet.runs.launch import prepare
from mgdet.runs.record import begun_with
from mgdet.runs.resources import arithmetic, check_fits, this_machine
from mgdet.structures import Assignment, Batch, Labels
from mgdet.tracking import NullTracker
from mgdet.training.checkpoint import CheckpointStore
from mgdet.training.distributed import World
from mgdet.training.evaluate import evaluate
from mgdet.training.loop import Worker
from mgdet.training.step import forward


def dry_run(experiment: Experiment) -> str:
    """Build everything, run one batch forward, backward, through a checkpoint and an evaluation; returns the report.

    The batch is what one worker of the configured number would see. Raises what the training would raise.
    """
    machine = this_machine()
    experiment, reasons = prepare(experiment, machine.cpus, machine.gpus)
    lines = [experiment.to_yaml(), *reasons]
    if experiment.cluster.workers and not experiment.cluster.address:
        lines.append(f"cluster: {arithmetic(experiment.cluster, machine, experiment.beside)}")
        check_fits(experiment.cluster, machine, experiment.beside)

    workers = max(1, experiment.cluster.most)
    share = micro_batch(experiment.train.batch_size, workers, experiment.train.accumulate)
    device = torch.device("cuda" if experiment.cluster.gpu else "cpu")
    with tempfile.TemporaryDirectory() as directory:
        train = experiment.train.model_copy(update={"batch_size": share, "accumulate": 1})
        weights = {} if begun_with(experiment) is None else {"weights": "none"}
        model = experiment.model.model_copy(update=weights)
        alone = experiment.model_copy(update={"storage": directory, "train": train, "model": model})
        worker = Worker(alone, World(0, 1, device), NullTracker())
        found = examine_data(experiment.data)
        lines += [f"annotations: {line}" for line in found.lines]
        worker.data.train_loader.start(0)
        batch = next(iter(worker.data.train_loader)).to(device)
        lines += _step(worker, batch)
        lines += _checkpoint_and_evaluation(worker, directory)
    lines.append(_memory(device))
    learnable = found.learnable[experiment.data.train_split]
    lines.append(
        "dry run: everything works; nothing was kept"
        if learnable
        else "dry run: every part runs, but NOTHING WOULD BE LEARNED: no object of the training split reaches the loss "
        "(see the lines that begin with `annotations:`); nothing was kept"
    )
    return "\n".join(lines)


def _step(worker: Worker, batch: Batch) -> list[str]:
    start = time.perf_counter()
    epoch = float(worker.experiment.train.epochs)  # after any warm-up of the assigner
    out = forward(worker.detector, worker.detector, batch, worker.experiment, worker.world, epoch)
    out.losses.total.backward()  # type: ignore[no-untyped-call]  # torch's stub
    worker.optimizer.step()
    seconds = time.perf_counter() - start
    priors = out.predictions.priors
    parameters = sum(p.numel() for p in worker.detector.parameters() if p.requires_grad)
    objects = int(batch.targets.valid.sum())
    return [
        f"images {_shape(batch.images)} uint8, {objects} objects, logits {_shape(out.predictions.logits)}",
        f"priors per level {list(priors.level_counts)}, {parameters:,} trainable parameters",
        f"positives per object: {_per_object(out.assignment, objects)}",
        f"loss {float(out.losses.total.detach()):.4f}, one step of {len(batch.images)} images took {seconds:.2f} s",
        f"{worker.data.steps_per_epoch} optimizer steps of this size in an epoch",
    ]


def _checkpoint_and_evaluation(worker: Worker, directory: str) -> list[str]:
    state = worker.state_dict()
    assert state is not None, "a single worker is rank 0"
    store = CheckpointStore(directory)
    info = store.save(state, step=0, epoch=0, metrics={})
    worker.load_state_dict(store.load(info))
    batch = next(iter(worker.data.val_loader))
    shown = worker.data.ground_truth.subset(batch.positions.numpy())
    local = batch.replace(positions=torch.arange(len(batch.images)))
    metrics, _ = evaluate(
        worker.detector, [local], shown, worker.experiment.evaluation, worker.world, worker.experiment.train.precision
    )
    return [
        f"checkpoint of {info.size / 2**20:.1f} MiB written, read back and loaded",
        f"evaluated {len(batch.images)} images: {len(metrics)} metrics",
    ]


def _per_object(assignment: Assignment, objects: int) -> str:
    def mean(labels: Labels) -> str:
        return f"{int((labels.gt_index >= 0).sum()) / max(1, objects):.1f}"

    return f"{mean(assignment.cls)} in classification, {mean(assignment.loc)} in localization"


def _memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"peak memory: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB on {device}"
    return f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of this process"


def _shape(t: Tensor) -> str:
    return str(list(t.shape))
