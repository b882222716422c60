"""What the functions of `import mgdet` give back: results as plain values, and a trained detector to use."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from mgdet.diagnosis.base import Finding
from mgdet.errors import DataError
from mgdet.inference.evaluate import Evaluation, evaluate_trained
from mgdet.inference.load import Trained
from mgdet.inference.predict import detect
from mgdet.inference.prediction import ImageLike, Prediction, pixels_of, predictions
from mgdet.inference.results import ResultFiles
from mgdet.structures import Category

if TYPE_CHECKING:
    from mgdet.comparison.compare import Comparison as Compared
    from mgdet.diagnosis.examine import Examined


@dataclass(frozen=True)
class TrainingResult:
    """What a training reached."""

    run: str
    """Directory or URI of the run; `mgdet.load` takes it."""
    checkpoint: str
    """The best checkpoint by `val/AP`."""
    epoch: int
    """Epochs completed in that checkpoint."""
    metrics: Mapping[str, float]
    """Its evaluation, under the names of tracking (`val/AP`, `val/divergence`, ...); what is undefined is absent."""


@dataclass(frozen=True)
class TuningResult:
    """What a search reached."""

    best: Mapping[str, Any]
    """The searched keys of the winner."""
    metrics: Mapping[str, float]
    """Its last evaluation."""
    config: str
    """Its configuration, a YAML file that `mgdet.train` runs as it is."""
    table: str
    """All trials as text, the best first."""


@dataclass(frozen=True)
class PreparedData:
    """A data set that a training can use."""

    uri: str
    """Where it is: the value of the key `data.uri`."""
    classes: tuple[str, ...]
    """Names of the classes in order of their label."""
    images: Mapping[str, int]
    """Number of images of each split."""


class Diagnosis:
    """What was found in a data set; from `mgdet.doctor`."""

    def __init__(self, examined: "Examined") -> None:
        self._examined = examined

    def __str__(self) -> str:
        from mgdet.diagnosis.report import lines

        return "\n".join(lines(self._examined))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found, the most severe first, each with its cases by split, image and annotation."""
        return self._examined.findings

    @property
    def values(self) -> dict[str, Any]:
        """Everything as plain values: what `mgdet doctor --json` writes."""
        from mgdet.diagnosis.report import as_json

        return as_json(self._examined)

    def html(self) -> str:
        """A page with pictures and plots, which needs no other file."""
        from mgdet.diagnosis.page import page

        return page(self._examined)


class Comparison:
    """How groups of runs differ on the same images; from `mgdet.compare`."""

    def __init__(self, compared: "Compared") -> None:
        self._compared = compared

    def __str__(self) -> str:
        from mgdet.comparison.report import as_text

        return as_text(self._compared)

    @property
    def values(self) -> dict[str, Any]:
        """Everything as plain values: what `mgdet compare --json` writes."""
        from mgdet.comparison.report import as_json

        return as_json(self._compared)

    def html(self) -> str:
        """A page that needs no other file."""
        from mgdet.comparison.report import page

        return page(self._compared)


@dataclass(frozen=True)
class Visualization:
    """The files that show who learns what."""

    page: str
    """An interactive HTML page that needs no network."""
    summary: str
    """JSON with the counts of every image, checkpoint, assigner and task."""
    table: str
    """Parquet with a row for each pair of a prior and an object, assigner and task."""
    pictures: tuple[str, ...]
    """A PNG of each image at each checkpoint, the assigners side by side."""


@dataclass(frozen=True)
class Export:
    """A detector as a file that runs without mgdet."""

    path: str
    """Path or URI of the file."""
    metadata: Mapping[str, str]
    """What the file says about itself: `classes`, `input`, `opset`, `checkpoint` and others (docs/export.md)."""
    verification: Mapping[str, Any] | None
    """How its detections were compared with the checkpoint's: `images`, `detections`, `box_error` (pixels),
    `score_error`, `undecided` and `source`. None: they were not, or the file holds weights alone."""


