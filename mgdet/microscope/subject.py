"""What is put under the microscope: the states of a network, the images, and the assigners."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from mgdet.assign import Assigner, AssignerConfig
from mgdet.config import Experiment, load
from mgdet.config_base import Config
from mgdet.config_yaml import Overrides, parse_override, validate_as
from mgdet.data.collate import Collate
from mgdet.data.dataset import ShardedDataset
from mgdet.data.loader import EvalImages
from mgdet.data.shapes import ensure_shapes
from mgdet.errors import CheckpointError, ConfigError, DataError
from mgdet.inference.evaluate import require_categories
from mgdet.inference.load import Trained, load_detector
from mgdet.models import Detector, initialise
from mgdet.models.weights import NAMED_WEIGHTS
from mgdet.plugins import load_plugins
from mgdet.structures import Batch, Category, PriorLayout
from mgdet.text import first_of
from mgdet.training.checkpoint import CheckpointStore, best_of, weights_file
from mgdet.training.precision import resolve_precision

logger = logging.getLogger(__name__)

START = "start"
ALLOWED = f"all, best, last, {START} (the network before its first step) or numbers of steps"
IMAGES = 8
"""Images that are shown where none are named."""


class State(NamedTuple):
    """The network at one moment of its training; `load` reads it."""

    name: str
    step: int
    epoch: int
    load: Callable[[], Detector]


class Subject(NamedTuple):
    """An experiment and the states of its network that are looked at, in the order of the training."""

    source: str
    experiment: Experiment  # without an `auto` in `train.precision`
    states: tuple[State, ...]
    device: torch.device
    categories: tuple[Category, ...]
    trained: Trained | None  # one of the checkpoints; None: there is a configuration alone

    def require_categories(self, found: Sequence[Category], data: str) -> None:
        """Check that the classes of a data set are those of the network, in the same order. Raises `ConfigError`."""
        if self.trained is not None:
            require_categories(self.trained, found, data)
        elif self.categories != tuple(found):
            raise ConfigError(
                f"The classes of {data} are not those of {self.experiment.data.uri}, for which the network of "
                f"{self.source} is made. Set data.uri={data} in the place of --data."
            )


def find_subject(
    source: str,
    overrides: Overrides = (),
    checkpoints: Sequence[str] = ("all",),
    plugins: Sequence[str] = (),
) -> Subject:
    """The states of a run's network, or of a configuration alone the untrained network.

    Args:
        source: the directory of a run or a `.pt` file, as a path or URI; else a YAML file, or the name of a
            configuration that comes with mgdet.
        overrides: of a configuration any key; of a run those of `load_detector`.
        checkpoints: of a run: `ALLOWED`.
        plugins: modules or entry points that the run was trained with.

    Raises:
        CheckpointError: no such checkpoint, a damaged one, or a choice among checkpoints where there is no run.
        ConfigError: neither a run nor a configuration, or an override that is not allowed.
    """
    if not checkpoints:
        raise CheckpointError(f"no checkpoints were named. Allowed are {ALLOWED}.")
    is_run = not source.endswith(".pt") and ("://" in source or os.path.isdir(source))
    if not is_run and list(checkpoints) != ["all"]:
        raise CheckpointError(f"{source} is no run, so that it has no checkpoints to choose from. Give its directory.")
    if source.endswith(".pt"):
        only = load_detector(source, overrides, plugins=plugins)
        return _subject(source, only, (_state(only.step, only.epoch, lambda: only.detector),))
    if not is_run:
        return _of_configuration(source, overrides, plugins)
    store = CheckpointStore(source)
    kept = store.complete()
    if not kept:
        raise CheckpointError(
            f"{source}: a directory without a whole checkpoint. Give the directory of a run, such as runs/quickstart, "
            "or a configuration."
        )
    steps = {info.step: info for info in kept}
    wanted: set[int] = set()
    for word in checkpoints:
        if word == "all":
            wanted |= steps.keys()
        elif word == "best":
            wanted.add((best_of(kept) or kept[-1]).step)
        elif word == "last":
            wanted.add(kept[-1].step)
        elif word.isdecimal() and int(word) in steps:
            wanted.add(int(word))
        elif word != START:
            raise CheckpointError(
                f"{source} has no checkpoint {word!r}. Allowed are {ALLOWED}: it has those of the steps "
                f"{first_of(list(steps))}"
            )
    paths = {step: str(store.path(steps[step])) for step in sorted(wanted)}
    first = load_detector(next(iter(paths.values()), str(store.path(kept[-1]))), overrides, plugins=plugins)

    def reader(path: str) -> Callable[[], Detector]:
        return lambda: first.detector if path == first.path else load_detector(path, overrides, first.device).detector

    states = [_state(step, steps[step].epoch, reader(path)) for step, path in paths.items()]
    if START in checkpoints:
        classes = [c.name for c in first.categories]
        states.insert(0, State("untrained", 0, 0, lambda: untrained(first.experiment, classes, first.device)))
    return _subject(source, first, tuple(states))


def _state(step: int, epoch: int, load: Callable[[], Detector]) -> State:
    return State(f"step {step} (epoch {epoch})", step, epoch, load)


def _subject(source: str, first: Trained, states: tuple[State, ...]) -> Subject:
    return Subject(source, first.experiment, states, first.device, first.categories, first)


def _of_configuration(source: str, overrides: Overrides, plugins: Sequence[str]) -> Subject:
    load_plugins(plugins, (Path(),))
    try:
        experiment = load(source, overrides)
    except ConfigError as error:
        if os.path.exists(source) or "no such file" not in str(error):
            raise
        raise ConfigError(
            f"{source} is no run either: there is no such directory. As a configuration: {error}"
        ) from None
    data = experiment.data
    if data.generate is not None:
        ensure_shapes(data.uri, data.generate)
    categories = ShardedDataset(data.uri, data.val_split).categories
    classes = [c.name for c in categories]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(experiment.train.precision, device)
    experiment = experiment.model_copy(update={"train": experiment.train.model_copy(update={"precision": precision})})
    state = State("untrained", 0, 0, lambda: untrained(experiment, classes, device))
    return Subject(source, experiment, (state,), device, categories, None)


def untrained(experiment: Experiment, classes: Sequence[str], device: torch.device) -> Detector:
    """The network as a training of this seed starts it, in evaluation mode."""
    model = experiment.model
    if model.weights not in NAMED_WEIGHTS:
        model = model.model_copy(update={"weights": weights_file(model.weights)})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(experiment.seed)
        detector = experiment.model.build(len(classes))
        for note in initialise(detector, model, classes):
            logger.info("%s", note)
    return detector.to(device).eval().requires_grad_(False)


# --- images


def choose_images(dataset: ShardedDataset, ids: Sequence[int] | None) -> list[int]:
    """Rows of the images with these ids, each once; by default of the first `IMAGES` with objects.

    Raises `DataError` where there is no such image, or none at all.
    """
    place = f"{dataset.uri}, split {dataset.split}"
    if not len(dataset):
        raise DataError(f"{place}, has no images. Give another split.")
    if ids is None:
        full = (row for row in range(len(dataset)) if not dataset.annotation(row).iscrowd.all())
        return list(islice(full, IMAGES)) or list(range(len(dataset)))[:IMAGES]
    rows = {int(number): row for row, number in enumerate(dataset.image_ids)}
    if unknown := [number for number in dict.fromkeys(ids) if number not in rows]:
        raise DataError(
            f"{place}, has no image with the id {first_of(unknown)}. Its {len(rows)} images have the ids "
            f"{first_of(list(rows))}."
        )
    if not ids:
        raise DataError("no images were named. Give their ids, or leave the option out for the first ones.")
    return [rows[number] for number in dict.fromkeys(ids)]


def read_images(dataset: ShardedDataset, experiment: Experiment, rows: Sequence[int]) -> Iterator[Batch]:
    """A batch of each image as evaluation sees it, with its crowds. Raises `DataError` where one cannot be read."""
    data = experiment.data
    images = EvalImages(dataset, data.transform, data.loader.max_pixels, crowds=True)
    collate = Collate(data.loader.divisor)
    for row in rows:
        yield collate([images[row]])


# --- assigners


class _Named(Config):
    """Where an assigner stands, to be read as in a configuration."""

    assigner: AssignerConfig


COMPARED = (
    *("max_iou", "center_sampling", "atss", "task_aligned", "simota"),
    *("mutual_guidance", "mutual_labeling"),
)
"""The two papers' methods and the established ones beside them; of the others a picture would have no room."""


