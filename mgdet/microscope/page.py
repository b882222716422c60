"""The microscope as one HTML page that needs nothing else: its data, styles and script are in it.

The numbers of each view (a moment and an image) are JSON, compressed, in base64; the script unpacks those that are
looked at. So the page stays small, and opens at once.
"""

import base64
import html
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mgdet.microscope.numbers import TASKS, Findings, Judged, Picture, Shown, Task
from mgdet.microscope.tables import rule

HERE = Path(__file__).parent
QUALITY = 90
"""Of the images in the page, as JPEG has it."""


def page(findings: Findings) -> str:
    """The whole page."""
    data = json.dumps(described(findings), separators=(",", ":")).replace("<", "\\u003c")
    text = (HERE / "page.html").read_text()
    parts = {
        "TITLE": html.escape(f"{findings.about['name']}: who learns what"),
        "STYLE": (HERE / "page.css").read_text(),
        "SCRIPT": "\n".join((HERE / name).read_text() for name in ("draw.js", "tables.js", "page.js")),
        "DATA": data,
    }
    for name, value in parts.items():  # the data last: nothing in them is taken for a mark
        text = text.replace(f"<!--{name}-->", value)
    return text


def described(findings: Findings) -> dict[str, Any]:
    """What the script gets; the views are packed."""
    return {
        "about": dict(findings.about),
        "classes": list(findings.classes),
        "points": findings.points,
        "strides": list(next(iter(findings.shown.values())).strides),
        "assigners": [{"name": name, "rule": rule(each)} for name, each in findings.assigners.items()],
        "moments": [moment._asdict() for moment in findings.moments],
        "images": [_image(picture) for picture in findings.pictures],
        "views": {f"{m}/{p}": packed(_view(shown)) for (m, p), shown in findings.shown.items()},
    }


def packed(value: Any) -> str:
    """A plain value as the script unpacks it: zlib's format, in base64."""
    return base64.b64encode(zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 9)).decode()


def _image(picture: Picture) -> dict[str, Any]:
    out = io.BytesIO()
    Image.fromarray(picture.pixels.permute(1, 2, 0).numpy()).save(out, "JPEG", quality=QUALITY)
    return {
        "id": picture.id,
        "file": picture.file_name,
        "width": picture.pixels.shape[2],
        "height": picture.pixels.shape[1],
        "source": f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}",
        "boxes": _rounded(picture.boxes, 1),
        "labels": picture.labels.tolist(),
        "crowds": _rounded(picture.crowds, 1),
    }


def _view(shown: Shown) -> dict[str, Any]:
    criteria: list[dict[str, Any]] = []

    def criterion(judged: Judged | None) -> int | None:
        """The position in `criteria`: most assigners have one for both tasks, and some share it."""
        if judged is None:
            return None
        one = {"name": judged.name, "value": _significant(judged.value), "rank": judged.rank.tolist()}
        if one not in criteria:
            criteria.append(one)
        return criteria.index(one)

    def task(each: Task) -> dict[str, Any]:
        return {"owner": each.owner.tolist(), "weight": _significant(each.weight), "criterion": criterion(each.judged)}

    learning = {
        name: {**{key: task(getattr(each, key)) for key in TASKS}, "warming": each.warming}
        for name, each in shown.learning.items()
    }
    return {
        "priors": shown.priors.tolist(),
        "level": shown.level.tolist(),
        "places": _rounded(shown.places, 1),
        "anchors": _rounded(shown.anchors, 1),
        "boxes": _rounded(shown.boxes, 1),
        "prior": shown.pair_prior.tolist(),
        "object": shown.pair_object.tolist(),
        "score": _rounded(shown.score, 4),
        "before": _rounded(shown.iou_before, 4),
        "after": _rounded(shown.iou_after, 4),
        "criteria": criteria,
        "assigners": learning,
    }


def _rounded(values: NDArray[Any], digits: int) -> Any:
    finite = np.nan_to_num(values.astype(float), nan=0.0, posinf=1e6, neginf=-1e6)  # JSON knows no others
    return finite.round(digits).tolist()


def _significant(values: NDArray[Any]) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]
