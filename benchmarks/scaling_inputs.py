"""Measures what `scaling_model.py` asks for: a training on one GPU (or CPU), and what connects some processes."""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import islice

import torch
import torch.distributed as dist
from scaling_model import Inputs, Network

from mgdet.config import Experiment, load
from mgdet.data.schema import read_manifest
from mgdet.errors import ConfigError
from mgdet.runs.launch import prepare
from mgdet.runs.resources import this_machine
from mgdet.structures import Batch
from mgdet.tracking import NullTracker
from mgdet.training.checkpoint import CheckpointStore
from mgdet.training.distributed import World
from mgdet.training.evaluate import NETWORK, POSTPROCESS, evaluate
from mgdet.training.loop import Worker
from mgdet.training.profile import stages_of
from mgdet.training.saver import on_host
from mgdet.training.step import StepSums, accumulate_gradients

WARM_UP = 3
GPU_HOURS_PER_FAULT = 50_700.0
ASSUMED = {
    "gpu_hours_per_fault": "419 unexpected interruptions in 54 days of 16,384 GPUs (Llama 3, arXiv 2407.21783, 3.3.4)",
    "restart_s": "docs/operations.md, a worker killed on two busy CPU cores; large networks and clusters take longer",
    "largest_batch": "a RetinaNet was trained with 1,056 images in a step (Wang et al., ECCV 2020)",
}


