"""One optimizer step: predict, assign, compare, differentiate. Nothing here waits for the accelerator."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mgdet.assign.ignore import ignore_regions
from mgdet.config import Experiment
from mgdet.models import Detector, Losses
from mgdet.models.losses.total import OverStep
from mgdet.structures import Assignment, Batch, Predictions
from mgdet.training.distributed import World
from mgdet.training.generators import generator_state, replayed
from mgdet.training.precision import autocast
from mgdet.training.profile import stage


class StepSums:
    """Sums over the images of one worker since the last metric point, on its device: losses, positives, images."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, losses: list[Losses], images: Tensor) -> None:
        """Take in one more step: the losses of its micro-batches, whose sums are those of the step, and its images.

        The images are the mean over the workers, because every worker's loss is divided by what all have together.
        """
        total = _sum([each.total.detach() for each in losses])
        n = images.to(total)
        found = {"loss": total * n}
        found |= {f"loss_{name}": _sum([each.terms[name] for each in losses]) * n for name in losses[0].terms}
        found |= {f"positives_{name}": _sum([each.counts[name] for each in losses]) for name in losses[0].counts}
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
    network: nn.Module,
    detector: Detector,
    batch: Batch,
    experiment: Experiment,
    world: World,
    epoch: float,
    *,
    assignment: Assignment | None = None,
    over_step: OverStep | None = None,
    share: float = 1.0,
) -> Forwarded:
    """Predictions, labels and losses of a micro-batch, `epoch` epochs (with a fraction) into the training.

    Args:
        network: `detector` or its DDP wrapper.
        detector: the network itself.
        batch: the micro-batch.
        experiment: resolved.
        world: this worker's.
        epoch: epochs completed, with a fraction.
        assignment: the labels of this batch if they are known already.
        over_step: see `LossConfig.__call__`; by default the batch is the whole step of this worker.
        share: likewise.
    """
    with stage("forward"), autocast(world.device, experiment.train.precision):
        predictions: Predictions = network(batch.images, batch.sizes)
    if assignment is None:
        with stage("assign"):
            assignment = experiment.assigner.at(epoch, predictions.priors.layout)(predictions, batch.targets)
            regions, overlap = batch.targets.regions, experiment.train.ignore_overlap
            assignment = ignore_regions(assignment, predictions.priors, regions, overlap)
    with stage("loss"):
        losses = experiment.loss(
            predictions,
            batch.targets,
            assignment,
            detector.coder,
            over_step or world.mean,
            detector.config.quality,
            share,
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
    scaled: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> None:
    """The gradient that all micro-batches would have as one batch; the step's losses are added to `sums`.

    What the losses are divided by is known when every micro-batch has its labels. The first one waits for the others:
    each of them goes through the network once without a gradient, for its labels, and once more with one. So a step of
    n micro-batches takes n - 1 more forward passes, and the memory of one micro-batch. Workers exchange normalisers
    once, and gradients only at the last micro-batch. `scaled` is applied to each loss before it is differentiated.
    """
    rehearsals = [_rehearse(detector, batch, experiment, world, epoch) for batch in batches[1:]]
    over_step = _OverStep(world, [r.normalisers for r in rehearsals], [batch.positions for batch in batches])
    images = sum(len(batch.images) for batch in batches)
    found = []
    for batch, rehearsal in zip(batches, [None, *rehearsals], strict=True):
        share = len(batch.images) / images
        no_exchange = batch is not batches[-1] and isinstance(network, DistributedDataParallel)
        with network.no_sync() if no_exchange else nullcontext():  # type: ignore[operator]  # only DDP has it
            with replayed(rehearsal.generators, world.device) if rehearsal else nullcontext():
                losses = forward(
                    network,
                    detector,
                    batch,
                    experiment,
                    world,
                    epoch,
                    assignment=rehearsal.assignment if rehearsal else None,
                    over_step=over_step,
                    share=share,
                ).losses
            with stage("backward"):
                scaled(losses.total).backward()  # type: ignore[no-untyped-call]  # torch's stub
        found.append(losses)
    sums.add(found, over_step.images)


def _sum(values: list[Tensor]) -> Tensor:
    return reduce(torch.add, values)


class _Rehearsal(NamedTuple):
    """What a forward pass without a gradient has shown of a micro-batch."""

    assignment: Assignment
    normalisers: Tensor
    generators: dict[str, Any]  # states of the random numbers before it: the pass with a gradient draws the same


@torch.no_grad()
def _rehearse(detector: Detector, batch: Batch, experiment: Experiment, world: World, epoch: float) -> _Rehearsal:
    generators = generator_state(world.device)
    normalisers: list[Tensor] = []

    def note(own: Tensor) -> Tensor:
        normalisers.append(own)
        return own

    with _statistics_kept(detector):
        out = forward(detector, detector, batch, experiment, world, epoch, over_step=note)
    return _Rehearsal(out.assignment, normalisers[0], generators)


class _OverStep:
    """Means over the workers, in one collective, of a step's images and of its normalisers.

    The normalisers are those of the first micro-batch, which asks first, and those that are known.
    """

    images: Tensor

    def __init__(self, world: World, known: list[Tensor], positions: list[Tensor]) -> None:
        self.world, self.known, self.positions = world, known, positions
        self.value: Tensor | None = None

    def __call__(self, own: Tensor) -> Tensor:
        if self.value is None:
            images = _sum([(rows >= 0).sum() for rows in self.positions]).to(own.dtype)
            means = self.world.mean(torch.cat([reduce(torch.add, self.known, own), images[None]]))
            self.value, self.images = means[:-1], means[-1]
        return self.value


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers in training compute with the batch's statistics, and leave their running averages alone."""
    tracking = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
