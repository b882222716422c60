"""The whole way: load, examine, write pictures, page and tables."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from mgdet.assign import Assigner
from mgdet.config import Experiment
from mgdet.config_yaml import Overrides
from mgdet.data.dataset import ShardedDataset
from mgdet.errors import DataError
from mgdet.inference.output import JsonFile, OutputFile, empty_directory
from mgdet.microscope.numbers import Findings, Moment, Picture, Shown, examine
from mgdet.microscope.page import page
from mgdet.microscope.pictures import draw, file_name
from mgdet.microscope.subject import choose_assigners, choose_images, find_subject, read_images
from mgdet.microscope.tables import parquet, summary
from mgdet.models import Detector
from mgdet.structures import Batch, unique_names
from mgdet.training.precision import autocast

logger = logging.getLogger(__name__)

NEAR = 50
"""Priors of each object that are shown by each criterion."""
LARGE_PAGE = 10 * 2**20


class Written(NamedTuple):
    """The files of the microscope."""

    page: Path
    summary: Path
    table: Path
    pictures: tuple[Path, ...]


def visualize(
    source: str,
    out: str,
    *,
    overrides: Overrides = (),
    images: Sequence[int] | None = None,
    assigners: Sequence[str] | None = None,
    checkpoints: Sequence[str] = ("all",),
    data: str | None = None,
    split: str | None = None,
    near: int = NEAR,
    overwrite: bool = False,
    plugins: Sequence[str] = (),
) -> Written:
    """Show which priors of some images learn which task from which object, under several assigners.

    Args:
        source, overrides, checkpoints, plugins: see `find_subject`.
        out: a local directory, which must be empty or absent.
        images: their ids; see `choose_images`.
        assigners: see `choose_assigners`.
        data: root of the data set; by default that of the configuration.
        split: by default the one that the training evaluates on.
        near: priors of each object that are shown by each criterion, beside those that learn or are ignored.
        overwrite: let `out` hold files already. Those of the same names are replaced, all others stay.

    Raises:
        DataError: no such image or data set, or an `out` that is taken.
        ConfigError: an unknown assigner or configuration.
        CheckpointError: no such checkpoint.
    """
    if near < 1:
        raise DataError(f"near = {near}: it must be at least 1, the priors of each object that are shown")
    directory = empty_directory(out, overwrite)
    subject = find_subject(source, overrides, checkpoints, plugins)
    own = subject.experiment.data
    uri, name = data or own.uri, split or own.val_split
    dataset = ShardedDataset(uri, name)
    subject.require_categories(dataset.categories, uri)
    chosen = choose_assigners(subject.experiment, assigners)
    batches = list(read_images(dataset, subject.experiment, choose_images(dataset, images)))
    pictures = tuple(picture_of(batch, dataset.file_name(int(batch.positions[0]))) for batch in batches)

    shown: dict[tuple[int, int], Shown] = {}
    for m, state in enumerate(subject.states):
        detector = state.load()
        for p, batch in enumerate(batches):
            shown[m, p] = look(detector, batch, subject.experiment, subject.device, chosen, state.epoch, near)
        logger.info("%s: %d images under %d assigners", state.name, len(batches), len(chosen))
    moments = tuple(Moment(s.name, s.step, s.epoch) for s in subject.states)
    network = "trained: the weights of its checkpoints, in evaluation mode"
    if subject.trained is None:
        seed = subject.experiment.seed
        network = f"UNTRAINED: the network before its first step, seed {seed}; its scores and boxes mean nothing yet"
    about = {"source": subject.source, "network": network}
    return write(findings_of(about, subject.experiment, dataset, chosen, pictures, moments, shown), directory)


@torch.no_grad()
def look(
    detector: Detector,
    batch: Batch,
    experiment: Experiment,
    device: torch.device,
    assigners: Mapping[str, Assigner],
    epoch: int,
    near: int = NEAR,
) -> Shown:
    """What a detector in evaluation mode, after so many epochs, predicts for a batch of one image, and who learns."""
    here = batch.to(device)
    with autocast(device, experiment.train.precision):
        predictions = detector(here.images, here.sizes)
    overlap = experiment.train.ignore_overlap
    return examine(predictions, here.targets, assigners, near=near, ignore_overlap=overlap, epoch=epoch)


def findings_of(
    about: Mapping[str, str],
    experiment: Experiment,
    dataset: ShardedDataset,
    assigners: Mapping[str, Assigner],
    pictures: tuple[Picture, ...],
    moments: tuple[Moment, ...],
    shown: Mapping[tuple[int, int], Shown],
) -> Findings:
    """All that is shown of an experiment; `about` says from which `source` and of what `network`."""
    model = experiment.model
    return Findings(
        about={
            "source": about["source"],
            "name": experiment.name,
            "network": about["network"],
            "detector": f"{model.name} ({model.backbone}), {model.layout}",
            "data": f"{dataset.uri}, split {dataset.split}",
            "assigner": experiment.assigner.name,
        },
        classes=tuple(unique_names(dataset.categories)),
        points=model.layout.points,
        assigners=assigners,
        pictures=pictures,
        moments=moments,
        shown=shown,
    )


def write(findings: Findings, directory: Path) -> Written:
    """Write everything that shows these findings; the page is last. Raises `DataError`."""
    table = OutputFile(str(directory / "assignments.parquet"))
    table.write_bytes(parquet(findings))
    counts = JsonFile(str(directory / "summary.json"))
    counts.write(summary(findings))
    drawn = tuple(_write_pictures(findings, directory / "pictures"))
    text = page(findings).encode()
    if len(text) > LARGE_PAGE:
        logger.warning(
            "the page has %.0f MiB: choose fewer images, checkpoints or assigners, or a smaller --near, if the browser "
            "is slow with it",
            len(text) / 2**20,
        )
    html = OutputFile(str(directory / "index.html"))
    html.write_bytes(text)
    return Written(Path(html.file.path), Path(counts.file.path), Path(table.file.path), drawn)


def _write_pictures(findings: Findings, directory: Path) -> Iterator[Path]:
    for m, p in findings.shown:
        file = OutputFile(str(directory / file_name(findings, m, p)))
        file.write_bytes(draw(findings, m, p))
        yield Path(file.file.path)


def picture_of(batch: Batch, file_name: str) -> Picture:
    """The image of a batch of one, as `read_images` gives it."""
    height, width = batch.sizes[0].tolist()
    targets = batch.targets
    return Picture(
        id=int(batch.image_ids[0]),
        file_name=file_name,
        pixels=batch.images[0, :, :height, :width],
        boxes=targets.boxes[0].numpy(),
        labels=targets.labels[0].numpy(),
        crowds=targets.regions[0].numpy(),
    )
