"""Boxes of annotations that have only a segmentation."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mgdet.data.formats.masks import mask_bounds
from mgdet.errors import DataError
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


def test_a_mask_of_another_size_than_its_image_is_refused(scene: Scene) -> None:
    """Its bounds are in pixels of another image."""
    thing = scene.annotations[0]
    thing["segmentation"] = rle(thing.pop("bbox"), True)
    scene.content["images"][0].update(width=640, height=480)
    assert "has only a mask, of 48 x 64 pixels (height x width); its image is said to have 480 x 640" in refused(scene)


def test_masks_say_the_size_of_an_image_that_has_none(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """So they are known to be of another frame where the file has another size: here of half of it."""
    scene.prepare()
    expected = scene.dataset().ground_truth().boxes[:2].tolist()
    for thing in scene.annotations[:2]:
        thing["segmentation"] = rle(thing.pop("bbox"), True)
    del scene.content["images"][0]["width"]
    scene.prepare()
    assert scene.dataset().ground_truth().boxes[:2].tolist() == expected
    picture = scene.images / scene.content["images"][0]["file_name"]
    with Image.open(picture) as found:
        found.resize((128, 96)).save(picture)
    with caplog.at_level(logging.WARNING):
        scene.prepare()
    assert scene.dataset().ground_truth().boxes[:2].tolist() == [[2 * v for v in box] for box in expected]
    assert "another size" in said(caplog)
    scene.annotations[1]["segmentation"] = {"size": [4, 4], "counts": [0, 16]}
    with pytest.raises(DataError, match="of 4 x 4 pixels"):
        scene.prepare()