def choose_assigners(experiment: Experiment, asked: Sequence[str] | None) -> dict[str, Assigner]:
    """The assigners by the name under which they are shown, each without an `auto`.

    Args:
        experiment: its own assigner is meant by its name, with its own options.
        asked: names, with options as `max_iou:force_match=false`. By default the experiment's own comes first, then
            those of `COMPARED` that are defined for its detector.

    Raises `ConfigError` for an unknown one, for an option that it does not have, and where it is not defined for the
    detector.
    """
    own, layout = experiment.assigner, experiment.model.layout
    if asked is None:
        found: dict[str, Assigner] = {own.name: own.resolved_for(layout)}
        for name in (name for name in COMPARED if name != own.name):
            if assigner := _defined(name, layout):
                found[name] = assigner
            else:
                logger.info("assigner %s is not shown: it is not defined for %s", name, layout)
        return found
    if not asked:
        raise ConfigError("no assigners were named. Give some, or leave the option out for all.")
    return {text: _read(text, own).resolved_for(layout) for text in asked}


def first_defined(names: Sequence[str], own: str, layout: PriorLayout) -> dict[str, Assigner]:
    """The first of these assigners, but for `own`, that is defined for such priors, by its name; empty if none is."""
    found = ((name, _defined(name, layout)) for name in names if name != own)
    return next(({name: assigner} for name, assigner in found if assigner), {})


def _defined(name: str, layout: PriorLayout) -> Assigner | None:
    """An assigner by its name; None where it is not defined for such priors, as `max_iou` for points."""
    try:
        return validate_as(_Named, {"assigner": {"name": name}}, "assigners").assigner.resolved_for(layout)
    except ConfigError:
        return None


def _read(text: str, own: Assigner) -> Assigner:
    name, *options = text.split(":")
    if name == own.name and not options:  # type: ignore[attr-defined]  # every assigner has one
        return own
    tree = {"name": name, **dict(parse_override(option) for option in options)}
    return validate_as(_Named, {"assigner": tree}, f"assigner {text}").assigner
