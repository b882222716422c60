"""The numbers of the microscope as files that other programs read: a summary in JSON, and all of them in Parquet."""

import inspect
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mgdet.assign import Assigner
from mgdet.microscope.numbers import TASKS, Findings, Integers, Learning, Moment, Picture, Shown, Task
from mgdet.structures import IGNORED


def rule(assigner: Assigner) -> str:
    """What the method is, in the words of its class."""
    return " ".join((inspect.getdoc(type(assigner)) or "").split("\n\n")[0].split()).replace("`", "")


def summary(findings: Findings) -> dict[str, Any]:
    """The counts of every image, moment, assigner and task, as plain values."""
    views = []
    for (m, p), shown in findings.shown.items():
        picture = findings.pictures[p]
        objects = [
            {"object": g, "class": findings.classes[int(label)], "box": [round(float(v), 2) for v in box]}
            for g, (label, box) in enumerate(zip(picture.labels, picture.boxes, strict=True))
        ]
        views.append(
            {
                "image": picture.id,
                "file_name": picture.file_name,
                **findings.moments[m]._asdict(),
                "strides": list(shown.strides),
                "objects": objects,
                "assigners": {name: _learning(each) for name, each in shown.learning.items()},
            }
        )
    assigners = {
        name: {"rule": rule(each), "options": each.model_dump(mode="json", exclude={"chunk_elements"})}
        for name, each in findings.assigners.items()
    }
    return {"about": dict(findings.about), "assigners": assigners, "views": views}


def _learning(learning: Learning) -> dict[str, Any]:
    tasks = {name: _task(getattr(learning, name)) for name in TASKS}
    return {**tasks, "both": int(learning.both.sum()), "warming_up_with": learning.warming}


def _task(task: Task) -> dict[str, Any]:
    return {
        "positives": int(task.positives.sum()),
        "positives_by_level": task.positives.sum(axis=1).tolist(),
        "positives_by_object": task.positives.sum(axis=0).tolist(),
        "ignored": int(task.ignored.sum()),
        "ignored_by_level": task.ignored.tolist(),
        "objects_without": task.without(),
        "criterion": task.judged.name if task.judged else None,
    }


def parquet(findings: Findings) -> bytes:
    """A row for each pair of a prior and an object, assigner and task.

    `label` is `positive` (for this object), `other` (positive for the object `owner`), `ignored` or `background`. A
    prior may be near several objects; one that is near none, because the image has no object, has one row without.
    """
    parts = [
        _rows(findings.moments[m], findings.pictures[p], findings.classes, shown, name)
        for (m, p), shown in findings.shown.items()
        for name in findings.assigners
    ]
    out = io.BytesIO()
    pq.write_table(pa.concat_tables(parts), out)
    return out.getvalue()


def _rows(moment: Moment, picture: Picture, classes: tuple[str, ...], shown: Shown, name: str) -> pa.Table:
    learning = shown.learning[name]
    alone = np.setdiff1d(np.arange(len(shown.priors)), shown.pair_prior)
    at = np.concatenate([shown.pair_prior, alone])
    obj = np.concatenate([shown.pair_object, np.full(len(alone), -1)])
    paired = obj >= 0

    def of_pairs(values: NDArray[Any]) -> pa.Array:
        return pa.array(np.concatenate([values, np.zeros(len(alone), values.dtype)]), mask=~paired)

    names = np.array([*classes, ""])
    label = np.append(picture.labels, len(classes))[obj]
    anchors, boxes = shown.anchors[at], shown.boxes[at]
    columns: dict[str, Any] = {
        "image": pa.array(np.full(len(at), picture.id)),
        "moment": _constant(moment.name, len(at)),
        "step": pa.array(np.full(len(at), moment.step)),
        "assigner": _constant(name, len(at)),
        "prior": pa.array(shown.priors[at]),
        "level": pa.array(shown.level[at]),
        "object": pa.array(obj, mask=~paired),
        "class": pa.array(names[label], mask=~paired),
        "score": of_pairs(shown.score),
        "iou_before": of_pairs(shown.iou_before),
        "iou_after": of_pairs(shown.iou_after),
    }
    for prefix, values in (("anchor", anchors), ("predicted", boxes)):
        columns |= {f"{prefix}_{side}": pa.array(values[:, i]) for i, side in enumerate(("x1", "y1", "x2", "y2"))}
    tables = []
    for task_name in TASKS:
        task: Task = getattr(learning, task_name)
        owner, judged = task.owner[at], task.judged
        unknown = pa.nulls(len(at))
        tables.append(
            pa.table(
                {
                    **columns,
                    "task": _constant(task_name, len(at)),
                    "label": pa.array(_labels(owner, obj)),
                    "owner": pa.array(owner, mask=owner < 0),
                    "weight": pa.array(task.weight[at]),
                    "criterion": of_pairs(judged.value) if judged else unknown.cast(pa.float32()),
                    "rank": of_pairs(judged.rank) if judged else unknown.cast(pa.int64()),
                }
            )
        )
    return pa.concat_tables(tables)


def _constant(text: str, count: int) -> pa.Array:
    return pa.array([text] * count, pa.string())


def _labels(owner: Integers, obj: Integers) -> NDArray[np.str_]:
    found = np.full(len(owner), "background", dtype="<U10")
    found[owner >= 0] = "other"
    found[(owner == obj) & (owner >= 0)] = "positive"
    found[owner == IGNORED] = "ignored"
    return found
