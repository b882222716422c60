"""The generated data: deterministic, varied, honest boxes."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from mgdet.data import ShapesConfig, ShardedDataset, generate_shapes
from mgdet.data.decode import decode_image
from mgdet.data.render import CLASS_NAMES, MIN_VISIBLE, draw_scene
from mgdet.data.shapes import ensure_shapes
from mgdet.errors import DataError

SMALL = ShapesConfig(train=70, val=5, size=64)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate_shapes(tmp_path / name, SMALL)
    generate_shapes(tmp_path / "c", SMALL.model_copy(update={"seed": 1}))
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a) == {"dataset.json", "train/part-00000.parquet", "val/part-00000.parquet"}
    assert a["train/part-00000.parquet"] != c["train/part-00000.parquet"]


def test_an_image_does_not_depend_on_the_number_of_images(tmp_path: Path) -> None:
    generate_shapes(tmp_path / "a", SMALL)
    generate_shapes(tmp_path / "b", SMALL.model_copy(update={"train": 3}))
    a, b = (ShardedDataset(str(tmp_path / name), "train") for name in "ab")
    assert [a.read_image(i) for i in range(3)] == [b.read_image(i) for i in range(3)]


@pytest.mark.slow
def test_contents_are_varied(tmp_path: Path) -> None:
    generate_shapes(tmp_path / "x", ShapesConfig(train=400, val=1, difficulty=0.6))
    data = ShardedDataset(str(tmp_path / "x"), "train")
    truth = data.ground_truth()
    size = truth.boxes[:, 2:] - truth.boxes[:, :2]
    assert truth.boxes.min() >= 0
    assert truth.boxes.max() <= 160
    assert size.min() >= 8  # 12 pixels, less where the border cuts
    assert size.max() >= 0.6 * 160
    aspect = size[:, 0] / size[:, 1]
    assert aspect.min() < 0.5
    assert aspect.max() > 2
    counts = np.bincount(truth.box_image, minlength=400)
    assert 0.02 < (counts == 0).mean() < 0.09
    assert counts.max() >= 7
    shares = np.bincount(truth.labels, minlength=len(CLASS_NAMES)) / len(truth.labels)
    assert shares.min() > 0.1
    assert decode_image(data.read_image(0)).shape == (3, 160, 160)


def test_boxes_are_tight() -> None:
    """A lone object of full contrast must fill its box to within a pixel on every side."""
    from mgdet.data import render

    for i in range(120):
        rng = np.random.default_rng(i)
        thing = render._draw_object(rng, CLASS_NAMES[i % len(CLASS_NAMES)], 160, 12.0, i % 7 / 6)
        ys, xs = np.nonzero(thing.mask > 0)
        x, y = thing.corner
        seen = np.array([xs.min() + x, ys.min() + y, xs.max() + 1 + x, ys.max() + 1 + y])
        assert np.abs(seen - thing.box).max() <= 1.5, CLASS_NAMES[i % len(CLASS_NAMES)]


def test_hidden_objects_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from mgdet.data import render

    owners: list[np.ndarray] = []
    areas: list[list[float]] = []
    place = render._place

    def spy(canvas: object, owner: np.ndarray, area: list[float], *rest: object) -> bool:
        if not any(owner is o for o in owners):
            owners.append(owner)
            areas.append(area)
        return place(canvas, owner, area, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(render, "_place", spy)
    for i in range(20):
        draw_scene(np.random.default_rng(i), 96, max_objects=20, smallest=0.08, negative=False, difficulty=i / 19)
    for owner, area in zip(owners, areas, strict=True):
        seen = np.bincount(owner[owner >= 0], minlength=len(area))
        assert (seen >= MIN_VISIBLE * np.array(area) * 0.9).all()  # the count is of whole pixels


def test_ensure_reuses_only_the_same_shapes(tmp_path: Path) -> None:
    first = ensure_shapes(tmp_path / "x", SMALL)
    before = files(tmp_path / "x")
    assert ensure_shapes(tmp_path / "x", SMALL) == first
    assert files(tmp_path / "x") == before
    with pytest.raises(DataError, match="wanted are shapes made with"):
        ensure_shapes(tmp_path / "x", SMALL.model_copy(update={"seed": 5}))


@pytest.mark.parametrize(
    "wrong", [{"train": 0}, {"val": -1}, {"size": 10}, {"seed": -1}, {"negatives": 1.0}, {"colour": 1}]
)
def test_wrong_configuration(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ShapesConfig(**wrong)  # type: ignore[arg-type]


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    generate_shapes(tmp_path / "x", SMALL, progress=lambda *state: said.append(state))
    assert said == [("drawing train", 50, 70), ("drawing train", 70, 70), ("drawing val", 5, 5)]
