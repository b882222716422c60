"""A trained detector from a checkpoint, ready to be evaluated or to predict.

    trained = load_detector("runs/quickstart", ["model.postprocess.nms_iou=0.6"])

The checkpoint says everything about it: architecture, classes, preprocessing. Nothing that it holds is executed.
"""

import hashlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mgdet.config import Experiment, validate
from mgdet.config_yaml import Overrides, settings_of, with_settings
from mgdet.data.fingerprint import Fingerprint
from mgdet.errors import CheckpointError, ConfigError
from mgdet.models import Detector
from mgdet.plain_yaml import parse_yaml
from mgdet.plugins import load_plugins
from mgdet.records import RecordError, read_as
from mgdet.storage import Location, locate
from mgdet.structures import Category, read_categories
from mgdet.text import first_line
from mgdet.training.checkpoint import (
    UNFIT,
    CheckpointInfo,
    CheckpointStore,
    FormatError,
    read_checkpoint,
    record_of,
    verify,
)
from mgdet.training.origin import data_of
from mgdet.training.precision import emulation, resolve_precision

logger = logging.getLogger(__name__)

CHANGEABLE = (
    *("evaluation", "model.rescoring", "model.postprocess", "data.transform.resize", "data.loader"),
    *("train.batch_size", "train.precision"),
)
"""Keys, each with what lies below it, that mean something for weights that are there already."""
EXPECTED = (
    "Give a file checkpoints/step-*.pt that `mgdet train` wrote, or a run's directory such as runs/quickstart, which "
    "means its best checkpoint"
)


MOST_SHARDS = 65_536
"""Workers that a training can have had: each costs a pass over a part of the images, however few these are."""


class Trained(NamedTuple):
    """A trained detector, with everything that its checkpoint says about it."""

    detector: Detector  # in evaluation mode, on `device`
    experiment: Experiment  # the training's, with the overrides
    categories: tuple[Category, ...]  # in order of the contiguous label
    device: torch.device
    path: str  # of the checkpoint's file
    epoch: int  # epochs completed
    step: int
    averaged: bool  # the weights are the moving average
    shards: int  # contiguous parts in which the images are evaluated: the training's workers
    batch_size: int  # images at a time in each of them
    data: Fingerprint  # of what it was trained on; empty where the checkpoint does not say

    def __str__(self) -> str:
        kind = "moving average of the weights" if self.averaged else "weights"
        model = self.experiment.model
        return (
            f"{self.path}: {model.name} ({model.backbone}), {len(self.categories)} classes, {kind} after epoch "
            f"{self.epoch}, step {self.step}, on {self.device}"
        )


def load_detector(
    checkpoint: str, overrides: Overrides = (), device: torch.device | None = None, plugins: Sequence[str] = ()
) -> Trained:
    """The detector of a checkpoint with the weights that its training evaluated: the moving average where there is one.

    Args:
        checkpoint: a `.pt` file or a run's directory (its best checkpoint by `val/AP`, else the newest), as a local
            path or a `pyarrow.fs` URI.
        overrides: `dotted.key=value`, or a mapping, below `CHANGEABLE`. `train.batch_size` is here the number of
            images that this process takes at a time.
        device: by default the first GPU, without one the CPU.
        plugins: modules or entry points to import first, for a detector that was trained with them. A module may lie
            in the working directory. The checkpoint's own list of them is never imported.

    Raises:
        CheckpointError: nothing there, damaged, not a checkpoint, or weights that do not fit its configuration.
        ConfigError: an override that is unknown, not allowed, or cannot change for trained weights; or a plugin that
            the checkpoint needs and that was not named.
    """
    load_plugins(plugins, (Path(),))
    return build_detector(read_detector(checkpoint), overrides, device)


