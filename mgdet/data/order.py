"""The order in which each rank sees the images: pure functions of the seed and the epoch.

Every number of ranks sees the same *global* batches, one after another: the images of a step are a piece of the epoch's
order, and the ranks share it. So a run on other ranks, or one that changed its ranks in mid-epoch, learns from the same
images at each step (as MosaicML Streaming has it). Nothing here depends on the number of loader workers or on when a
run was stopped either.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from mgdet.errors import ConfigError

WINDOW = 16
"""Consecutive row groups (of the shuffled order) whose rows are shuffled among each other."""


class SampleKey(NamedTuple):
    """Identifies a training sample: an image, and the epoch, on which its augmentation depends."""

    epoch: int
    position: int  # row of the image in its split
    step: int = 0  # number of its batch in the epoch, the same on all ranks
    counts: bool = True  # False: it only fills the place of a rank for which the last global batch has no image


def epoch_order(row_group_sizes: Sequence[int], seed: int, epoch: int, window: int = WINDOW) -> NDArray[np.int64]:
    """The order of all `N` rows in an epoch: a permutation of `0..N-1`.

    Row groups are shuffled, then the rows within each `window` consecutive ones of that order. Reads stay local (a
    window is in the cache at a time) while a batch mixes images from all over the data set.

    Args:
        row_group_sizes: rows of each row group, in order of storage.
        seed: the experiment's, >= 0.
        epoch: its number, >= 0.
        window: row groups whose rows are shuffled together.
    """
    rng = np.random.default_rng([seed, epoch])
    sizes = np.asarray(row_group_sizes, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    groups = rng.permutation(len(sizes))
    parts = [np.zeros(0, dtype=np.int64)]
    for first in range(0, len(groups), window):
        rows = np.concatenate([starts[g] + np.arange(sizes[g]) for g in groups[first : first + window]])
        parts.append(rng.permutation(rows))
    return np.concatenate(parts)


class Neighbours:
    """The rows that are read at the same time as a row: those of its window in `epoch_order`.

    Args:
        row_group_sizes, seed, window: as those of `epoch_order`.
    """

    def __init__(self, row_group_sizes: Sequence[int], seed: int, window: int = WINDOW) -> None:
        self._ends, self._seed, self._window = np.cumsum(row_group_sizes, dtype=np.int64), seed, window
        self._epoch, self._order, self._place = -1, self._ends, self._ends

    def of(self, epoch: int, position: int) -> NDArray[np.int64]:
        """The other rows, in no order that means something; the row itself where there is no other."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._ends))
            self._place = np.argsort(self._order)  # of each row group in the order
        place = int(self._place[np.searchsorted(self._ends, position, side="right")])
        first = place - place % self._window
        starts = np.concatenate([[0], self._ends])
        rows = [np.arange(starts[g], self._ends[g]) for g in self._order[first : first + self._window]]
        found = np.concatenate(rows)
        return found[found != position] if len(found) > 1 else found


def require_images(num_images: int, world: int, batch_size: int) -> None:
    """Check that `num_images` are enough for one batch of `batch_size` on each of `world` ranks.

    Raises:
        ConfigError: too few images for the workers or for one batch.
    """
    n = num_images // world
    if n == 0:
        raise ConfigError(
            f"{num_images} training images are too few for {world} workers: each needs at least one. "
            f"Allowed: at most {num_images} workers. Use fewer workers or more images."
        )
    if batch_size > n:
        raise ConfigError(
            f"A batch of {batch_size} images per worker is more than the {n} images that each of {world} workers has "
            f"({num_images} in the split). Allowed: 1 to {n}. Use a smaller batch or fewer workers."
        )


