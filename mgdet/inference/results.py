"""The files of an evaluation: its detections and objects as other tools read them, and tables by class."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mgdet.data.dataset import ShardedDataset
from mgdet.data.export import annotated_split
from mgdet.data.formats.coco import Coco, coco_json
from mgdet.evaluation.average_precision import IOU_THRESHOLDS, RECALL_THRESHOLDS, APResult
from mgdet.evaluation.matching import coco_matches, operating_points
from mgdet.inference.output import JsonFile, OutputFile
from mgdet.storage import child_uri
from mgdet.structures import unique_names
from mgdet.text import csv_text

F1_IOU = 0.5
"""IoU at which a detection is right in the table of classes."""
CURVES = (0, 5)
"""Positions in `IOU_THRESHOLDS` of the curves: 0.50 and 0.75."""


class ResultFiles(NamedTuple):
    """The files below one directory, whose places are checked when they are made, before the evaluation.

    `detections.json` is in COCO's results format and `annotations.json` in its format of annotations, with the ids of
    the data set: pycocotools computes the same AP from both. `detections.parquet` has a row for each detection, with
    corners in pixels. `classes.csv` has AP of each class, and the score at which its F1 is best at an IoU of 0.50;
    `precision_recall.csv` has the precision at 101 recalls.
    """

    metrics: JsonFile
    detections: JsonFile
    table: OutputFile
    annotations: JsonFile
    classes: OutputFile
    curves: OutputFile

    @classmethod
    def below(cls, directory: str) -> "ResultFiles":
        """All files of a directory, which is made: a local path or a `pyarrow.fs` URI. Raises `DataError`."""
        return cls(
            JsonFile(child_uri(directory, "metrics.json")),
            JsonFile(child_uri(directory, "detections.json")),
            OutputFile(child_uri(directory, "detections.parquet")),
            JsonFile(child_uri(directory, "annotations.json")),
            OutputFile(child_uri(directory, "classes.csv")),
            OutputFile(child_uri(directory, "precision_recall.csv")),
        )

    def write(self, metrics: dict[str, Any], found: APResult, dataset: ShardedDataset) -> None:
        """Write everything; `metrics.json`, which is last, says that the others are there. Raises `DataError`."""
        files = [dataset.file_name(row) for row in range(len(dataset))]
        self.detections.write(_coco_results(found, dataset))
        self.table.write_bytes(_parquet(found, dataset, files))
        self.annotations.write(coco_json(annotated_split(dataset, Coco(), files)))
        self.classes.write_bytes(_classes(found, dataset).encode())
        self.curves.write_bytes(_curves(found).encode())
        self.metrics.write(metrics)


def _coco_results(found: APResult, dataset: ShardedDataset) -> list[dict[str, Any]]:
    det, truth = found.detections, dataset.ground_truth()
    ids = [category.id for category in truth.categories]
    boxes = det.boxes.astype(np.float64)
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    rows = zip(
        truth.image_ids[det.image].tolist(), det.labels.tolist(), boxes.tolist(), det.scores.tolist(), strict=True
    )
    return [
        {"image_id": image, "category_id": ids[label], "bbox": box, "score": score} for image, label, box, score in rows
    ]


def _parquet(found: APResult, dataset: ShardedDataset, files: Sequence[str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    det, truth = found.detections, dataset.ground_truth()
    columns = {
        "image_id": truth.image_ids[det.image],
        "file_name": pa.array([files[row] for row in det.image.tolist()], pa.string()),
        "category_id": np.array([c.id for c in truth.categories], dtype=np.int64)[det.labels],
        "category": pa.array([truth.categories[label].name for label in det.labels.tolist()], pa.string()),
        "score": det.scores,
        **{name: det.boxes[:, k] for k, name in enumerate(("x1", "y1", "x2", "y2"))},
    }
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def _classes(found: APResult, dataset: ShardedDataset) -> str:
    truth = dataset.ground_truth()
    matches = coco_matches(truth, found.detections, F1_IOU, found.max_dets)
    points = operating_points(truth, found.detections, matches)
    rows: list[list[object]] = [
        ["class", "id", "objects", "detections", "AP", "AP50", "AP75", "F1", "score", "precision", "recall"]
    ]
    for category, name in zip(truth.categories, unique_names(truth.categories), strict=True):
        point, at = points[name], found.per_class_at[name]
        values = (found.per_class[name], at[0], at[5], point.f1, point.score, point.precision, point.recall)
        rows.append([name, category.id, point.objects, point.detections, *map(_cell, values)])
    return csv_text(rows)


def _cell(value: float | None) -> object:
    return "" if value is None or np.isnan(value) else float(value)


def _curves(found: APResult) -> str:
    rows: list[list[object]] = [["class", "iou", "recall", "precision"]]
    for label, name in enumerate(found.per_class):
        for t in CURVES:
            for r, precision in enumerate(found.precision[t, :, label].tolist()):
                if precision >= 0:
                    rows.append([name, f"{IOU_THRESHOLDS[t]:.2f}", f"{RECALL_THRESHOLDS[r]:.2f}", precision])
    return csv_text(rows)