def measure(config: str, overrides: Sequence[str], steps: int) -> Inputs:
    """The inputs of a configuration, measured in this process with the share of a step that one worker has.

    Raises `ConfigError` where the data set is too small to measure.
    """
    machine = this_machine()
    asked = load(config, overrides)
    experiment, _ = prepare(asked, machine.cpus, machine.gpus)
    workers = max(1, experiment.cluster.most)
    share = experiment.train.batch_size // workers // experiment.train.accumulate
    device = torch.device("cuda" if experiment.cluster.gpu else "cpu")
    with tempfile.TemporaryDirectory() as directory:
        alone = _of_one(experiment, share, directory)
        worker = Worker(alone, World(0, 1, device), NullTracker())
        batches, loader_rate = _load(worker, steps)
        whole, spread = _steps(worker, batches)
        half, _ = _steps(worker, [batch[: max(1, share // 2)] for batch in batches])
        stall, write = _save(worker, directory)
        per_image, by_itself = _evaluate(worker)
    trained = [p for p in worker.detector.parameters() if p.requires_grad]
    seconds, fewer = sum(whole.values()), sum(half.values())
    smaller = max(1, share // 2) / share
    fixed = (fewer - smaller * seconds) / (1 - smaller) if smaller < 1 else 0.0
    return Inputs(
        about=f"{config} {' '.join(overrides)}".strip() + f": {machine.cpus:g} CPUs, {_name(device)}, {steps} steps",
        images_per_gpu=share,
        before_backward_s=whole["before"],
        backward_s=whole["backward"],
        optimizer_s=whole["optimizer"],
        fixed_s=min(max(fixed, 0.0), seconds),
        deviation_s=spread,
        gradient_bytes=sum(p.numel() * p.element_size() for p in trained),
        overlap=1.0 if device.type == "cuda" else 0.0,
        loader_images_per_s=loader_rate,
        image_bytes=_image_bytes(alone),
        train_images=worker.data.train.num_images,
        epochs=experiment.train.epochs,
        val_images=len(worker.data.ground_truth.image_ids),
        evaluate_every=experiment.train.evaluate_every,
        evaluation_image_s=per_image,
        evaluation_alone_s=by_itself,
        save_stall_s=stall,
        save_write_s=write,
        restart_s=21.0,
        gpu_hours_per_fault=GPU_HOURS_PER_FAULT,
        largest_batch=1056,
        assumed={
            **ASSUMED,
            "overlap": "gradients are exchanged beside backward on a GPU"
            if device.type == "cuda"
            else "on a CPU the exchange takes the time of the processor from backward",
        },
    )


def _of_one(experiment: Experiment, share: int, directory: str) -> Experiment:
    train = experiment.train.model_copy(update={"batch_size": share, "accumulate": 1})
    return experiment.model_copy(update={"storage": directory, "train": train})


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _load(worker: Worker, steps: int) -> tuple[list[Batch], float]:
    """Some batches, and the images per second of the loader when nothing else runs.

    What the loader processes had prepared before the first batch was asked for does not count.
    """
    worker.data.train_loader.start(0)
    wanted = steps + WARM_UP
    found: list[Batch] = []
    start = 0.0
    for batch in islice(worker.data.train_loader, wanted):
        start = start or time.perf_counter()
        found.append(batch)
    if len(found) < 2:
        raise ConfigError(
            f"the training split has {len(found)} batch of {worker.data.train_loader.batches.batch_size} images"
        )
    rate = sum(len(batch.images) for batch in found[1:]) / (time.perf_counter() - start)
    return found[:steps], rate


def _steps(worker: Worker, batches: list[Batch]) -> tuple[dict[str, float], float]:
    """Median seconds of the parts of a step (`before` backward, `backward`, `optimizer`), and the whole's deviation.

    The deviation is that of normal times with the same median distance from the median: one disturbed step of many does
    not count.
    """
    laps = [_step(worker, batch) for batch in [*batches[:1] * WARM_UP, *batches]][WARM_UP:]
    parts = dict(zip(("before", "backward", "optimizer"), map(statistics.median, zip(*laps, strict=True)), strict=True))
    whole = [sum(lap) for lap in laps]
    middle = statistics.median(whole)
    return parts, 1.4826 * statistics.median(abs(seconds - middle) for seconds in whole)


def _step(worker: Worker, batch: Batch) -> tuple[float, float, float]:
    """The seconds of the three parts of one step; the weights move as in a training."""
    device, experiment = worker.world.device, worker.experiment
    epoch = float(experiment.train.epochs)  # after any warm-up of the assigner
    start = _now(device)
    with stages_of(device) as times:
        moved = [batch.to(device)]
        accumulate_gradients(worker.detector, worker.detector, moved, experiment, worker.world, epoch, StepSums())
    between = _now(device)
    torch.nn.utils.clip_grad_norm_(worker.detector.parameters(), experiment.train.clip_norm or float("inf"))
    worker.optimizer.step()
    if worker.ema:
        worker.ema.update(worker.detector)
    worker.optimizer.zero_grad(set_to_none=True)
    backward = times.wall["backward"]
    return between - start - backward, backward, _now(device) - between


def _save(worker: Worker, directory: str) -> tuple[float, float]:
    """Seconds for which a step waits when a checkpoint is copied into kept buffers, and until it is written."""
    state = worker.state_dict()
    assert state is not None, "a single worker is rank 0"
    kept = on_host(state)
    start = _now(worker.world.device)
    kept = on_host(state, kept)
    copied = time.perf_counter()
    CheckpointStore(directory).save(kept, step=0, epoch=0, metrics={})
    return copied - start, time.perf_counter() - copied


def _evaluate(worker: Worker) -> tuple[float, float]:
    """Seconds of one image, and those that rank 0 takes alone, of an evaluation of the validation split."""
    experiment = worker.experiment
    _, evaluated = evaluate(
        worker.detector,
        worker.data.val_loader,
        worker.data.ground_truth,
        experiment.evaluation,
        worker.world,
        experiment.train.precision,
    )
    assert evaluated is not None, "a single worker is rank 0"
    seconds, images = dict(evaluated.seconds), max(1, len(worker.data.ground_truth.image_ids))
    shared = seconds.pop(NETWORK) + seconds.pop(POSTPROCESS)
    loading = seconds.pop("data")
    return (shared + loading) / images, sum(seconds.values())


def _image_bytes(experiment: Experiment) -> float:
    split = read_manifest(experiment.data.uri).split(experiment.data.train_split, experiment.data.uri)
    return sum(shard.size or 0 for shard in split.shards) / split.images


def measure_network(size: int) -> Network | None:
    """Latency and bandwidth between the processes that torchrun has started, as one node; None on other ranks than 0.

    Both follow from the time of a small and of a large all-reduce, by the formula of the ring.
    """
    if "WORLD_SIZE" not in os.environ:
        raise ConfigError("start it with torchrun --nproc-per-node N, N from 2")
    gpu = torch.cuda.device_count() > int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        ranks = dist.get_world_size()
        if ranks < 2:
            raise ConfigError("one process has nobody to talk to: torchrun --nproc-per-node 2")
        small, large = (_all_reduce(torch.zeros(n, device=device)) for n in (16, size // 4))
        if dist.get_rank():
            return None
    finally:
        dist.destroy_process_group()
    latency = small / (2 * (ranks - 1))
    bandwidth = 2 * (ranks - 1) / ranks * size / max(large - small, 1e-9)
    return Network(
        gpus_per_node=ranks,
        within_bytes_per_s=bandwidth,
        within_latency_s=latency,
        between_bytes_per_s=bandwidth,
        between_latency_s=latency,
        source=f"measured: {ranks} processes, {'nccl' if gpu else 'gloo'}, sums of 64 and {size} bytes",
    )


def _all_reduce(values: torch.Tensor) -> float:
    """The median of eleven times, after three that do not count."""
    laps = []
    for _ in range(WARM_UP + 11):
        dist.barrier()
        start = _now(values.device)
        dist.all_reduce(values)
        laps.append(_now(values.device) - start)
    return statistics.median(laps[WARM_UP:])
