"""One optimizer step: predict, assign, compare, differentiate. Nothing here waits for the accelerator."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mgdet.config import Experiment
from mgdet.models import Detector, Losses
from mgdet.structures import Assignment, Batch, Predictions
from mgdet.training.distributed import World
from mgdet.training.precision import autocast

TERMS = ("loss", "loss_cls", "loss_box", "loss_quality", "loss_correlation")
"""The sum, and what it is the sum of."""


class StepSums(NamedTuple):
    """Sums over the images of one worker since the last metric point, on its device."""

    values: Tensor  # [9]: TERMS (each times images), positives cls, loc, both, images

    @classmethod
    def zero(cls, device: torch.device) -> "StepSums":
        """Nothing seen yet."""
        return cls(torch.zeros(len(TERMS) + 4, device=device))

    def add(self, losses: Losses, images: int) -> "StepSums":
        """With one more micro-batch."""
        n = torch.ones((), device=self.values.device) * images
        parts = [losses.total.detach(), losses.cls, losses.box, losses.quality, losses.correlation]
        positives = [losses.positives_cls, losses.positives_loc, losses.positives_both]
        return StepSums(self.values + torch.stack([*(part * n for part in parts), *positives, n]))

    def metrics(self, world: World, experiment: Experiment) -> dict[str, float]:
        """Means over images and workers under their tracking names, of the terms that are on; a collective."""
        *losses, n_cls, n_loc, n_both, images = world.mean(self.values).tolist()
        off = set() if experiment.loss.correlation else {"loss_correlation"}
        off |= {"loss_quality"} if experiment.model.quality == "none" else set()
        out = {f"train/{k}": v / images for k, v in zip(TERMS, losses, strict=True) if k not in off}
        out |= {"train/positives_cls": n_cls / images, "train/positives_loc": n_loc / images}
        return out | ({"train/agreement": n_both / n_cls} if n_cls else {})


class Forwarded(NamedTuple):
    """What a forward pass with labels gives."""

    predictions: Predictions
    assignment: Assignment
    losses: Losses


def forward(
    network: nn.Module, detector: Detector, batch: Batch, experiment: Experiment, world: World, epoch: float
) -> Forwarded:
    """Predictions, labels and losses of a micro-batch, `epoch` epochs (with a fraction) into the training.

    `network` is `detector` or its DDP wrapper.
    """
    with autocast(world.device, experiment.train.precision):
        predictions: Predictions = network(batch.images, batch.sizes)
    priors = detector.priors(batch.images)
    assigner = experiment.assigner.at(epoch, priors.layout)
    assignment = assigner(priors, predictions, batch.targets)
    losses = experiment.loss(
        priors, predictions, batch.targets, assignment, detector.coder, world.mean, detector.config.quality
    )
    return Forwarded(predictions, assignment, losses)


def accumulate_gradients(
    network: nn.Module,
    detector: Detector,
    batches: list[Batch],
    experiment: Experiment,
    world: World,
    epoch: float,
    sums: StepSums,
) -> StepSums:
    """Gradients of the mean loss over the micro-batches; workers exchange them only at the last one."""
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        ddp = isinstance(network, DistributedDataParallel)
        with nullcontext() if last or not ddp else network.no_sync():  # type: ignore[operator]  # only DDP has it
            losses = forward(network, detector, batch, experiment, world, epoch).losses
            (losses.total / len(batches)).backward()  # type: ignore[no-untyped-call]  # torch's stub
        sums = sums.add(losses, len(batch.images))
    return sums
