"""The files of an evaluation: its detections and objects as other tools read them, and tables by class."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mgdet.data.export import annotated_split
from mgdet.data.formats.coco import Coco, coco_json
from mgdet.data.pictures import Pictures
from mgdet.evaluation.analysis import Analysis, analyse
from mgdet.evaluation.average_precision import IOU_THRESHOLDS, RECALL_THRESHOLDS, APResult
from mgdet.evaluation.evaluator import headlines
from mgdet.evaluation.matching import Ints, OperatingPoint
from mgdet.evaluation.page import evaluation_sections, worst_images
from mgdet.ground_truth import GroundTruth
from mgdet.inference.output import JsonFile, OutputFile
from mgdet.pages.document import command, document, facts, number, text
from mgdet.provenance import as_facts, made_by
from mgdet.storage import child_uri
from mgdet.structures import unique_names
from mgdet.text import csv_text

CURVES = (0, 5)
"""Positions in `IOU_THRESHOLDS` of the curves: 0.50 and 0.75."""


class ResultFiles(NamedTuple):
    """The files below one directory, whose places are checked when they are made, before the evaluation.

    `detections.json` is in COCO's results format and `annotations.json` in its format of annotations, with the ids of
    the data set: pycocotools computes the same AP from both. `detections.parquet` has a row for each detection, with
    corners in pixels. `classes.csv` has AP of each class, and the score at which its F1 is best at an IoU of 0.50;
    `precision_recall.csv` has the precision at 101 recalls. `analysis.json` has errors by type, calibration, confusions
    and AP of groups of objects, and `report.html` is a page with all of this and the worst images.
    """

    metrics: JsonFile
    detections: JsonFile
    table: OutputFile
    annotations: JsonFile
    classes: OutputFile
    curves: OutputFile
    analysis: JsonFile
    page: OutputFile

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
            JsonFile(child_uri(directory, "analysis.json")),
            OutputFile(child_uri(directory, "report.html")),
        )

    def write(
        self,
        metrics: dict[str, Any],
        found: APResult,
        pictures: Pictures,
        positives: Mapping[str, Ints] | None = None,
    ) -> None:
        """Write everything; `metrics.json`, which is last, says that the others are there. Raises `DataError`.

        `pictures` are those that `found` was judged by; `positives` are those of each task, `[M]`, how many priors
        learn it from each object.
        """
        files = [pictures.file_name(row) for row in range(len(pictures))]
        truth = pictures.truth
        self.detections.write(_coco_results(found, truth))
        self.table.write_bytes(_parquet(found, truth, files))
        self.annotations.write(coco_json(annotated_split(truth, Coco(), files)))
        analysis = analyse(truth, found.detections, found.max_dets, positives)
        self.classes.write_bytes(_classes(found, truth, analysis.points).encode())
        self.curves.write_bytes(_curves(found).encode())
        self.analysis.write(analysis.as_json(truth))
        self.page.write_bytes(_page(metrics, found, pictures, analysis).encode())
        self.metrics.write(metrics)


def _coco_results(found: APResult, truth: GroundTruth) -> list[dict[str, Any]]:
    det = found.detections
    ids = [category.id for category in truth.categories]
    boxes = det.boxes.astype(np.float64)
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    rows = zip(
        truth.image_ids[det.image].tolist(), det.labels.tolist(), boxes.tolist(), det.scores.tolist(), strict=True
    )
    return [
        {"image_id": image, "category_id": ids[label], "bbox": box, "score": score} for image, label, box, score in rows
    ]


def _parquet(found: APResult, truth: GroundTruth, files: Sequence[str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    det = found.detections
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


def _page(metrics: Mapping[str, Any], found: APResult, pictures: Pictures, analysis: Analysis) -> str:
    truth, dataset, made = pictures.truth, pictures.dataset, made_by()
    about = [
        ("checkpoint", text(metrics.get("checkpoint", ""))),
        ("data", text(f"{dataset.uri}, split {dataset.split}: {found.n_images} images, {found.n_boxes} objects")),
    ]
    values = metrics.get("metrics", {})
    about += [(text(name), number(values[name], 4)) for name in headlines(values)]
    about += [(text(name), text(value)) for name, value in as_facts(made)]
    return document(
        "mgdet evaluation",
        [
            "<h1>Evaluation</h1>",
            facts(about),
            command(made["command"]),
            *evaluation_sections(found, analysis, truth),
            worst_images(
                truth,
                found,
                analysis,
                pictures.pixels,
                pictures.file_name,
            ),
        ],
    )


def _classes(found: APResult, truth: GroundTruth, points: Mapping[str, OperatingPoint]) -> str:
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
