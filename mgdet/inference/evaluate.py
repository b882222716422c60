"""The evaluation of a checkpoint, the same as its training's own: one process reads every worker's shard in turn."""

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mgdet.data.dataset import ShardedDataset
from mgdet.data.fingerprint import data_differences, fingerprint
from mgdet.data.loader import build_eval_loader
from mgdet.data.pictures import Pictures
from mgdet.errors import ConfigError
from mgdet.evaluation.coco import CocoAP
from mgdet.evaluation.evaluator import AP
from mgdet.evaluation.matching import Ints
from mgdet.inference.load import Trained
from mgdet.inference.positives import PositiveCounts
from mgdet.inference.results import ResultFiles
from mgdet.structures import Batch, Category
from mgdet.text import duration
from mgdet.training.distributed import World
from mgdet.training.evaluate import Evaluated, Watch, evaluate
from mgdet.training.progress import ProgressLog

logger = logging.getLogger(__name__)

PER_CLASS = f"{AP.name}/"
"""The AP of a class stands under this and its name."""
NAMED_CLASSES = 12


class Evaluation(NamedTuple):
    """The metrics of a checkpoint on a split of a data set."""

    metrics: dict[str, float]  # under their tracking names; what is undefined is absent
    data: str  # root of the data set
    split: str
    images: int  # number of images in the split
    protocol: str  # `evaluation.protocol`, by whose rules AP was computed


def evaluate_trained(
    trained: Trained, data: str | None = None, split: str | None = None, files: ResultFiles | None = None
) -> Evaluation:
    """Evaluate on a split of a prepared data set.

    The batches are those of the training's own evaluation, however many workers it had: what an image is padded to
    depends on its batch. On the same machine and device, with as many threads, the metrics are therefore the same
    numbers.

    Args:
        trained: from `load_detector`.
        data: root of the data set; by default that of the training.
        split: by default the one that the training evaluated on.
        files: where detections and tables are written.

    Raises:
        DataError: no data set there, no such split, an image that cannot be read, or a file that cannot be written.
        ConfigError: its classes are not those of the checkpoint.
    """
    done, pictures, evaluated, positives = judge(trained, data, split, count_positives=files is not None)
    if files is not None:
        files.write(described(trained, done), evaluated.result.of(CocoAP), pictures, positives)
    return done


class Judgement(NamedTuple):
    """An evaluation with everything that it stands on."""

    evaluation: Evaluation
    pictures: Pictures
    evaluated: Evaluated
    positives: dict[str, Ints]  # of each task, how many priors learn it from each object; empty if not counted


def judge(
    trained: Trained,
    data: str | None = None,
    split: str | None = None,
    count_positives: bool = False,
) -> Judgement:
    """What `evaluate_trained` does and raises, with the detections themselves.

    Data that were prepared as tiles are judged as whole pictures, and so are their detections. `count_positives` asks
    the assigner of the training which objects the priors would learn from; an object in several tiles has no such
    number.
    """
    dataset = open_split(trained, data, split)
    pictures, truth = Pictures(dataset), dataset.ground_truth()
    counted = count_positives and not pictures.are_cut
    counts = PositiveCounts(truth, trained.experiment.assigner) if counted else None
    watch: dict[str, Watch] = {} if counts is None else {"watch": counts}
    metrics, evaluated = evaluate(
        trained.detector,
        _batches(dataset, trained),
        truth,
        trained.experiment.evaluation,
        World(0, 1, trained.device),
        trained.experiment.train.precision,
        **watch,
    )
    assert evaluated is not None, "one process has the whole result"
    return Judgement(
        evaluation_of(metrics, trained, dataset), pictures, evaluated, {} if counts is None else counts.counts
    )


def evaluation_of(metrics: dict[str, float], trained: Trained, dataset: ShardedDataset) -> Evaluation:
    """The metrics with what they are of."""
    return Evaluation(metrics, dataset.uri, dataset.split, dataset.num_images, trained.experiment.evaluation.protocol)


def open_split(trained: Trained, data: str | None = None, split: str | None = None) -> ShardedDataset:
    """The split that `evaluate_trained` means, whose classes are those of the detector.

    Raises:
        DataError: no data set there, or no such split.
        ConfigError: its classes are not those of the checkpoint.
    """
    uri, name = data or trained.experiment.data.uri, split or trained.experiment.data.val_split
    dataset = ShardedDataset(uri, name, trained.experiment.data.loader.cache_mib * 2**20)
    require_categories(trained, dataset.categories, uri)
    if data is None:
        _tell_other_data(trained, dataset)
    return dataset


def _tell_other_data(trained: Trained, dataset: ShardedDataset) -> None:
    """Warn where the data set at the place of the training is not the one that was trained on."""
    here = fingerprint(dataset.manifest, [s for s in trained.data.get("splits", ()) if s in dataset.manifest.splits])
    for line in data_differences(trained.data, here):
        logger.warning("%s was trained on other data than are at %s now: %s", trained.path, dataset.uri, line)


def described(trained: Trained, done: Evaluation) -> dict[str, Any]:
    """An evaluation with the checkpoint that it is of, for a file of JSON."""
    return {"checkpoint": trained.path, "epoch": trained.epoch, "step": trained.step, **done._asdict()}


def require_categories(trained: Trained, found: Sequence[Category], data: str) -> None:
    """Check that the data set's classes are those of the checkpoint, in the same order. Raises `ConfigError`."""
    ours, theirs = trained.categories, tuple(found)
    if ours == theirs:
        return
    label = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    raise ConfigError(
        f"The classes differ from number {label} on. {trained.path} was trained on {len(ours)}: {_names(ours, label)}. "
        f"{data} has {len(theirs)}: {_names(theirs, label)}. Ids, names and order must be the same, or a score would "
        "count for another class. Give a data set with the classes of the checkpoint, or a checkpoint trained on these."
    )


def _names(categories: Sequence[Category], label: int) -> str:
    """Ids and names of at most `NAMED_CLASSES` classes, from two before `label` on."""
    first = max(0, min(label - 2, len(categories) - NAMED_CLASSES))
    shown = ", ".join(f"{c.id} {c.name}" for c in categories[first : first + NAMED_CLASSES])
    return f"{'..., ' if first else ''}{shown}{', ...' if first + NAMED_CLASSES < len(categories) else ''}"


def _batches(dataset: ShardedDataset, trained: Trained) -> Iterator[Batch]:
    data = trained.experiment.data
    pace = ProgressLog("evaluated", dataset.num_images)
    for shard in range(trained.shards):
        batches = build_eval_loader(
            dataset,
            data.transform,
            data.loader,
            batch_size=trained.batch_size,
            world=trained.shards,
            rank=shard,
            cpus=len(os.sched_getaffinity(0)),
            pin_memory=trained.device.type == "cuda",
        )
        for batch in batches:
            yield batch
            pace.add(len(batch.images))
    logger.info("evaluated %d images in %s; now the metrics are computed", pace.done, duration(pace.seconds))