class Read(NamedTuple):
    """A checkpoint that was read, which can be sent to other processes."""

    path: str
    state: dict[str, Any]

    def digest(self) -> str:
        """SHA-256 of its configuration and of the weights that are evaluated: another training may write the path."""
        weights = self.state["ema"]["weights"] if _is_averaged(self.state) else self.state["model"]
        found = hashlib.sha256(str(self.state.get("config")).encode())
        for name in sorted(weights):
            found.update(name.encode())
            found.update(weights[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def read_detector(checkpoint: str) -> Read:
    """Read a checkpoint, as `load_detector` takes it, without what only a training needs. Raises `CheckpointError`."""
    path, state = _read(checkpoint)
    unused = {"optimizer", "scaler", "schedule", "generators", *(("model",) if _is_averaged(state) else ())}
    return Read(path, {key: value for key, value in state.items() if key not in unused})


def _is_averaged(state: Mapping[str, Any]) -> bool:
    """Whether the moving average of the weights is evaluated."""
    return isinstance(state.get("ema"), dict)


def build_detector(read: Read, overrides: Overrides = (), device: torch.device | None = None) -> Trained:
    """What `load_detector` gives and raises, for a checkpoint that was read; plugins must be loaded."""
    path, state = read
    asked = {key: value for key, value, _ in settings_of(overrides)}
    experiment = _experiment(path, state, asked)
    categories = _categories(path, state)
    detector = experiment.model.build(len(categories))
    averaged = _is_averaged(state)
    position = state.get("position")
    try:
        detector.load_state_dict(state["ema"]["weights"] if averaged else state["model"])
        epoch, step = (int(position[k]) for k in ("epoch", "step")) if isinstance(position, dict) else (0, 0)
    except UNFIT as error:
        raise CheckpointError(
            f"{path}: its weights do not fit its own configuration ({first_line(error)}). It was made by another "
            f"version of mgdet, or changed afterwards. {EXPECTED}."
        ) from error
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if experiment.train.channels_last else torch.contiguous_format
    detector.to(device, memory_format=layout)  # type: ignore[call-overload]  # torch's stub
    detector.eval().requires_grad_(False)
    experiment = _in_precision(experiment, device)
    sharing = _sharing(experiment, position if isinstance(position, dict) else {}, asked)
    return Trained(detector, experiment, categories, device, path, epoch, step, averaged, *sharing, data_of(state))


def _read(checkpoint: str) -> tuple[str, dict[str, Any]]:
    """Path or URI, and content, of a checkpoint's file, or of the best one where a directory is given."""
    if not checkpoint.strip():
        raise CheckpointError(f"The checkpoint's name is empty. {EXPECTED}.")
    file = locate(checkpoint)
    try:
        if file.is_directory():
            return _read_best(checkpoint)
        if not file.exists():
            raise CheckpointError(f"{checkpoint}: no such file or directory. {EXPECTED}.")
        data = file.read_bytes()
        _verify(file, data)
    except OSError as error:
        raise CheckpointError(f"{checkpoint}: cannot be read: {error}. Check rights, store and credentials.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about other pickle formats: what matters is said below
            return str(file), read_checkpoint(io.BytesIO(data), str(file))
    except FormatError:
        raise
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} ({len(data)} bytes): cut off, or no checkpoint of mgdet. {EXPECTED}."
        ) from error


def _read_best(directory: str) -> tuple[str, dict[str, Any]]:
    store, place = CheckpointStore(directory), locate(directory)
    if not store.directory.exists() and any(name.endswith(".pt") for name in place.children()):
        store.directory = place  # of the checkpoints themselves, not of their run
    if best := store.read_best(store.load):
        return str(store.path(best[0])), best[1]
    newest = store.latest()
    if newest is None:
        raise CheckpointError(f"{directory}: a directory without a whole checkpoint. {EXPECTED}.")
    path = str(store.path(newest[0]))
    logger.warning("%s: none of its checkpoints was evaluated; the newest is taken, %s", directory, path)
    return path, newest[1]


def _verify(file: Location, data: bytes) -> None:
    """Compare the file with its record, the `.json` beside it, if that was copied too. Raises `CheckpointError`."""
    record = record_of(file)
    try:
        info = read_as(CheckpointInfo, record.read_bytes())
    except OSError:
        return
    except RecordError as error:
        logger.warning("%s is passed over, so that nothing tells whether %s is whole: %s", record, file.name, error)
        return
    try:
        verify(file, data, info)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. Copy it again, or take another checkpoint of the run.") from error


def _experiment(path: str, state: dict[str, Any], asked: Mapping[str, Any]) -> Experiment:
    text = state.get("config")
    try:
        tree = parse_yaml(text) if isinstance(text, str) else None
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: holds no configuration, so nothing says what its weights are. {EXPECTED}.")
    validate(tree, f"the configuration in {path}")  # before the overrides: what is wrong here is not theirs
    # The training's loader processes suited its machine, and say nothing about the result
    settings: dict[str, Any] = {"data.loader.workers": "auto", **asked}
    fixed = [k for k in asked if not any(k == c or k.startswith(f"{c}.") for c in CHANGEABLE)]
    _refuse([k for k in fixed if _stands_in(tree, k)])
    experiment = validate(
        with_settings(Experiment, tree, settings, "overrides"), "overrides"
    )  # names what a misspelt key is near
    _refuse(fixed)
    return experiment


def _in_precision(experiment: Experiment, device: torch.device) -> Experiment:
    """The experiment with the `train.precision` of this device in the place of an `auto`; says where it is slow."""
    precision = resolve_precision(experiment.train.precision, device)
    if slow := emulation(device, precision):
        logger.warning("%s", slow)
    return experiment.model_copy(update={"train": experiment.train.model_copy(update={"precision": precision})})


def _sharing(experiment: Experiment, position: dict[str, Any], asked: Mapping[str, Any]) -> tuple[int, int]:
    """Shards and batch size: those that the training last had, or an override of `train.batch_size` in one shard."""
    size, workers = experiment.train.batch_size, experiment.cluster.workers
    if "train.batch_size" in asked:
        return 1, size
    world, share = position.get("world"), position.get("batch_size")  # a run may change its workers on the way
    if isinstance(world, int) and isinstance(share, int) and 0 < world <= MOST_SHARDS and share > 0:
        return world, share
    shards = max(1, workers) if isinstance(workers, int) else 1
    return shards, max(1, size // (shards * experiment.train.accumulate))


def _refuse(keys: Sequence[str]) -> None:
    if keys:
        raise ConfigError(
            f"{keys[0]} cannot be set for weights that are trained already. Allowed are {', '.join(CHANGEABLE)} and "
            "the keys below them. For anything else train a detector of its own with `mgdet train`."
        )


def _stands_in(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _categories(path: str, state: dict[str, Any]) -> tuple[Category, ...]:
    try:
        return read_categories(state["categories"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: holds no list of classes ({first_line(error)}). {EXPECTED}.") from error
