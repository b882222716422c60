"""What the annotations alone say about a data set: objects that no training can learn, and what stands there twice.

Nothing is decoded, so it takes seconds for any data set. `prepare` reports it, and so do the dry run and the first
lines of a training, which know the size of the network's input as well.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mgdet.data.config import DataConfig
from mgdet.data.dataset import ShardedDataset
from mgdet.data.transforms import TransformConfig, least_side
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Category
from mgdet.text import first_of

NAMED = 5
"""How many classes or files a line names."""


@dataclass(frozen=True)
class Findings:
    """What was found in the splits of a data set."""

    lines: tuple[str, ...]
    """One sentence for each thing that a user should know; none where nothing is remarkable."""
    objects: Mapping[str, int]
    """Objects of each split, crowds not counted."""
    learnable: Mapping[str, int]
    """Those of them that are not below `min_box_size` at the largest input size of a training."""


def examine_data(data: DataConfig) -> Findings:
    """Look through the annotations that a training uses, without reading an image. Raises `DataError`."""
    names = dict.fromkeys([data.train_split, data.val_split])
    splits = {name: ShardedDataset(data.uri, name) for name in names}
    return examine(splits, data.transform, trained=data.train_split)


def examine(
    splits: Mapping[str, ShardedDataset],
    transform: TransformConfig | None = None,
    trained: str | None = None,
    parents: Mapping[str, str] | None = None,
) -> Findings:
    """Look through the annotations of some splits of one data set.

    Args:
        splits: by name.
        transform: of the training, which decides what is too small; None: nothing is.
        trained: the split that is trained on; only its small objects are reported.
        parents: the class above each class, where the source has such.
    """
    large = {name: _large_enough(split, transform) for name, split in splits.items()}
    learnable = {name: int(mask.sum()) for name, mask in large.items()}
    lines = [
        *_nothing(learnable, trained),
        *_small(splits, large, transform, trained),
        *_empty_splits(splits),
        *empty_classes({name: split.ground_truth() for name, split in splits.items()}, parents or {}),
        *similar_names(next(iter(splits.values())).categories if splits else ()),
        *_twice(splits),
    ]
    objects = {name: int((~split.ground_truth().iscrowd).sum()) for name, split in splits.items()}
    return Findings(tuple(lines), objects, learnable)


def _nothing(learnable: Mapping[str, int], trained: str | None) -> list[str]:
    if trained is None or learnable.get(trained, 1):
        return []
    return [f"nothing can be learned: no object of the split {trained} reaches the loss"]


def _large_enough(split: ShardedDataset, transform: TransformConfig | None) -> NDArray[np.bool_]:
    """Which objects `[M]` reach the loss where they are seen largest; no crowd does."""
    truth = split.ground_truth()
    if transform is None or not len(truth.boxes):
        return ~truth.iscrowd
    sizes, row = np.unique(split.sizes, axis=0, return_inverse=True)
    inputs = np.array([transform.largest_input(int(h), int(w)) for h, w in sizes])
    factor = (inputs / sizes)[row.reshape(-1)][truth.box_image][:, ::-1]
    extent = (truth.boxes[:, 2:] - truth.boxes[:, :2]) * factor
    return np.asarray((extent >= least_side(transform)).all(axis=1) & ~truth.iscrowd)


def _small(
    splits: Mapping[str, ShardedDataset],
    large: Mapping[str, NDArray[np.bool_]],
    transform: TransformConfig | None,
    trained: str | None,
) -> list[str]:
    if transform is None or trained is None or trained not in splits:
        return []
    truth = splits[trained].ground_truth()
    small = ~large[trained] & ~truth.iscrowd
    objects = int((~truth.iscrowd).sum())
    if not small.any():
        return []
    names = [category.name for category in truth.categories]
    lost, all_of = (np.bincount(truth.labels[m], minlength=len(names)) for m in (small, ~truth.iscrowd))
    worst = sorted(np.flatnonzero(lost).tolist(), key=lambda k: (-lost[k] / all_of[k], -lost[k]))
    by_class = first_of([f"{names[k]} {lost[k]} of {all_of[k]}" for k in worst], NAMED)
    return [
        f"{int(small.sum())} of {objects} training objects ({small.sum() / objects:.0%}) are smaller than "
        f"min_box_size = {transform.min_box_size:g} at this input size and will not be learned ({by_class}); such "
        "objects count in val/AP: use a larger data.transform.resize, or cut the images into tiles"
    ]


def _empty_splits(splits: Mapping[str, ShardedDataset]) -> list[str]:
    empty = [name for name, split in splits.items() if split.ground_truth().iscrowd.all()]
    return [f"{' and '.join(empty)}: no object at all outside of crowds"] if empty else []


def empty_classes(splits: Mapping[str, GroundTruth], parents: Mapping[str, str]) -> list[str]:
    """A sentence for the classes without an object in some split that has others."""
    without: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    counts = {}
    for name, truth in splits.items():
        counts[name] = np.bincount(truth.labels[~truth.iscrowd], minlength=len(truth.categories))
    filled = {name: count for name, count in counts.items() if count.any()}
    categories = next(iter(splits.values())).categories if splits else ()
    for label, category in enumerate(categories):
        where = tuple(name for name, count in filled.items() if not count[label])
        if where:
            below = [name for name, above in parents.items() if above == category.name and name != category.name]
            role = f" (it is the supercategory of {first_of(below, NAMED)})" if below else ""
            without[where].append(f"{category.name}{role}")
    everywhere = tuple(filled)
    return [
        f"{len(names)} {'class has' if len(names) == 1 else 'classes have'} 0 objects in {' and '.join(where)}: "
        f"{first_of(names, 10)}. {_consequence(where, everywhere)}"
        for where, names in without.items()
    ]


def _consequence(where: tuple[str, ...], everywhere: tuple[str, ...]) -> str:
    if where == everywhere:
        return "The detector gets an output that nothing trains; prepare --drop-empty-classes leaves such classes out"
    return "What is not trained on counts with an AP of 0, and what is not evaluated on has none"


def similar_names(categories: Sequence[Category]) -> list[str]:
    """A sentence for all names of classes that differ only by case, white space or Unicode form."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for category in categories:
        folded = unicodedata.normalize("NFKC", category.name).casefold()
        groups["".join(c for c in folded if c.isalnum()) or folded].append(category.name)
    return [
        f"class names differ only by case, spaces or punctuation: {', '.join(map(repr, names))}; are they one class?"
        for names in groups.values()
        if len(names) > 1
    ]


def _twice(splits: Mapping[str, ShardedDataset]) -> list[str]:
    lines = []
    for name, split in splits.items():
        names = Counter(split.file_name(i) for i in range(len(split)))
        if repeated := [f"{file} ({n} times)" for file, n in names.items() if n > 1]:
            lines.append(f"{name}: {len(repeated)} files are there under several ids: {first_of(repeated, NAMED)}")
        truth = split.ground_truth()
        rows = np.column_stack([truth.box_image, truth.labels, truth.iscrowd, truth.boxes])
        if again := len(rows) - len(np.unique(rows, axis=0)):
            lines.append(f"{name}: {again} annotations repeat another one (same image, class and box)")
    return lines
