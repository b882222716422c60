"""One optimizer step: predict, assign, compare, differentiate. Nothing here waits for the accelerator."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mgdet.assign.ignore import ignore_regions
from mgdet.config import Experiment
from mgdet.models import Detector, Losses
from mgdet.structures import Assignment, Batch, Predictions
from mgdet.training.distributed import World
from mgdet.training.precision import autocast


class StepSums:
    """Sums over the images of one worker since the last metric point, on its device: losses, positives, images."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, losses: Losses, images: int) -> None:
        """Take in one more micro-batch."""
        n = torch.full_like(losses.total.detach(), images)
        found = {"loss": losses.total.detach() * n}
        found |= {f"loss_{name}": term * n for name, term in losses.terms.items()}
        found |= {f"positives_{name}": count for name, count in losses.counts.items()}
        for name, value in {**found, "images": n}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def losses(self) -> dict[str, float]:
        """The sums of the total loss and of its terms on this worker."""
        return {name: float(value) for name, value in self.sums.items() if name.startswith("loss")}

    def metrics(self, world: World) -> dict[str, float]:
        """Means over images and workers under their tracking names; a collective."""
        means = world.mean(torch.stack(list(self.sums.values()))).tolist()
        found = dict(zip(self.sums, means, strict=True))
        images, both = found.pop("images"), found.pop("positives_both")
        out = {f"train/{name}": value / images for name, value in found.items()}
        return out | ({"train/agreement": both / found["positives_cls"]} if found["positives_cls"] else {})


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
    assigner = experiment.assigner.at(epoch, predictions.priors.layout)
    assignment = assigner(predictions, batch.targets)
    assignment = ignore_regions(assignment, predictions.priors, batch.targets.regions, experiment.train.ignore_overlap)
    losses = experiment.loss(
        predictions, batch.targets, assignment, detector.coder, world.mean, detector.config.quality
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
) -> None:
    """Gradients of the mean loss over the micro-batches, whose losses are added to `sums`.

    Workers exchange gradients only at the last micro-batch.
    """
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        ddp = isinstance(network, DistributedDataParallel)
        with nullcontext() if last or not ddp else network.no_sync():  # type: ignore[operator]  # only DDP has it
            losses = forward(network, detector, batch, experiment, world, epoch).losses
            (losses.total / len(batches)).backward()  # type: ignore[no-untyped-call]  # torch's stub
        sums.add(losses, len(batch.images))
