"""What `import mgdet` offers: train, search, prepare data, use and export what was trained, see who learns what.

    result = mgdet.train("quickstart", {"train.epochs": 4, "cluster.workers": 0})
    detector = mgdet.load(result.run)
    detector.evaluate().metrics["val/AP"]
    detector.predict("photo.jpg").boxes

Errors that the caller can mend are `mgdet.MgdetError`; their message says what is wrong and what to do. Progress is
logged by the loggers below `mgdet`: `logging.basicConfig(level=logging.INFO)` shows it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdet.config import load as load_experiment
from mgdet.config_yaml import Overrides
from mgdet.errors import ConfigError, DataError, MgdetError
from mgdet.host import require_linux
from mgdet.inference.load import load_detector
from mgdet.results import (
    Comparison,
    Diagnosis,
    Export,
    PreparedData,
    TrainedDetector,
    TrainingResult,
    TuningResult,
    Visualization,
)

if TYPE_CHECKING:
    import torch

    from mgdet.data.formats import DataFormat

Configuration = str | os.PathLike[str] | Mapping[str, Any]


def train(config: Configuration = "quickstart", overrides: Overrides = ()) -> TrainingResult:
    """Train a detector to its end, or continue the run of the same `storage` and `name`.

    Args:
        config: a YAML file, the name of a configuration that comes with mgdet (`mgdet configs` lists them), or a
            mapping of what such a file would hold.
        overrides: keys that differ, `{"train.epochs": 4}` or `["train.epochs=4"]`; `mgdet --keys` lists all.

    With `cluster.workers` 0 it runs in this process, else on Ray.

    Raises:
        MgdetError: anything that the caller can mend. What was saved before stays.
    """
    require_linux()
    from mgdet.cluster.train import run

    experiment = load_experiment(_plain(config), overrides)
    summary, _ = run(experiment)
    return TrainingResult(experiment.run_uri, str(summary.checkpoint), summary.epoch, summary.metrics)


def tune(config: Configuration = "quick", overrides: Overrides = (), *, retry_failed: bool = False) -> TuningResult:
    """Search the space of a sweep with Ray Tune, or continue the sweep of the same `storage` and `name`.

    Args:
        config: a YAML file, the name of a sweep that comes with mgdet, or a mapping of what such a file would hold.
        overrides: keys of the sweep or of its experiment that differ.
        retry_failed: run trials that failed in an earlier start again.

    Raises:
        MgdetError: anything that the caller can mend, and a sweep in which no trial came to a value.
    """
    require_linux()
    from mgdet.cluster.tune import run_sweep
    from mgdet.sweep.config import load_sweep

    outcome = run_sweep(load_sweep(_plain(config), overrides), retry_failed=retry_failed)
    if outcome.winner is None or outcome.winner_config is None:
        raise MgdetError(f"no trial came to a value; the log has the reasons:\n{outcome.table}")
    return TuningResult(
        outcome.winner.settings, outcome.winner.evaluations[-1].metrics, outcome.winner_config, outcome.table
    )


def prepare(
    format: str,
    out: str | os.PathLike[str],
    *,
    splits: Mapping[str, Sequence[str | os.PathLike[str]]] | None = None,
    overwrite: bool = False,
    plugins: Sequence[str] = (),
    **options: Any,
) -> PreparedData:
    """Write a data set that a training can use.

    Args:
        format: `coco`, annotation files and their images; `shapes`, generated images; or the name of a plugin's format.
        out: where to write, a directory or a URI. It appears only when it is complete.
        splits: unless it is `shapes`: for each split the paths, or URIs, that the format takes; of `coco`, its
            annotation file and the directory of its images.
        overwrite: replace a data set that is there.
        plugins: modules or entry points that bring formats; a module may lie in the working directory.
        options: of `shapes`: the keys below `data.generate`, such as `train=600, size=96`; of all others `name`,
            `workers`, and the options that `mgdet prepare FORMATNAME --help` lists, such as `skip_bad_images=True`.

    Raises:
        DataError: wrong annotations, images that cannot be read, or an `out` that is taken.
        ConfigError: an option that there is not, a value that is not allowed, or a plugin that cannot be used.
    """
    require_linux()
    from mgdet.config_yaml import validate_as
    from mgdet.data import ShapesConfig, generate_shapes, import_annotations
    from mgdet.plugins import load_plugins

    load_plugins(plugins, (Path(),))
    if format == "shapes":
        manifest = generate_shapes(out, validate_as(ShapesConfig, options, "shapes"), overwrite=overwrite)
    else:
        data_format, common = _data_format(format, options)
        if not splits:
            paths = ", ".join(data_format.places)
            raise DataError(f"{format} needs splits={{'train': ({paths}), 'val': ({paths})}}")
        manifest = import_annotations(out, data_format, list(splits.items()), overwrite=overwrite, **common)
    classes = tuple(c.name for c in manifest.category_tuple())
    return PreparedData(os.fspath(out), classes, {name: split.images for name, split in manifest.splits.items()})


def doctor(
    data: str | os.PathLike[str],
    *,
    splits: Mapping[str, Sequence[str | os.PathLike[str]]] | None = None,
    config: Configuration | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    plugins: Sequence[str] = (),
    **options: Any,
) -> Diagnosis:
    """Look for whatever is wrong with a data set, and change nothing.

    Args:
        data: a prepared data set, a directory or a URI; or with `splits` the name of a format of annotations.
        splits: as `prepare` takes them.
        config: a configuration whose anchors are compared with the objects; by default that of `checkpoint`.
        checkpoint: a run or a `.pt` file: its detector looks for wrong labels.
        plugins: modules or entry points that bring formats, or that the detector was trained with.
        options: `workers`, `allow_outside`, `max_pixels` and the format's own.

    Raises:
        DataError: there is no data set, or the paths are not those of the format.
        ConfigError: an option that there is not, or a checkpoint of other classes.
    """
    require_linux()
    from mgdet.data.choices import READING, Choices
    from mgdet.diagnosis.examine import examine_dataset
    from mgdet.plugins import load_plugins

    load_plugins(plugins, (Path(),))
    place: str | DataFormat = os.fspath(data)
    common = options
    if splits:
        place, common = _data_format(os.fspath(data), options)
    if unknown := common.keys() - {"workers", *READING}:
        raise ConfigError(f"doctor has no option {min(unknown)!r}: allowed are workers, {', '.join(READING)}")
    choices = Choices(**{name: value for name, value in common.items() if name in READING})
    examined = examine_dataset(
        place,
        list((splits or {}).items()),
        experiment=None if config is None else load_experiment(_plain(config)),
        trained=None if checkpoint is None else load_detector(os.fspath(checkpoint), plugins=plugins),
        choices=choices,
        workers=common.get("workers"),
    )
    return Diagnosis(examined)


def _data_format(name: str, options: Mapping[str, Any]) -> tuple["DataFormat", dict[str, Any]]:
    """The format of this name with its own options, and the options that all imports have."""
    from mgdet.data.choices import Choices
    from mgdet.data.formats import FORMATS

    found = {each.name: each for each in FORMATS}.get(name)
    if found is None:
        raise DataError(f"format = {name!r}: allowed are {', '.join(each.name for each in FORMATS)} and shapes")
    own = [each.name for each in found.options()]
    allowed = ["name", "workers", *(each.name for each in Choices.options()), *own]
    if unknown := options.keys() - set(allowed):
        raise ConfigError(f"{name} has no option {min(unknown)!r}: allowed are {', '.join(allowed)}")
    data_format = found(**{key: value for key, value in options.items() if key in own})
    return data_format, {key: value for key, value in options.items() if key not in own}


def load(
    source: str | os.PathLike[str],
    overrides: Overrides = (),
    device: "torch.device | str | None" = None,
    plugins: Sequence[str] = (),
) -> TrainedDetector:
    """A trained detector, ready to predict and to be evaluated.

    Args:
        source: a run's directory (its best checkpoint by `val/AP`, else the newest) or one `.pt` file, as a local path
            or a URI.
        overrides: keys that mean something for weights that are there already, such as `model.postprocess.nms_iou`.
        device: by default the first GPU, without one the CPU.
        plugins: modules or entry points that it was trained with; a module may lie in the working directory.

    Nothing that a checkpoint holds is executed.

    Raises:
        CheckpointError: nothing there, damaged, or not a checkpoint of mgdet.
        ConfigError: an override that is unknown, or cannot change for trained weights.
    """
    require_linux()
    import torch

    where = None if device is None else torch.device(device)
    return TrainedDetector(load_detector(os.fspath(source), overrides, where, plugins))


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    format: str = "onnx",
    *,
    overrides: Overrides = (),
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    batch: int | None = None,
    opset: int | None = None,
    verify: bool = True,
    plugins: Sequence[str] = (),
) -> Export:
    """Write a trained detector as a file that runs without mgdet (docs/export.md).

    Args:
        source: a run's directory (its best checkpoint) or one `.pt` file, as a local path or a URI.
        out: path or URI of the file, which is replaced; by default the run's name in the working directory.
        format: `onnx`, `torchscript`, `torch_export`, or `safetensors` for the weights alone.
        overrides: keys that leave the weights what they are, such as `model.postprocess.nms_iou`.
        size: height and width of the padded images; by default those of `data.transform.resize`, if it is fixed.
        dynamic: images of any size.
        batch: images at a time; None: any number.
        opset: version of ONNX's operators, 18 by default.
        verify: compare the detections with the checkpoint's, on images of the training's validation split or on
            synthetic ones; where they differ, nothing is written.
        plugins: modules or entry points that it was trained with; a module may lie in the working directory.

    Raises:
        CheckpointError: nothing there, damaged, or not a checkpoint of mgdet.
        ConfigError: an unknown format or override, or an option that the format or the detector cannot have.
        DataError: `out` cannot be written.
        MgdetError: a package is missing, the network cannot be written so, or the detections differ.
    """
    detector = load(source, overrides, plugins=plugins)
    return detector.export(out, format, size=size, dynamic=dynamic, batch=batch, opset=opset, verify=verify)


def compare(
    runs: Mapping[str, str | os.PathLike[str] | Sequence[str | os.PathLike[str]]],
    *,
    data: str | os.PathLike[str] | None = None,
    split: str | None = None,
    samples: int = 1000,
    seed: int = 0,
    plugins: Sequence[str] = (),
) -> Comparison:
    """Compare detectors on the same images, with intervals from a paired bootstrap over images and runs.

    Args:
        runs: by the name of each group one run, or several that differ in their seed: directories of runs, `.pt` files
            or directories that an evaluation wrote (`out=`). The first group is the base.
        data: what runs and checkpoints are evaluated on; by default the data of their training.
        split: by default the one that the training evaluated on.
        samples: of the bootstrap, at least 100.
        seed: of the bootstrap.
        plugins: modules or entry points that the runs were trained with.

    Raises:
        ConfigError: fewer than two groups, or too few samples.
        DataError: a source that cannot be read, or runs that were judged on other images.
        CheckpointError: a run without a checkpoint, or a damaged one.
    """
    require_linux()
    from mgdet.comparison.compare import compare as compare_groups

    groups = {
        name: [os.fspath(s) for s in ([given] if isinstance(given, str | os.PathLike) else given)]
        for name, given in runs.items()
    }
    place = None if data is None else os.fspath(data)
    found = compare_groups(groups, data=place, split=split, samples=samples, seed=seed, plugins=plugins)
    return Comparison(found)


def visualize(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overrides: Overrides = (),
    images: Sequence[int] | None = None,
    assigners: Sequence[str] | None = None,
    checkpoints: Sequence[str] = ("all",),
    data: str | os.PathLike[str] | None = None,
    split: str | None = None,
    near: int = 50,
    overwrite: bool = False,
    plugins: Sequence[str] = (),
) -> Visualization:
    """Show which priors of some images learn which task from which object, and why (docs/microscope.md).

    Args:
        source: a run's directory or one `.pt` file; else a YAML file, or the name of a configuration that comes with
            mgdet, which is shown with its untrained network.
        out: a local directory, which must be empty or absent.
        overrides: of a configuration any key; of a run those that leave the weights what they are.
        images: ids in the data set; by default the first eight images with objects.
        assigners: names, each with options if wanted: `max_iou:force_match=false`. By default all that are defined for
            the detector, its own first.
        checkpoints: of a run: `all`, `best`, `last`, `start` (before the first step), or numbers of steps as text.
        data: root of the data set; by default that of the training.
        split: by default the one that the training evaluates on.
        near: priors of each object that are shown by each criterion, beside those that learn or are ignored.
        overwrite: let `out` hold files already; those of the same names are replaced.
        plugins: modules or entry points that it was trained with; a module may lie in the working directory.

    Raises:
        DataError: no such image or data set, or an `out` that is taken.
        ConfigError: neither a run nor a configuration, or an unknown assigner or option.
        CheckpointError: no such checkpoint, or a damaged one.
    """
    require_linux()
    from mgdet.microscope.visualize import visualize as write

    written = write(
        os.fspath(source),
        os.fspath(out),
        overrides=overrides,
        images=images,
        assigners=assigners,
        checkpoints=checkpoints,
        data=None if data is None else os.fspath(data),
        split=split,
        near=near,
        overwrite=overwrite,
        plugins=plugins,
    )
    return Visualization(
        str(written.page), str(written.summary), str(written.table), tuple(str(path) for path in written.pictures)
    )


def _plain(config: Configuration) -> str | Mapping[str, Any]:
    return config if isinstance(config, Mapping) else os.fspath(config)
