"""What one worker of a training reads: both splits, and the loaders of its share of them."""

from dataclasses import dataclass

from mgdet.config import Experiment
from mgdet.config_base import resolved
from mgdet.data.dataset import ShardedDataset
from mgdet.data.fingerprint import Fingerprint, fingerprint
from mgdet.data.loader import EvalLoader, TrainLoader, build_eval_loader, build_train_loader
from mgdet.data.order import micro_batch, optimizer_steps
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Category
from mgdet.training.distributed import World
from mgdet.training.origin import data_of_run, refuse_other_data


@dataclass(frozen=True)
class TrainingData:
    """Both splits of an experiment, as one worker sees them."""

    train: ShardedDataset
    val: ShardedDataset
    fingerprint: Fingerprint
    ground_truth: GroundTruth  # of `val`
    train_loader: TrainLoader
    val_loader: EvalLoader
    steps_per_epoch: int  # optimizer steps

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.val.categories


def open_data(e: Experiment, world: World) -> TrainingData:
    """Raises `ConfigError` where the run has begun with other data: prepared again since the driver looked at them."""
    cache = e.data.loader.cache_mib * 2**20
    train = ShardedDataset(e.data.uri, e.data.train_split, cache)
    val = ShardedDataset(e.data.uri, e.data.val_split, cache)
    known = fingerprint(train.manifest, [e.data.train_split, e.data.val_split])
    refuse_other_data(e, data_of_run(e), known)
    batch_size = micro_batch(e.train.batch_size, world.size, e.train.accumulate)
    cpus = resolved(e.cluster.cpus_per_worker)
    pinned = world.device.type == "cuda"
    train_loader = build_train_loader(
        train,
        e.data.transform,
        e.data.loader,
        batch_size=batch_size,
        seed=e.seed,
        world=world.size,
        rank=world.rank,
        cpus=cpus,
        pin_memory=pinned,
        max_bad_images=e.data.max_bad_images,
        epochs=e.train.epochs,
    )
    val_loader = build_eval_loader(
        val,
        e.data.transform,
        e.data.loader,
        batch_size=batch_size,
        world=world.size,
        rank=world.rank,
        cpus=cpus,
        pin_memory=pinned,
    )
    steps = optimizer_steps(train.num_images, world.size, e.train.batch_size, e.train.accumulate)
    return TrainingData(train, val, known, val.ground_truth(), train_loader, val_loader, steps)
