"""The comparison of groups of runs: what differs, by how much, how surely, and in which images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mgdet.comparison.bootstrap import Difference, difference, image_weights
from mgdet.comparison.judged import Judged, read_judged, require_readable, require_same_images
from mgdet.comparison.statistics import lower_is_better, statistics
from mgdet.errors import ConfigError
from mgdet.evaluation.analysis import analyse
from mgdet.evaluation.matching import Floats

SAMPLES = 1000
LEVEL = 0.95
FEWEST_SAMPLES = 100


class ImageChange(NamedTuple):
    """An image in which two groups do not make as many errors."""

    image_id: int
    file: str
    base: float
    """Errors of the first group, mean over its runs: wrong detections and missed objects."""
    other: float

    @property
    def change(self) -> float:
        """Errors that the second group has more."""
        return self.other - self.base


@dataclass(frozen=True)
class Pair:
    """Two groups compared; the first one is the base."""

    base: str
    other: str
    differences: dict[str, Difference]
    """By the name of the statistic; those that neither group has are left out."""
    images: tuple[ImageChange, ...]
    """The images that differ, those in which the second group wins most first."""

    def verdict(self, statistic: str) -> str:
        """`better` or `worse` for the second group, empty where the interval holds 0."""
        found = self.differences[statistic]
        if not found.clear:
            return ""
        return "better" if (found.value < 0) == lower_is_better(statistic) else "worse"


@dataclass(frozen=True)
class Comparison:
    """Groups of runs on the same images."""

    groups: dict[str, list[dict[str, Any]]]
    """What each run of a group is: checkpoint, data, split."""
    images: int
    objects: int
    samples: int
    level: float
    seed: int
    pairs: tuple[Pair, ...]
    """Each group but the first one, compared with the first one."""


def compare(
    groups: Mapping[str, Sequence[str]],
    *,
    data: str | None = None,
    split: str | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    plugins: Sequence[str] = (),
) -> Comparison:
    """Compare groups of runs with the first one.

    Args:
        groups: sources of the runs by the name of their group, see `read_judged`; runs of one group differ in their
            seed.
        data, split: what runs and checkpoints are evaluated on.
        samples: of the bootstrap.
        seed: of the bootstrap; the same one gives the same intervals.
        plugins: modules or entry points that the runs were trained with.

    Raises:
        ConfigError: fewer than two groups, a group without a run, or too few samples.
        DataError: a source that cannot be read, or runs that were judged on other images.
    """
    if len(groups) < 2:
        raise ConfigError(f"{len(groups)} of at least 2 runs or groups were given: there is nothing to compare.")
    if empty := [name for name, sources in groups.items() if not sources]:
        raise ConfigError(f"the group {empty[0]} has no run: give its name, then the runs.")
    if samples < FEWEST_SAMPLES:
        raise ConfigError(
            f"{samples} samples give no interval; at least {FEWEST_SAMPLES} are needed, {SAMPLES} are usual."
        )
    for source in (source for sources in groups.values() for source in sources):
        require_readable(source, data, split, plugins)
    judged = {
        name: [read_judged(source, data, split, plugins) for source in sources] for name, sources in groups.items()
    }
    return compare_judged(judged, samples, seed)


def compare_judged(groups: Mapping[str, Sequence[Judged]], samples: int = SAMPLES, seed: int = 0) -> Comparison:
    """`compare`, of detections that are there already."""
    runs = [run for group in groups.values() for run in group]
    require_same_images(runs)
    gt = runs[0].gt
    generator = np.random.default_rng(seed)
    weights = image_weights(len(gt.image_ids), samples, generator)
    found = {name: [statistics(run, weights) for run in group] for name, group in groups.items()}
    errors = {name: _errors(group) for name, group in groups.items()}
    base, *others = groups
    pairs = []
    for other in others:
        names = [n for n in found[base][0] if any(n in s and s[n].size for s in found[other])]
        rows = {
            n: difference(_stacked(found[base], n), _stacked(found[other], n), len(gt.image_ids), LEVEL) for n in names
        }
        rows = {n: row for n, row in rows.items() if not (np.isnan(row.base) and np.isnan(row.other))}
        pairs.append(Pair(base, other, rows, _changes(runs[0], errors[base], errors[other])))
    return Comparison(
        {name: [{"name": run.name, **run.source} for run in group] for name, group in groups.items()},
        len(gt.image_ids),
        int((~gt.iscrowd).sum()),
        samples,
        LEVEL,
        seed,
        tuple(pairs),
    )


def _stacked(runs: Sequence[Mapping[str, Floats]], statistic: str) -> Floats:
    return np.stack([run[statistic] for run in runs])


def _errors(group: Sequence[Judged]) -> Floats:
    """Errors in each image, mean over the runs."""
    totals = []
    for run in group:
        found = analyse(run.gt, run.det).images
        totals.append((found.wrong + found.missed).astype(np.float64))
    return np.asarray(np.mean(totals, axis=0))


def _changes(run: Judged, base: Floats, other: Floats) -> tuple[ImageChange, ...]:
    change = other - base
    order = np.argsort(change, kind="stable")
    return tuple(
        ImageChange(int(run.gt.image_ids[row]), run.files[row], float(base[row]), float(other[row]))
        for row in order.tolist()
        if change[row] != 0
    )
