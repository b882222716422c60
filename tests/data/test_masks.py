"""Boxes of annotations that have only a segmentation."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgdet.data.formats.masks import mask_bounds
from tests.data.scenes import Scene, refused, said


def polygon(box: list[float]) -> list[list[float]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h], [x, y, x, y + h, x + w, y + h]]


def rle(box: list[float], compressed: bool) -> dict[str, Any]:
    from pycocotools import mask

    full = np.zeros((48, 64), dtype=np.uint8, order="F")
    x, y, w, h = box
    full[y : y + h, x : x + w] = 1
    if compressed:
        encoded = mask.encode(full)
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    flat = full.reshape(-1, order="F").tolist()
    counts, last = [0], 0
    for value in flat:
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return {"size": [48, 64], "counts": counts}


@pytest.mark.parametrize(
    "without",
    [
        lambda a: a.pop("bbox"),
        lambda a: a.update(bbox=[]),
        lambda a: a.update(bbox=None),
        lambda a: a.update(bbox=[0, 0, 0, 0]),
        lambda a: a.update(bbox=[float("nan")] * 4),
    ],
    ids=["missing", "empty", "null", "zeros", "nan"],
)
@pytest.mark.parametrize("kind", ["polygon", "RLE", "compressed RLE"])
def test_a_box_is_the_bounds_of_its_segmentation(
    scene: Scene, without: Callable[[dict[str, Any]], Any], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene.prepare()
    expected = scene.dataset().ground_truth().boxes.tolist()
    for thing in scene.annotations:
        box = thing["bbox"]
        thing["segmentation"] = polygon(box) if kind == "polygon" else rle(box, kind.startswith("comp"))
        without(thing)
    with caplog.at_level(logging.WARNING):
        assert scene.prepare().changes.filled_bbox == 8
    assert "8 annotations have a segmentation and no box" in said(caplog)
    assert scene.dataset().ground_truth().boxes.tolist() == expected


@pytest.mark.parametrize(
    "segmentation", [None, [], [[]], [[1, 2]], "x", {"counts": [5], "size": [48, 64]}, [["a"] * 6]]
)
def test_without_a_segmentation_either_it_is_refused(scene: Scene, segmentation: object) -> None:
    scene.annotations[0].pop("bbox")
    scene.annotations[0]["segmentation"] = segmentation
    assert "annotations[0]: the key 'bbox' is missing" in refused(scene)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_bounds_of_any_mask_are_those_of_pycocotools(height: int, width: int, seed: int) -> None:
    from pycocotools import mask

    r = np.random.default_rng(seed)
    full = (r.random((height, width)) < r.random()).astype(np.uint8, order="F")
    encoded = mask.encode(np.asfortranarray(full))
    x, y, w, h = mask.toBbox(encoded).tolist()
    found = mask_bounds({"size": encoded["size"], "counts": encoded["counts"].decode()})
    assert found == ((x, y, w, h) if w and h else None)


@pytest.mark.parametrize("counts", [[3, 4, 4], [3, 4], [3, 4, 6], [3, 4, -1, 6], "zzz", "34", "345 ", "34é", "3p"])
def test_runs_that_are_not_the_mask_have_no_bounds(counts: object) -> None:
    """They were cut or damaged, or are of a mask of another size: the box would be another one."""
    assert mask_bounds({"size": [3, 4], "counts": [3, 4, 5]}) == (1.0, 0.0, 2.0, 3.0)
    assert mask_bounds({"size": [3, 4], "counts": "345"}) == (1.0, 0.0, 2.0, 3.0)
    assert mask_bounds({"size": [3, 4], "counts": counts}) is None
