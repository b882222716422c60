"""The detections of a detector on a split, from a run, a checkpoint, or the directory of an evaluation."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mgdet.errors import DataError
from mgdet.evaluation.average_precision import DetectionArrays, check_detections
from mgdet.ground_truth import GroundTruth
from mgdet.storage import Location, locate
from mgdet.structures import Category
from mgdet.text import first_line

EVALUATION = ("metrics.json", "annotations.json", "detections.parquet")
"""Files by which the directory of an evaluation is known."""
EXPECTED = "Give the directory of a run, a .pt file, or the directory that `mgdet evaluate --out` wrote."


@dataclass(frozen=True)
class Judged:
    """What one detector found."""

    name: str
    gt: GroundTruth
    files: tuple[str, ...]  # [N] names of the images
    det: DetectionArrays
    source: dict[str, Any]  # checkpoint, data and split, as an evaluation names them


def read_judged(source: str, data: str | None = None, split: str | None = None, plugins: Sequence[str] = ()) -> Judged:
    """The detections of a source: read where it is an evaluation, else made by evaluating it.

    Args:
        source: the directory of a run, a `.pt` file, or the directory of an evaluation; a path or URI.
        data: root of a data set, for a run or checkpoint; by default that of its training.
        split: of that data set, by default the one that the training evaluated on.
        plugins: modules or entry points that it was trained with.

    Raises:
        DataError: nothing there, or an evaluation that is damaged.
        CheckpointError: a run without a checkpoint, or a damaged one.
    """
    place = locate(source)
    return _of_evaluation(source, place) if _is_evaluation(source) else _of_checkpoint(source, data, split, plugins)


def require_readable(
    source: str, data: str | None = None, split: str | None = None, plugins: Sequence[str] = ()
) -> None:
    """Raise what `read_judged` would raise of a source, before others are evaluated for minutes."""
    if _is_evaluation(source):
        _of_evaluation(source, locate(source))
        return
    from mgdet.inference.evaluate import open_split
    from mgdet.inference.load import load_detector

    open_split(load_detector(source, plugins=plugins), data, split)


def _is_evaluation(source: str) -> bool:
    if not source.strip():
        raise DataError(f"The name of a run is empty. {EXPECTED}")
    place = locate(source)
    try:
        return place.is_directory() and all((place / name).exists() for name in EVALUATION)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {first_line(error)}. {EXPECTED}") from error


def _of_checkpoint(source: str, data: str | None, split: str | None, plugins: Sequence[str]) -> Judged:
    from mgdet.evaluation.coco import CocoAP
    from mgdet.inference.evaluate import described, judge
    from mgdet.inference.load import load_detector

    trained = load_detector(source, plugins=plugins)
    done, pictures, evaluated, _ = judge(trained, data, split)
    files = tuple(pictures.file_name(row) for row in range(len(pictures)))
    about = {key: value for key, value in described(trained, done).items() if key != "metrics"}
    found = evaluated.result.of(CocoAP).detections
    return Judged(_name(source, trained.experiment.name), pictures.truth, files, found, about)


def _of_evaluation(source: str, place: Location) -> Judged:
    try:
        about = json.loads((place / "metrics.json").read_bytes())
        gt, files = ground_truth(json.loads((place / "annotations.json").read_bytes()))
        det = _detections((place / "detections.parquet").read_bytes(), gt)
        check_detections(gt, det)
        kept = {key: value for key, value in about.items() if key != "metrics"}
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # pyarrow's are ValueErrors
        raise DataError(
            f"{source}: the evaluation there is damaged ({first_line(error)}). Write it anew with "
            "`mgdet evaluate --out`."
        ) from error
    return Judged(_name(source, ""), gt, files, det, kept)


def ground_truth(content: dict[str, Any]) -> tuple[GroundTruth, tuple[str, ...]]:
    """Objects and file names of annotations in COCO's format, as an evaluation writes them."""
    images, objects = content["images"], content["annotations"]
    categories = tuple(Category(int(c["id"]), str(c["name"])) for c in content["categories"])
    row = {image["id"]: k for k, image in enumerate(images)}
    label = {category.id: k for k, category in enumerate(categories)}
    boxes = np.array([o["bbox"] for o in objects], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    gt = GroundTruth(
        image_ids=np.array([image["id"] for image in images], dtype=np.int64),
        heights=np.array([image["height"] for image in images], dtype=np.int64),
        widths=np.array([image["width"] for image in images], dtype=np.int64),
        box_image=np.array([row[o["image_id"]] for o in objects], dtype=np.int64),
        boxes=boxes,
        labels=np.array([label[o["category_id"]] for o in objects], dtype=np.int64),
        iscrowd=np.array([bool(o["iscrowd"]) for o in objects], dtype=np.bool_),
        area=np.array([o["area"] for o in objects], dtype=np.float64),
        categories=categories,
    )
    return gt, tuple(str(image["file_name"]) for image in images)


def _detections(content: bytes, gt: GroundTruth) -> DetectionArrays:
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    columns = {name: table[name].to_numpy() for name in ("image_id", "category_id", "score", "x1", "y1", "x2", "y2")}
    categories = np.array([c.id for c in gt.categories], dtype=np.int64)
    return DetectionArrays(
        _places(columns["image_id"], gt.image_ids, "images"),
        np.column_stack([columns[name] for name in ("x1", "y1", "x2", "y2")]),
        columns["score"],
        _places(columns["category_id"], categories, "classes"),
    )


def _places(values: Any, known: Any, what: str) -> Any:
    order = np.argsort(known)
    place = np.searchsorted(known[order], values).clip(0, max(0, len(known) - 1))
    if len(values) and (not len(known) or (known[order][place] != values).any()):
        raise DataError(f"the detections name {what} that the annotations do not have: evaluate anew")
    return order[place] if len(known) else np.zeros(0, dtype=np.int64)


def _name(source: str, fallback: str) -> str:
    last = source.rstrip("/").rpartition("/")[2]
    return fallback if fallback and last.endswith(".pt") else last or source


def require_same_images(judged: Sequence[Judged]) -> None:
    """Check that all were judged on the same images and objects. Raises `DataError`."""
    first = judged[0]
    for other in judged[1:]:
        mine, theirs = first.gt, other.gt
        what = ""
        if mine.categories != theirs.categories:
            what = "classes"
        elif not np.array_equal(mine.image_ids, theirs.image_ids):
            what = "images"
        elif not all(
            np.array_equal(getattr(mine, key), getattr(theirs, key)) for key in ("box_image", "labels", "iscrowd")
        ) or not np.allclose(mine.boxes, theirs.boxes, atol=1e-6):
            what = "objects"
        if what:
            raise DataError(
                f"{first.name} and {other.name} were not judged on the same {what}: {_where(first)} against "
                f"{_where(other)}. Only what was seen by both can be compared; give --data and --split, or evaluate "
                "both on one split."
            )


def _where(judged: Judged) -> str:
    gt, about = judged.gt, judged.source
    place = f"{about.get('data', '?')}, {about.get('split', '?')}"
    return f"{place} ({len(gt.image_ids)} images, {len(gt.boxes)} objects, {len(gt.categories)} classes)"
