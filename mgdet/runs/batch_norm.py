"""Whether BatchNorm can learn from every batch of a training: from a single value per channel it cannot."""

from collections.abc import Iterable
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mgdet.config import Experiment
from mgdet.data.order import micro_batch, require_images
from mgdet.errors import ConfigError
from mgdet.models.detector import DetectorConfig


def check_batch_norm(experiment: Experiment, num_images: int, worker_counts: Iterable[int]) -> None:
    """Check the smallest batch of every possible number of workers, at the smallest size that an image may have.

    Args:
        experiment: its model, batches and sizes; its schedule and cluster may hold `auto`.
        num_images: images of the training split.
        worker_counts: numbers of workers that the training may have, each at least 1.

    Raises:
        ConfigError: a batch of one image would reach a BatchNorm layer as a map of one pixel. The message has the
            arithmetic and what to change.
    """
    train = experiment.train
    for workers in worker_counts:
        batch = micro_batch(train.batch_size, workers, train.accumulate)
        require_images(num_images, workers, batch)
        last = num_images % (workers * batch) or workers * batch
        alone = last < 2 * workers  # some worker has one image of the last batch, or a picture in the place of it
        if not alone or (train.sync_bn and workers > 1):  # which takes the values of all workers together
            continue
        height, width = _smallest_input(experiment)
        layer = _layer_with_one_value(experiment.model, height, width)
        if layer is not None:
            raise ConfigError(
                f"{num_images} training images in batches of {batch} for {workers} worker{'s' if workers > 1 else ''} "
                f"leave {last} for the last one, of which some worker has 1. From it the BatchNorm layer {layer} gets "
                f"a map of 1 x 1 pixel where the input has {height} x {width}: a single value per channel. "
                f"{_ways_out(experiment.model)}, another train.batch_size or number of workers, or larger images "
                "(data.transform.resize)"
            )


def _smallest_input(experiment: Experiment) -> tuple[int, int]:
    divisor = experiment.data.loader.divisor
    height, width = (-(-side // divisor) * divisor for side in experiment.data.transform.smallest())
    return height, width


def _layer_with_one_value(model: DetectorConfig, height: int, width: int) -> str | None:
    """The first BatchNorm layer that gets one value per channel from one image of this size in training, or None.

    Only shapes are computed: the network holds no numbers.
    """
    with torch.random.fork_rng(devices=[]):
        network = model.build(1).to("meta").train()
    found: list[str] = []

    def look(name: str):  # type: ignore[no-untyped-def]  # a forward hook
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            if inputs[0].numel() == inputs[0].shape[1]:
                found.append(name)
                raise _Found

        return hook

    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(look(name))
    with suppress(_Found), torch.no_grad():
        image = torch.empty(1, 3, height, width, device="meta")
        network.predict(list(network.backbone(image).values()), (height, width))
    return next(iter(found), None)


class _Found(Exception):
    """Ends a forward pass that has shown what was looked for."""


def _ways_out(model: DetectorConfig) -> str:
    keys = [f"model.{key}" for key in ("norm", "fpn_norm", "head_norm") if getattr(model, key) == "bn"]
    ways = [f"{key}=gn or {key}=frozen_bn" for key in keys] or ["a backbone without BatchNorm"]
    return f"Set {', '.join(ways)}"
