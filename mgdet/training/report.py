"""The page of a training, written at its end: what it is, what it reached, its curves, and what is still wrong."""

import json
import logging
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mgdet.config import Experiment
from mgdet.data.dataset import ShardedDataset
from mgdet.data.decode import decode_image
from mgdet.data.fingerprint import describe_data
from mgdet.evaluation.analysis import analyse
from mgdet.evaluation.coco import CocoAP
from mgdet.evaluation.evaluator import AP, DIVERGENCE, headlines
from mgdet.evaluation.page import evaluation_sections, worst_images
from mgdet.pages.chart import Line, line_chart
from mgdet.pages.document import command, document, facts, grid, number, picture, section, text
from mgdet.provenance import as_facts
from mgdet.records import RecordError, unseal
from mgdet.storage import locate
from mgdet.text import first_line
from mgdet.tracking import Point, Tracker
from mgdet.training.evaluate import Evaluated

logger = logging.getLogger(__name__)

NAME = "report.html"
POINTS = 200
"""Points of a curve, at most: of more, neighbours are averaged."""
_CURVES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Average precision", (AP.name, "val/AP50", "val/AP75")),
    ("Divergence", (DIVERGENCE.name, "val/divergence_raw", "val/divergence_pre_nms")),
    ("Loss", ("train/loss", "train/loss_cls", "train/loss_box", "train/loss_quality", "train/loss_correlation")),
    ("Positives per image", ("train/positives_cls", "train/positives_loc")),
    ("Learning rate", ("train/lr",)),
    ("Seconds of an evaluation", ("time/data", "time/network", "time/postprocess", "time/coco", "time/divergence")),
)


def log_report(
    tracker: Tracker,
    experiment: Experiment,
    data: ShardedDataset,
    evaluated: Evaluated,
    labels: bytes | None = None,
) -> None:
    """Write the page into the directory of the run, and log it. Whatever fails costs a warning only.

    Args:
        tracker: of the run; has what was logged since its beginning.
        experiment: of the training.
        data: the split on which it is evaluated.
        evaluated: the last evaluation.
        labels: a PNG of who learns what.
    """
    start = time.perf_counter()
    try:
        page = run_page(experiment, data, evaluated, tracker.points(), _record(experiment), labels).encode()
        (locate(experiment.run_uri) / NAME).replace(page)
        tracker.artifact(page, NAME)
    except Exception as error:
        logger.warning("the report of the run was not written: %s", first_line(error))
    else:
        logger.debug("the report of the run took %.1f s", time.perf_counter() - start)


def _record(experiment: Experiment) -> Mapping[str, Any]:
    """What `run.json` says; empty where it cannot be read."""
    try:
        return unseal((locate(experiment.run_uri) / "run.json").read_bytes())
    except (OSError, RecordError):
        return {}


def run_page(
    experiment: Experiment,
    data: ShardedDataset,
    evaluated: Evaluated,
    points: Iterable[Point],
    record: Mapping[str, Any],
    labels: bytes | None = None,
) -> str:
    """The page; `points` are all metrics of the run, `record` is what `run.json` holds, `labels` see `log_report`."""
    found, truth = evaluated.result.of(CocoAP), data.ground_truth()
    curves = _curves(points)
    metrics = evaluated.result.metrics()
    analysis = analyse(truth, found.detections, found.max_dets)
    made = record.get("made_by") or {}
    typed = str(made.get("command", ""))
    return document(
        experiment.name,
        [
            f"<h1>{text(experiment.name)}</h1>",
            facts([*_about(experiment, data, record, made), *_result(curves, metrics)]),
            section("The command", command(typed)) if typed else "",
            section("Training", grid(_charts(curves)), hint="Over optimizer steps."),
            *evaluation_sections(found, analysis, truth),
            worst_images(
                truth,
                found,
                analysis,
                lambda row: decode_image(data.read_image(row), data.describe(row)),
                data.file_name,
            ),
            section(
                "Who learns what",
                picture(labels, "png", "priors that learn each task, after the last epoch") if labels else "",
                command(f"mgdet visualize {shlex.quote(experiment.run_uri)} --out seen"),
                hint="The command writes the microscope, seen/index.html: which priors learn which task from which "
                "object, and why, at each kept checkpoint and under several assigners."
                + (" The picture shows the end of the training, beside maximum IoU." if labels else ""),
            ),
            "<section><h2>Configuration</h2><details><summary>all keys, every auto resolved</summary>"
            f"{command(experiment.to_yaml())}</details></section>",
        ],
    )


def _about(
    e: Experiment, data: ShardedDataset, record: Mapping[str, Any], made: Mapping[str, Any]
) -> list[tuple[str, str]]:
    options = {k: v for k, v in e.assigner.model_dump(exclude_defaults=True).items() if k != "name"}
    rows = [
        ("run", e.run_uri),
        ("data", f"{e.data.uri}{_described(record)}"),
        ("evaluated on", f"{data.split}, {data.num_images} images"),
        ("detector", f"{e.model.name}, {e.model.backbone}, weights {e.model.weights}"),
        ("assigner", f"{e.assigner.name}{' ' + json.dumps(options) if options else ''}"),
        ("training", f"{e.train.epochs} epochs, batches of {e.train.batch_size}, seed {e.seed}"),
    ]
    if {"mgdet", "git_commit", "git_dirty", "hardware"} <= made.keys():
        rows += as_facts(dict(made))
    return [(text(name), text(value)) for name, value in rows]


def _described(record: Mapping[str, Any]) -> str:
    found = record.get("data")
    return f" ({describe_data(found)})" if isinstance(found, dict) and "splits" in found else ""


def _result(
    curves: Mapping[str, tuple[list[float], list[float]]], metrics: Mapping[str, float]
) -> list[tuple[str, str]]:
    rows = [(text(f"last {name}"), number(metrics[name], 4)) for name in headlines(metrics, brief=True)]
    steps, values = curves.get(AP.name, ([], []))
    if values:
        best = max(range(len(values)), key=lambda i: values[i])
        rows.append((text(f"best {AP.name}"), f"{number(values[best], 4)} after step {steps[best]:.0f}"))
    return rows


def _curves(points: Iterable[Point]) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of each metric that is drawn; of a step that a restart repeated the first value counts."""
    drawn = {name for _, names in _CURVES for name in names}
    known: dict[str, dict[int, float]] = {}
    for point in points:
        if point.key in drawn:
            known.setdefault(point.key, {}).setdefault(point.step, point.value)
    return {
        name: ([float(step) for step in sorted(values)], [values[step] for step in sorted(values)])
        for name, values in known.items()
    }


def _charts(curves: Mapping[str, tuple[list[float], list[float]]]) -> Iterable[str]:
    for title, names in _CURVES:
        lines = [Line(name, *_thinned(*curves[name])) for name in names if name in curves]
        if lines:
            yield line_chart(title, lines, "step", "")


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    if len(steps) <= POINTS:
        return list(steps), list(values)
    parts = np.array_split(np.arange(len(steps)), POINTS)
    return tuple([float(np.mean([column[i] for i in part])) for part in parts] for column in (steps, values))  # type: ignore[return-value]  # two of them
