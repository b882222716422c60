"""The examination of a data set: opens it, looks at each picture once, and runs every check."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mgdet.config import Experiment
from mgdet.data.choices import Choices
from mgdet.data.decode import decode_image
from mgdet.data.formats.base import DataFormat
from mgdet.data.importer import check_workers
from mgdet.data.schema import Progress
from mgdet.diagnosis.annotated import open_annotated
from mgdet.diagnosis.annotations import classes, objects, overlaps
from mgdet.diagnosis.base import Check, Data, Finding, Split
from mgdet.diagnosis.files import copies, near_copies, pictures
from mgdet.diagnosis.kinds import SEVERITIES
from mgdet.diagnosis.labels import LEAST_SCORE, Detected, labels
from mgdet.diagnosis.prepared import open_prepared
from mgdet.diagnosis.priors import priors
from mgdet.inference.evaluate import require_categories
from mgdet.inference.load import Trained
from mgdet.inference.predict import detect

logger = logging.getLogger(__name__)

CHECKS: tuple[Check, ...] = (copies, near_copies, pictures, classes, objects, overlaps)
"""Those that need nothing but the data set; a check of your own is added here."""
IMAGES_AT_A_TIME = 8
"""How many pictures are in memory while a detector looks at them."""


@dataclass(frozen=True)
class Examined:
    """A data set, and what was found in it."""

    data: Data
    findings: tuple[Finding, ...]
    """The most severe first."""
    seconds: float


def examine_dataset(
    place: str | os.PathLike[str] | DataFormat,
    splits: Sequence[tuple[str, Sequence[str | os.PathLike[str]]]] = (),
    *,
    experiment: Experiment | None = None,
    trained: Trained | None = None,
    choices: Choices | None = None,
    workers: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Examined:
    """Look for whatever is wrong with a data set.

    Each picture is decoded once (twice with `trained`), and of it only a few numbers are kept.

    Args:
        place: URI of a prepared data set, or the format of annotation files.
        splits: of annotation files: the name of each split and the paths that the format takes.
        experiment: whose priors objects are compared with; by default that of `trained`.
        trained: a detector that judges the labels.
        choices: `allow_outside` and `max_pixels` are heeded.
        workers: decoding threads, by default one per CPU.
        progress: see `mgdet.data.schema.Progress`.

    Raises:
        DataError: there is no data set, or the paths are not those that the format takes.
        ConfigError: the detector was trained on other classes.
    """
    start = time.monotonic()
    check_workers(workers)
    choices = choices or Choices()
    threads = workers or len(os.sched_getaffinity(0))
    if isinstance(place, DataFormat):
        data, found = open_annotated(place, splits, choices, threads, progress)
    else:
        data, found = open_prepared(os.fspath(place), choices.max_pixels, threads, progress)
    checks = list(CHECKS)
    if trained is not None:
        require_categories(trained, data.categories, data.place)
        checks.append(labels(_detections(trained, choices.max_pixels, progress)))
    if settings := experiment or (trained.experiment if trained is not None else None):
        checks.append(priors(settings))
    if data.categories:
        found += [finding for check in checks for finding in check(data)]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Examined(data, tuple(found), time.monotonic() - start)


def _detections(
    trained: Trained, max_pixels: int, progress: Progress
) -> Callable[[Split], Iterator[tuple[int, Detected]]]:
    def found_in(split: Split) -> Iterator[tuple[int, Detected]]:
        total = len(split.names)
        for first in range(0, total, IMAGES_AT_A_TIME):
            rows = range(first, min(first + IMAGES_AT_A_TIME, total))
            images = [decode_image(split.read(row), split.names[row], max_pixels) for row in rows]
            found = detect(trained, images)
            for k, row in enumerate(rows):
                boxes = found.boxes[k].double()
                has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
                kept = found.valid[k] & (found.scores[k] >= LEAST_SCORE) & has_area
                scores, kinds = found.scores[k][kept].double(), found.labels[k][kept]
                yield row, Detected(boxes[kept].numpy(), scores.numpy(), kinds.numpy().astype(np.int64))
            progress(f"detecting in {split.name}", rows.stop, total)

    return found_in