def steps_per_epoch(num_images: int, world: int, batch_size: int) -> int:
    """Batches of each rank in an epoch; the last ones together may hold fewer images.

    Raises:
        ConfigError: as `require_images`.
    """
    require_images(num_images, world, batch_size)
    return -(-num_images // (world * batch_size))


def share_of(rows: NDArray[np.int64], world: int, rank: int) -> NDArray[np.int64]:
    """Rank `rank`'s part of a global batch: sizes differ by at most one, every row is in exactly one.

    Several ranks share the rows in order of storage, so that each reads few row groups of a window.
    """
    if world == 1:
        return rows
    mine = eval_shard(len(rows), world, rank)
    return np.sort(rows)[mine.start : mine.stop]


class Segment(NamedTuple):
    """A part of an epoch that was trained on with another number of ranks, or another batch size."""

    world: int
    batch_size: int  # images per batch and rank
    steps: int  # batches that each rank had


def images_seen(num_images: int, done: Sequence[Segment]) -> int:
    """How many of an epoch's images the segments `done`, one after another, have trained on."""
    return min(num_images, sum(world * batch_size * steps for world, batch_size, steps in done))


def eval_shard(num_images: int, world: int, rank: int) -> range:
    """Rank `rank`'s contiguous rows for evaluation: sizes differ by at most one, every image is in exactly one."""
    base, extra = divmod(num_images, world)
    start = rank * base + min(rank, extra)
    return range(start, start + base + (rank < extra))


class TrainBatches(Sampler[list[SampleKey]]):
    """Batch sampler of one rank: each batch is a list of `SampleKey`.

    Call `start` before iterating; iterating leaves the state as it is.

    Args:
        row_group_sizes: of the training split.
        batch_size: images per batch and rank.
        seed: of the experiment.
        world: number of ranks.
        rank: this one, 0..world-1.

    Raises:
        ConfigError: too few images for the workers or for one batch, or an impossible number.
    """

    def __init__(
        self, row_group_sizes: Sequence[int], *, batch_size: int, seed: int, world: int = 1, rank: int = 0
    ) -> None:
        if batch_size < 1 or world < 1 or not 0 <= rank < world or seed < 0:
            raise ConfigError(
                f"batch_size={batch_size}, world={world}, rank={rank}, seed={seed}: allowed are batch_size >= 1, "
                "world >= 1, 0 <= rank < world, seed >= 0."
            )
        self.row_group_sizes = tuple(row_group_sizes)
        self.batch_size, self.seed, self.world, self.rank = batch_size, seed, world, rank
        require_images(sum(self.row_group_sizes), world, batch_size)
        self.start(0)

    def start(self, epoch: int, step: int = 0, done: Sequence[Segment] = ()) -> None:
        """Let the next iteration give the batches of `epoch` from `step` on, 0..steps (from `steps` on there are none).

        `done` lists what other numbers of ranks have trained on in this epoch; steps count in what those left.

        Raises:
            ConfigError: no such step.
        """
        images = sum(self.row_group_sizes)
        self.steps = -(-(images - images_seen(images, done)) // (self.world * self.batch_size))
        if epoch < 0 or not 0 <= step <= self.steps:
            raise ConfigError(
                f"Cannot start at epoch {epoch}, step {step}: an epoch has {self.steps} steps. To resume "
                "from a checkpoint, use its data set, batch size and number of workers."
            )
        self.epoch, self.first_step, self.done = epoch, step, tuple(done)

    def __len__(self) -> int:
        """The number of batches in the next iteration."""
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, steps, together = self.epoch, range(self.first_step, self.steps), self.world * self.batch_size
        order = epoch_order(self.row_group_sizes, self.seed, epoch)
        order = order[images_seen(len(order), self.done) :]
        before = sum(segment.steps for segment in self.done)
        for step in steps:
            rows = order[step * together : (step + 1) * together]
            mine = [SampleKey(epoch, int(row), before + step) for row in share_of(rows, self.world, self.rank)]
            yield mine or [SampleKey(epoch, int(rows.max()), before + step, counts=False)]


class EvalBatches(Sampler[list[int]]):
    """Batch sampler of one rank for evaluation: the rows of its shard in order, each exactly once."""

    def __init__(self, num_images: int, *, batch_size: int, world: int = 1, rank: int = 0) -> None:
        if batch_size < 1 or world < 1 or not 0 <= rank < world:
            raise ConfigError(
                f"batch_size={batch_size}, world={world}, rank={rank}: allowed are batch_size >= 1, world >= 1, "
                "0 <= rank < world."
            )
        self.rows = eval_shard(num_images, world, rank)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, len(self.rows), self.batch_size):
            yield list(self.rows[first : first + self.batch_size])


def eval_batches(num_images: int, batch_size: int, world: int) -> list[list[int]]:
    """The batches of all ranks, those of the first one first."""
    return [b for rank in range(world) for b in EvalBatches(num_images, batch_size=batch_size, world=world, rank=rank)]


def micro_batch(batch_size: int, workers: int, accumulate: int) -> int:
    """Images in a micro-batch of one worker. Raises `ConfigError` where the global batch cannot be split evenly."""
    size, rest = divmod(batch_size, workers * accumulate)
    if rest or not size:
        raise ConfigError(
            f"train.batch_size = {batch_size} images per step cannot be split into {workers} workers x {accumulate} "
            f"micro-batches (train.accumulate) of equal size; nearest: {max(1, size) * workers * accumulate}"
        )
    return size


def optimizer_steps(num_images: int, workers: int, batch_size: int, accumulate: int) -> int:
    """Optimizer steps in an epoch; the last one may hold fewer micro-batches."""
    return -(-steps_per_epoch(num_images, workers, micro_batch(batch_size, workers, accumulate)) // accumulate)
