"""Whether a batch can fit into memory at all, found out before anything is allocated."""

import os

from mgdet.config import Experiment
from mgdet.data.order import micro_batch
from mgdet.data.transforms import TransformConfig
from mgdet.errors import ConfigError

BYTES_PER_PIXEL = 3 + 3 * 4
"""An image of bytes, and the float32 that the network takes; its feature maps need several times as much."""


def check_batch_fits(experiment: Experiment) -> None:
    """See that the images alone of one worker's batch fit into this machine, which is to train it.

    Nothing is said where another cluster trains, or of what the network needs beside its input. Raises `ConfigError`.
    """
    cluster, train = experiment.cluster, experiment.train
    if cluster.address or os.environ.get("RAY_ADDRESS"):
        return
    share = micro_batch(train.batch_size, max(1, cluster.most), train.accumulate)
    height, width = _largest(experiment.data.transform, experiment.data.loader.divisor)
    needed, there = share * height * width * BYTES_PER_PIXEL, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ConfigError(
            f"train.batch_size = {train.batch_size}: {share} images of {height} x {width} pixels are a worker's batch "
            f"and take {needed / 2**30:,.0f} GiB without the network's own memory; this machine has "
            f"{there / 2**30:,.0f} GiB. "
            "Lower it, or data.transform.resize, or raise train.accumulate."
        )


def _largest(transform: TransformConfig, divisor: int) -> tuple[int, int]:
    """Height and width in pixels of the largest image that the network may get, padding included."""
    height, width = (-(-side // divisor) * divisor for side in transform.bounds())
    return height, width
