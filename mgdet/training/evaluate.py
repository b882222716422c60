"""Evaluation over all workers: each evaluates its shard, and rank 0 computes the metrics from what all gathered."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mgdet.evaluation.evaluator import EvaluationConfig, EvaluationResult, Evaluator
from mgdet.ground_truth import GroundTruth
from mgdet.models import Detector
from mgdet.structures import Batch, Detections, Predictions
from mgdet.training.cost import cost_of
from mgdet.training.distributed import World
from mgdet.training.precision import Asked, autocast

SHOWN = 8
"""Images kept for the picture of sample detections."""


class Samples(NamedTuple):
    """Some evaluated images with their objects and detections, to be shown as a picture."""

    images: list[Tensor]  # uint8 [3, h, w] each, network input without padding
    boxes: list[Tensor]  # [n, 4] objects, pixels of the network input
    labels: list[Tensor]  # [n]
    original_sizes: list[Tensor]  # (height, width) of the files
    detections: list[Detections]  # in pixels of the original file, batch of one


class Evaluated(NamedTuple):
    """The whole result of an evaluation, which only rank 0 has."""

    result: EvaluationResult
    samples: Samples
    seconds: Mapping[str, float]
    """How long the parts took on this rank, by `PARTS` and the names of the metrics."""


Watch = Callable[[Batch, Predictions], None]
"""Is shown each batch with what the network predicts for it, before suppression."""
DATA, NETWORK, POSTPROCESS = "data", "network", "postprocess"
PARTS = (DATA, NETWORK, POSTPROCESS)
"""Parts of an evaluation beside its metrics: waiting for images, the network, and what makes detections of it."""


@torch.no_grad()
def evaluate(
    network: Detector,
    loader: Iterable[Batch],
    ground_truth: GroundTruth,
    config: EvaluationConfig,
    world: World,
    precision: Asked = "fp32",
    watch: Watch = lambda batch, predictions: None,
) -> tuple[dict[str, float], Evaluated | None]:
    """Evaluate a network: the metrics by tracking name on every rank, and the whole result on rank 0 (else None).

    No collective runs on the accelerator here and none depends on how many images a rank has: shards may be uneven or
    empty. Raises `DataError` on every rank where an image was not seen exactly once.
    """
    evaluator = Evaluator(ground_truth, config)
    samples, seconds = see(network, loader, evaluator, world, precision, watch)
    states = world.gather(evaluator.state())
    evaluated: Evaluated | None = None
    outcome: dict[str, float] | Exception = {}
    if states is not None:
        try:
            merged = evaluator.merge(states)
            result = merged.compute()
            of_metrics = {name: evaluator.seconds[name] + merged.seconds[name] for name in merged.seconds}
            evaluated = Evaluated(result, samples, {**seconds, **of_metrics})
            outcome = result.metrics()
            if config.cost:
                outcome |= _cost(network, samples, world, precision)
        except Exception as error:  # the other ranks wait for an answer, whatever it is
            outcome = error
    outcome = world.broadcast(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome, evaluated


@torch.no_grad()
def see(
    network: Detector,
    loader: Iterable[Batch],
    evaluator: Evaluator,
    world: World,
    precision: Asked = "fp32",
    watch: Watch = lambda batch, predictions: None,
) -> tuple[Samples, dict[str, float]]:
    """Show an evaluator what a network finds in batches; some images of rank 0, and the seconds of each of `PARTS`."""
    was_training = network.training
    network.eval()
    samples = Samples([], [], [], [], [])
    seconds = dict.fromkeys(PARTS, 0.0)
    for host_batch in _timed(loader, seconds):
        batch = host_batch.to(world.device)
        start = time.perf_counter()
        with autocast(world.device, precision):
            predictions = network(batch.images, batch.sizes)
        _wait(world)
        between = time.perf_counter()
        detections, scores = network.detect(predictions, batch.sizes, batch.original_sizes)
        _wait(world)
        seconds[NETWORK] += between - start
        seconds[POSTPROCESS] += time.perf_counter() - between
        watch(batch, predictions)
        evaluator.update(batch, predictions, detections, scores)
        if world.is_main:
            _keep_samples(samples, host_batch, detections)
    network.train(was_training)
    return samples, seconds


def _cost(network: Detector, samples: Samples, world: World, precision: Asked) -> dict[str, float]:
    was_training = network.training
    network.eval()
    found = cost_of(network, samples.images, world.device, precision, lambda: _wait(world))
    network.train(was_training)
    return found


def _timed(loader: Iterable[Batch], seconds: dict[str, float]) -> Iterator[Batch]:
    """The same batches; how long they were waited for is added to `seconds`."""
    start = time.perf_counter()
    for batch in loader:
        seconds[DATA] += time.perf_counter() - start
        yield batch
        start = time.perf_counter()


def _wait(world: World) -> None:
    """Until the accelerator has done its work, whose time would else be that of whatever waits for it."""
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def _keep_samples(samples: Samples, batch: Batch, detections: Detections) -> None:
    for i in range(min(len(batch.images), SHOWN - len(samples.images))):
        height, width = batch.sizes[i].tolist()
        samples.images.append(batch.images[i, :, :height, :width].clone())
        valid = batch.targets.valid[i]
        samples.boxes.append(batch.targets.boxes[i][valid])
        samples.labels.append(batch.targets.labels[i][valid])
        samples.original_sizes.append(batch.original_sizes[i].clone())
        samples.detections.append(detections[i : i + 1].cpu())
