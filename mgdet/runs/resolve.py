"""Replace every `auto` of an experiment by the value it stands for here, and say why."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mgdet.config import Experiment
from mgdet.data.loader import resolve_loader_workers
from mgdet.data.order import optimizer_steps
from mgdet.errors import ConfigError
from mgdet.models.weights import require_file
from mgdet.runs.batch_norm import check_batch_norm
from mgdet.runs.config import ClusterConfig
from mgdet.training.compile import resolve_compile
from mgdet.training.precision import Precision, hardware
from mgdet.training.schedules import Span


def resolve(
    experiment: Experiment,
    *,
    num_images: int,
    cpus: float,
    gpus: float,
    begun: Mapping[str, Any] | None = None,
    needs_weights: bool = True,
) -> tuple[Experiment, list[str]]:
    """The experiment without any `auto`, and one line for each value that was found, with its reason.

    Args:
        experiment: as the user asked for it.
        num_images: images of the training split.
        cpus: CPUs of the whole cluster, or of this machine.
        gpus: likewise GPUs.
        begun: what keys with `auto` stand for in the existing run that is continued; they keep it.
        needs_weights: false where the run goes on from a checkpoint, so that the file of `model.weights` may be gone.

    Raises:
        ConfigError: batch, workers and data do not go together.
        CheckpointError: the file of `model.weights` is not there.
    """
    reasons: list[str] = []

    def found(key: str, value: object, why: str) -> None:
        reasons.append(f"{key} = {value} ({why})")

    def known(key: str) -> tuple[Any, str] | None:
        return (begun[key], "the run began with it") if begun and key in begun else None

    cluster = resolve_cluster(experiment.cluster, cpus, gpus, found, experiment.beside)
    gpu, workers, cpus_each = bool(cluster.gpu), cluster.workers, float(cluster.cpus_per_worker)
    assert workers != "auto", "it was resolved"

    if needs_weights:
        require_file(experiment.model.weights)
    train = experiment.train
    if train.sync_bn and not gpu:
        raise ConfigError("train.sync_bn = true works on GPUs only; set it to false, or use model.norm=gn")
    precision = train.precision
    if precision == "auto":
        precision, why = known("train.precision") or _precision(gpu)
        found("train.precision", precision, why)
    compiled = train.compile
    if compiled == "auto":
        compiled, why = known("train.compile") or resolve_compile(experiment.data.transform, gpu)
        found("train.compile", compiled, why)
    sizes = range(workers[0], workers[1] + 1) if isinstance(workers, tuple) else [max(1, workers)]
    # every possible number of workers is tried, so that none turns out to be impossible in the middle of a run
    steps = [optimizer_steps(num_images, n, train.batch_size, train.accumulate) for n in sizes][-1]
    check_batch_norm(experiment, num_images, sizes)
    log_every, total_steps = train.log_every, steps * train.epochs
    if log_every == "auto":
        log_every = max(1, min(50, steps // 10))
        found("train.log_every", log_every, f"{steps} optimizer steps in an epoch")
    schedule = train.schedule.resolved_for(Span(steps, total_steps))
    for key in type(schedule).model_fields:
        if getattr(train.schedule, key) == "auto":
            why = f"{train.epochs} epochs of {steps} optimizer steps"
            found(f"train.schedule.{key}", getattr(schedule, key), why)
    layout = experiment.model.layout
    assigner = experiment.assigner.resolved_for(layout)
    for key in type(assigner).model_fields:
        if getattr(experiment.assigner, key) == "auto":
            found(f"assigner.{key}", getattr(assigner, key), f"{experiment.model.name} has {layout}")
    loader = experiment.data.loader
    if loader.workers == "auto":
        count, why = resolve_loader_workers(cpus_each)
        loader = loader.model_copy(update={"workers": count})
        found("data.loader.workers", count, why)
    return (
        experiment.model_copy(
            update={
                "cluster": cluster,
                "assigner": assigner,
                "train": train.model_copy(
                    update={
                        "log_every": log_every,
                        "schedule": schedule,
                        "precision": precision,
                        "compile": compiled,
                    }
                ),
                "data": experiment.data.model_copy(update={"loader": loader}),
            }
        ),
        reasons,
    )


def resolve_cluster(
    config: ClusterConfig, cpus: float, gpus: float, found: Callable[[str, object, str], None], beside: int = 0
) -> ClusterConfig:
    """The configuration without any `auto`; `found(key, value, reason)` is called for each value that was found.

    Room is left for `beside` processes of the size of a worker, unless workers and CPUs are given.

    Raises:
        ConfigError: there is no GPU, and it asks for one; or elastic workers are to leave room for another process.
    """
    gpu = config.gpu
    if gpu == "auto":
        gpu = gpus >= 1
        found("cluster.gpu", gpu, f"the cluster has {gpus:g} GPUs")
    if gpu and gpus < 1:
        raise ConfigError("cluster.gpu = true, but there is no GPU; set cluster.gpu=false or auto, or another cluster")
    workers: int | tuple[int, int]
    if config.workers == "auto":
        workers = max(1, (int(gpus) if gpu else min(2 + beside, int(cpus))) - beside)
        why = "one per GPU" if gpu else f"{cpus:g} CPUs, at most 2 without a GPU"
        found("cluster.workers", workers, why + (f", {beside} of them to evaluate" if beside and gpu else ""))
    else:
        workers = config.workers
        if beside and isinstance(workers, tuple):
            raise ConfigError(
                f"cluster.workers = {list(workers)} and evaluation.where = aside: elastic workers would take the room "
                "of the process that evaluates. Set a fixed number of workers, or evaluation.where=workers"
            )
    cpus_each = config.cpus_per_worker
    if cpus_each == "auto":
        most = max(1, workers[1] if isinstance(workers, tuple) else workers)
        cpus_each = float(max(1, min(16, int(cpus / (most + beside)))))
        judge = f" and {beside} that evaluates" if beside else ""
        found("cluster.cpus_per_worker", cpus_each, f"{cpus:g} CPUs for {most} workers{judge}, at most 16 each")
    return config.model_copy(update={"gpu": gpu, "workers": workers, "cpus_per_worker": cpus_each})


def out_of_reach(asked: Experiment, resolved: Experiment, num_images: int) -> list[str]:
    """One sentence for each thing that the experiment, `asked` for and `resolved`, would never come to.

    Args:
        asked: with its `auto`, which is never out of reach.
        resolved: as `resolve` gave it.
        num_images: images of the training split.
    """
    train, workers = resolved.train, max(1, resolved.cluster.most)
    steps = optimizer_steps(num_images, workers, train.batch_size, train.accumulate)
    found = asked.train.schedule.cautions(Span(steps, steps * train.epochs))
    assigner, layout = resolved.assigner, resolved.model.layout
    if assigner.at(train.epochs - 1 / steps, layout) != assigner.at(math.inf, layout):
        found.append(
            f"assigner: {assigner.name} is still warming up when the training ends, after {train.epochs} epochs"
        )
    return found


def _precision(gpu: bool) -> tuple[Precision, str]:
    if gpu and not torch.cuda.is_available():
        return "fp32", "this machine has no GPU that would show what those of the workers can; say it if they have bf16"
    found = hardware(torch.device("cuda" if gpu else "cpu"))
    return found.best, found.why()
