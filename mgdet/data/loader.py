"""Loaders that read a prepared data set, decode and transform its images, and make batches of them."""

import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mgdet.config_base import Config
from mgdet.data.augment import CROWD, Picture
from mgdet.data.bad_images import BadImages, Guarded
from mgdet.data.choices import MAX_PIXELS
from mgdet.data.collate import CollateReadable, Loaded, Sample
from mgdet.data.dataset import CACHE_BYTES, ShardedDataset, UnreadableImage
from mgdet.data.decode import decode_image
from mgdet.data.order import EvalBatches, Neighbours, SampleKey, Segment, TrainBatches
from mgdet.data.transforms import EvalTransform, TrainTransform, TransformConfig
from mgdet.errors import ConfigError, DataError
from mgdet.structures import Batch

logger = logging.getLogger(__name__)


class LoaderConfig(Config):
    """How batches are made; nothing here changes what is in them."""

    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = Field(
        default="auto",
        description="loader processes of each training worker; 0: the training process itself decodes; auto: one less "
        "than its CPUs, at most 8, and none for up to two CPUs",
    )
    prefetch: int = Field(default=2, gt=0, le=1000, description="batches that each loader process prepares ahead")
    start_method: Literal["forkserver", "spawn"] = Field(
        default="forkserver", description="how loader processes start; fork is not allowed, it breaks threads and CUDA"
    )
    divisor: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="heights and widths of a batch are padded to a multiple of this, the network's largest stride",
    )
    cache_mib: int = Field(
        default=CACHE_BYTES // 2**20,
        gt=0,
        le=2**30,
        description="encoded images that the training process and each loader process keep in memory, MiB; less than "
        "20 row groups (of at most 32 MiB, or one image) makes the order's windows be read again",
    )
    max_pixels: int = Field(
        default=MAX_PIXELS,
        gt=0,
        le=2**40,
        description="width times height of an image file, at most; a larger one is refused",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_pin_memory(cls, tree: Any) -> Any:
        """Leave out a key without effect that configurations and checkpoints of mgdet 0.1.0 carry."""
        if isinstance(tree, dict) and "pin_memory" in tree:
            _say_once("data.loader.pin_memory is ignored: batches for a GPU are always in page-locked memory")
            return {key: value for key, value in tree.items() if key != "pin_memory"}
        return tree


@cache
def _say_once(text: str) -> None:
    logger.info(text)


class TrainImages(Dataset[Sample]):
    """The decoded and augmented images of a split, by `SampleKey`. Crowd boxes are kept apart: they are no targets."""

    def __init__(
        self,
        source: ShardedDataset,
        config: TransformConfig,
        seed: int,
        max_pixels: int = MAX_PIXELS,
        epochs: int | None = None,
    ) -> None:
        self.source, self.transform, self.max_pixels = source, TrainTransform(config, seed, epochs), max_pixels
        self._neighbours = Neighbours(source.row_group_sizes, seed)

    def __getitem__(self, key: SampleKey) -> Sample:
        image, boxes, labels = picture = _load(self.source, key.position, self.max_pixels, crowds=True)
        where = {"epoch": key.epoch, "position": key.position, "step": key.step}
        data = self.transform(image, boxes, labels, **where, other=partial(self._other, key, picture))
        sample = _crowds_apart(_sample(self.source, key.position, image, data))
        return sample if key.counts else _filler(sample)

    def _other(self, key: SampleKey, picture: Picture, rng: np.random.Generator) -> Picture:
        """Another picture of those that are read at the time of this one, which are in the cache then.

        Where it cannot be read it is the picture itself: the other one is told when its own turn comes.
        """
        rows = self._neighbours.of(key.epoch, key.position)
        try:
            return _load(self.source, int(rows[rng.integers(len(rows))]), self.max_pixels, crowds=True)
        except UnreadableImage:
            return picture


class EvalImages(Dataset[Sample]):
    """The decoded and resized images of a split, by row. Without crowd boxes, which the evaluator has of its own
    (`ground_truth()`), unless `crowds` asks for them, apart from the objects as training has them."""

    def __init__(
        self, source: ShardedDataset, config: TransformConfig, max_pixels: int = MAX_PIXELS, crowds: bool = False
    ) -> None:
        self.source, self.transform, self.max_pixels, self.crowds = source, EvalTransform(config), max_pixels, crowds

    def __getitem__(self, position: int) -> Sample:
        image, boxes, labels = _load(self.source, position, self.max_pixels, self.crowds)
        return _crowds_apart(_sample(self.source, position, image, self.transform(image, boxes, labels)))


def _load(source: ShardedDataset, position: int, max_pixels: int, crowds: bool = False) -> Picture:
    """Pixels, boxes and labels of an image, with its crowds only where they are asked for."""
    image = _decoded(source, position, max_pixels)
    annotation = source.annotation(position)
    wanted = slice(None) if crowds else ~annotation.iscrowd
    labels = np.where(annotation.iscrowd, CROWD, annotation.labels)[wanted]
    return Picture(image, torch.from_numpy(annotation.boxes[wanted]).float(), torch.from_numpy(labels))


def _decoded(source: ShardedDataset, position: int, max_pixels: int) -> Tensor:
    """The pixels of an image. Raises `UnreadableImage` where there are none, or not those that its boxes refer to."""
    data, name = source.read_image(position), source.describe(position)
    try:
        image = decode_image(data, name, max_pixels)
    except DataError as error:
        raise UnreadableImage(str(error)) from error
    (height, width), said = image.shape[1:], source.sizes[position]
    if (height, width) != tuple(said):
        raise UnreadableImage(
            f"{name}: the picture has {width} x {height} pixels, its row says {said[1]} x {said[0]}. Prepare the data "
            "set again."
        )
    return image


def _crowds_apart(sample: Sample) -> Sample:
    """The sample with its crowds taken out of the objects."""
    data, crowd = sample.data, sample.data.labels == CROWD
    if not crowd.any():
        return sample
    return sample._replace(data=data.keep(~crowd), crowds=data.boxes[crowd])


def _filler(sample: Sample) -> Sample:
    """A picture of the same size that is a crowd, also beyond its borders, so that it takes no part in the losses."""
    nothing = Picture(torch.zeros_like(sample.data.image), sample.data.boxes[:0], sample.data.labels[:0])
    return sample._replace(data=nothing, position=-1, crowds=torch.tensor([[-1e5, -1e5, 1e5, 1e5]]))


def _sample(source: ShardedDataset, position: int, image: Tensor, data: Picture) -> Sample:
    return Sample(data, (image.shape[1], image.shape[2]), int(source.image_ids[position]), position)


class TrainLoader(DataLoader[Sample]):
    """A `DataLoader` of `Batch` whose next iteration can start at any step of any epoch.

    The batches are bit for bit the same for any number of loader processes and wherever the iteration starts. An image
    that cannot be read is left out of its batch and noted in `bad`, which refuses more than its limit.
    """

    batches: TrainBatches
    bad: BadImages

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # batches, not samples
        for loaded in super().__iter__():
            batch, bad = cast(Loaded, loaded)
            self.bad.note(bad)
            yield batch

    def start(self, epoch: int, step: int = 0, done: Sequence[Segment] = ()) -> None:
        """Let the next iteration give the batches of `epoch` from `step` on.

        `done` lists the parts of this epoch that other numbers of ranks have trained on. Raises `ConfigError` where the
        epoch has no such step.
        """
        self.batches.start(epoch, step, done)


class EvalLoader(DataLoader[Sample]):
    """A `DataLoader` of `Batch` that leaves out no image: a metric over the others would not be that of the split."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # batches, not samples
        for loaded in super().__iter__():
            batch, bad = cast(Loaded, loaded)
            if bad:
                raise DataError(f"{bad[0].reason} An evaluation leaves out no image.")
            yield batch


def build_train_loader(
    source: ShardedDataset,
    transform: TransformConfig,
    loader: LoaderConfig,
    *,
    batch_size: int,
    seed: int,
    world: int = 1,
    rank: int = 0,
    cpus: float = 1.0,
    pin_memory: bool = False,
    max_bad_images: int = 0,
    epochs: int | None = None,
) -> TrainLoader:
    """The training batches of one rank. Call `start(epoch, step)` on the result before each epoch.

    Args:
        source: the training split.
        transform: resizing and augmentation.
        loader: processes and padding.
        batch_size: images per batch and rank.
        seed: of order and augmentation.
        world: number of ranks.
        rank: this one.
        cpus: CPUs that this rank may use; decides `workers: auto`.
        pin_memory: make batches in page-locked memory, from which they go to a GPU faster.
        max_bad_images: different images that may be left out because they cannot be read; one more is a `DataError`
            of the iteration.
        epochs: of the whole training, in whose last ones some augmentations are off; None: it has no end.

    Raises:
        ConfigError: too few images for the workers or one batch, or too little shared memory.
    """
    batches = TrainBatches(source.row_group_sizes, batch_size=batch_size, seed=seed, world=world, rank=rank)
    options = _options(transform, loader, batch_size, cpus, pin_memory)
    images = Guarded(TrainImages(source, transform, seed, loader.max_pixels, epochs), source, transform.resize)
    result = TrainLoader(images, batch_sampler=batches, **options)
    result.batches, result.bad = batches, BadImages(max_bad_images)
    return result


def build_eval_loader(
    source: ShardedDataset,
    transform: TransformConfig,
    loader: LoaderConfig,
    *,
    batch_size: int,
    world: int = 1,
    rank: int = 0,
    batches: Sequence[list[int]] | None = None,
    cpus: float = 1.0,
    pin_memory: bool = False,
) -> EvalLoader:
    """A `DataLoader` of `Batch` over one rank's exact shard in order of storage, every image once over all ranks.

    Arguments and errors as `build_train_loader`; a rank may have no batch at all. `batches` are the rows of the split
    in each batch, in the place of those of one rank.
    """
    rows = batches or EvalBatches(source.num_images, batch_size=batch_size, world=world, rank=rank)
    options = _options(transform, loader, batch_size, cpus, pin_memory)
    images = Guarded(EvalImages(source, transform, loader.max_pixels), source, transform.resize)
    return EvalLoader(images, batch_sampler=rows, **options)


def resolve_loader_workers(cpus_for_this_worker: float) -> tuple[int, str]:
    """The number of loader processes behind `workers: auto`, and why.

    Two processes on one core are slower than one that does everything (302 against 604 images/s on 2 cores), so
    processes start only where the training process leaves cores free.
    """
    cpus = int(cpus_for_this_worker)
    if cpus <= 2:
        return 0, f"{cpus_for_this_worker:g} CPU for this worker: images are decoded in the training process"
    workers = min(cpus - 1, 8)
    return workers, f"{cpus_for_this_worker:g} CPUs for this worker: one trains, {workers} decode (at most 8)"


def _options(
    transform: TransformConfig, loader: LoaderConfig, batch_size: int, cpus: float, pin_memory: bool
) -> dict[str, Any]:
    workers = resolve_loader_workers(cpus)[0] if loader.workers == "auto" else loader.workers
    options: dict[str, Any] = {
        "num_workers": workers,
        "collate_fn": CollateReadable(loader.divisor),
        "pin_memory": pin_memory,
        # Its own generator: a new iterator draws a seed, which must not move the training's random numbers.
        "generator": torch.Generator().manual_seed(0),
    }
    if workers:
        height, width = transform.bounds()
        check_shared_memory(workers * loader.prefetch * batch_size * 3 * height * width)
        options |= {
            "multiprocessing_context": loader.start_method,
            "persistent_workers": True,
            "prefetch_factor": loader.prefetch,
            "worker_init_fn": end_with_parent,
        }
    return options


def end_with_parent(_: int = 0) -> None:
    """End this process when the one that made it is gone.

    torch's own watch compares parent ids, and misses a parent that dies while its loader processes still start.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_shared_memory(needed: int, path: Path = Path("/dev/shm")) -> None:
    """Check that the batches in flight from the loader processes, `needed` bytes, fit into shared memory.

    A process that finds it full would die with a bus error that names no reason.

    Raises:
        ConfigError: they do not fit; the message says what to change.
    """
    if not path.exists():
        return
    free = shutil.disk_usage(path).free
    if free < needed:
        raise ConfigError(
            f"{path} has {free / 2**20:.0f} MiB free, the loader's batches in flight need {needed / 2**20:.0f} MiB. "
            "Give the container more (docker run --shm-size=8g; Kubernetes: an emptyDir with medium: Memory mounted "
            "there), or use fewer loader workers (0 needs none), less prefetch or smaller batches."
        )
    if free < 2 * needed:
        logger.warning("%s: %.0f MiB free, up to %.0f MiB needed by the loader", path, free / 2**20, needed / 2**20)