class TrainedDetector:
    """A detector with the weights of a checkpoint; from `mgdet.load`."""

    def __init__(self, trained: Trained) -> None:
        self._trained = trained

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._trained}>"

    @property
    def classes(self) -> tuple[Category, ...]:
        """The classes in order of their label, each with its `id` and `name` in the data set."""
        return self._trained.categories

    @property
    def checkpoint(self) -> str:
        """The file that the weights are from."""
        return self._trained.path

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the training, as plain values."""
        return self._trained.experiment.shown()

    # Lists first, of any elements: Pillow has no types, so that an image may be anything
    @overload
    def predict(
        self, images: list[Any] | tuple[Any, ...], score: float = ..., batch_size: int = ...
    ) -> list[Prediction]: ...
    @overload
    def predict(self, images: ImageLike, score: float = ..., batch_size: int = ...) -> Prediction: ...
    def predict(
        self, images: ImageLike | list[Any] | tuple[Any, ...], score: float = 0.3, batch_size: int = 1
    ) -> Prediction | list[Prediction]:
        """Detect in one image, or in each image of a list or tuple.

        Args:
            images: paths of image files, Pillow images, NumPy arrays `[height, width, 3]` of uint8 in RGB order, or
                torch tensors `[3, height, width]` of uint8 in RGB order. Boxes refer to the image as it is upright.
            score: detections below it are left out, in [0, 1].
            batch_size: images at a time.

        Raises:
            DataError: an image that cannot be read, or an array of another shape or type.
        """
        if not 0 <= score <= 1 or batch_size < 1:
            raise DataError(f"score = {score:g}, batch_size = {batch_size}: allowed are 0 to 1, and at least 1")
        if not isinstance(images, list | tuple):
            return self._detect([images], score)[0]
        starts = range(0, len(images), batch_size)
        return [found for i in starts for found in self._detect(images[i : i + batch_size], score)]

    def evaluate(
        self,
        data: str | os.PathLike[str] | None = None,
        split: str | None = None,
        out: str | os.PathLike[str] | None = None,
    ) -> Evaluation:
        """Average precision and divergence on a split of a prepared data set.

        Args:
            data: its directory or URI; by default that of the training.
            split: by default the one that the training evaluated on.
            out: a directory or URI for the detections and for tables by class, see `mgdet.inference.results`.

        Raises:
            DataError: no data set there, no such split, an image that cannot be read, or `out` that cannot be written.
            ConfigError: its classes are not those of the checkpoint.
        """
        files = None if out is None else ResultFiles.below(os.fspath(out))
        return evaluate_trained(self._trained, None if data is None else os.fspath(data), split, files)

    def export(
        self,
        out: str | os.PathLike[str] | None = None,
        format: str = "onnx",
        *,
        size: tuple[int, int] | None = None,
        dynamic: bool = False,
        batch: int | None = None,
        opset: int | None = None,
        verify: bool = True,
    ) -> Export:
        """Write a file that runs without mgdet, and see before that it gives the same detections; see `mgdet.export`.

        Raises:
            ConfigError: an unknown format, or an option that the format or the detector cannot have.
            DataError: `out` cannot be written.
            MgdetError: a package is missing, the network cannot be written so, or the detections differ.
        """
        from mgdet.exporting.export import export_detector

        place = None if out is None else os.fspath(out)
        options: dict[str, Any] = {"size": size, "dynamic": dynamic, "batch": batch, "opset": opset}
        written = export_detector(self._trained, format, place, verified=verify, **options)
        compared = written.verification
        return Export(written.path, written.metadata, None if compared is None else compared._asdict())

    def _detect(self, images: Sequence[ImageLike], score: float) -> list[Prediction]:
        limit = self._trained.experiment.data.loader.max_pixels
        pixels = [pixels_of(image, limit) for image in images]
        sizes = [(int(p.shape[1]), int(p.shape[2])) for p in pixels]
        return predictions(detect(self._trained, pixels), sizes, self.classes, score)
