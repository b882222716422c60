"""Evaluation over all workers: each evaluates its shard, and rank 0 computes the metrics from what all gathered."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from mgdet.evaluation.evaluator import EvaluationConfig, EvaluationResult, Evaluator
from mgdet.ground_truth import GroundTruth
from mgdet.models import Detector
from mgdet.structures import Batch, Detections
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


@torch.no_grad()
def evaluate(
    network: Detector,
    loader: Iterable[Batch],
    ground_truth: GroundTruth,
    config: EvaluationConfig,
    world: World,
    precision: Asked = "fp32",
) -> tuple[dict[str, float], Evaluated | None]:
    """Evaluate a network: the metrics by tracking name on every rank, and the whole result on rank 0 (else None).

    No collective runs on the accelerator here and none depends on how many images a rank has: shards may be uneven or
    empty. Raises `DataError` on every rank where an image was not seen exactly once.
    """
    was_training = network.training
    network.eval()
    evaluator = Evaluator(ground_truth, config)
    samples = Samples([], [], [], [], [])
    for host_batch in loader:
        batch = host_batch.to(world.device)
        with autocast(world.device, precision):
            predictions = network(batch.images, batch.sizes)
        detections, scores = network.detect(predictions, batch.sizes, batch.original_sizes)
        evaluator.update(batch, predictions, detections, scores)
        if world.is_main:
            _keep_samples(samples, host_batch, detections)
    network.train(was_training)

    states = world.gather(evaluator.state())
    evaluated: Evaluated | None = None
    outcome: dict[str, float] | Exception = {}
    if states is not None:
        try:
            result = evaluator.merge(states).compute()
            evaluated = Evaluated(result, samples)
            outcome = result.metrics()
        except Exception as error:  # the other ranks wait for an answer, whatever it is
            outcome = error
    outcome = world.broadcast(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome, evaluated


def _keep_samples(samples: Samples, batch: Batch, detections: Detections) -> None:
    for i in range(min(len(batch.images), SHOWN - len(samples.images))):
        height, width = batch.sizes[i].tolist()
        samples.images.append(batch.images[i, :, :height, :width].clone())
        valid = batch.targets.valid[i]
        samples.boxes.append(batch.targets.boxes[i][valid])
        samples.labels.append(batch.targets.labels[i][valid])
        samples.original_sizes.append(batch.original_sizes[i].clone())
        samples.detections.append(detections[i : i + 1].cpu())
