"""Tiles: they cover the picture, boxes follow the rule, and what tiles show is found once in the whole picture."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mgdet.data import CocoSplit, ShardedDataset, import_coco
from mgdet.data.decode import decode_image
from mgdet.data.pictures import Pictures
from mgdet.data.schema import Record
from mgdet.data.tiles import VISIBLE, cut_record
from mgdet.errors import ConfigError, DataError
from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.coco import coco_ap, of_whole_pictures
from mgdet.tiles import EDGE, grid, keep_of_tiles
from tests.data.scenes import Scene
from tests.reference import tiles as loops


@given(st.integers(1, 400), st.integers(1, 400), st.integers(32, 200), st.floats(0, 0.9))
def test_tiles_cover_the_picture_and_overlap_enough(height, width, tile, overlap):
    frames = grid(height, width, tile, overlap)
    columns, rows = (sorted({(f[i], f[i + 2]) for f in frames}) for i in (0, 1))
    assert len(frames) == len(columns) * len(rows)
    for side, spans in ((width, columns), (height, rows)):
        assert spans[0][0] == 0
        assert spans[-1][1] == side
        assert {end - start for start, end in spans} == {min(side, tile)}
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert end - start >= overlap * tile - 1


@given(st.integers(0, 10**6))
def test_the_detections_that_stay_are_those_of_the_loop(seed):
    rng = np.random.default_rng(seed)
    size = 90, 70
    frames = grid(*size, 40, 0.25)
    tile = rng.integers(0, len(frames), 25)
    boxes = []
    for t in tile.tolist():
        x1, y1, x2, y2 = frames[t]
        corners = rng.integers([x1, y1], [x2, y2], (2, 2))  # whole pixels: often at a border
        boxes.append([*corners.min(0), *(corners.max(0) + 1)])
    scores, labels = rng.permutation(25) / 25, rng.integers(0, 2, 25)
    found = keep_of_tiles(
        torch.tensor(np.array(boxes), dtype=torch.float32),
        torch.tensor(scores),
        torch.tensor(labels),
        torch.tensor(tile),
        torch.tensor(frames, dtype=torch.float32),
        0.5,
    )
    assert found.tolist() == loops.kept(boxes, scores, labels, tile, frames, size, 0.5, EDGE)


def test_a_piece_at_a_border_gives_way_to_the_tile_that_sees_the_whole():
    frames = torch.tensor([[0.0, 0, 100, 50], [80, 0, 180, 50]])
    boxes = torch.tensor([[85.0, 10, 100, 30], [85, 10, 115, 30], [60, 5, 100, 45], [80, 5, 130, 45]])
    scores, labels, tile = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4, dtype=torch.int64), [0, 1, 0, 1]
    kept = keep_of_tiles(boxes, scores, labels, torch.tensor(tile), frames, 0.5)
    assert kept.tolist() == [1, 2, 3]  # of the long object both pieces stay: no tile shows it whole


def test_boxes_are_cut_and_what_is_hardly_visible_is_a_crowd():
    boxes = np.array([[0.0, 0, 10, 10], [35, 0, 45, 10], [30, 20, 50, 40], [38, 0, 48, 10], [60, 0, 70, 10]])
    record = Record(
        *(7, "a.png", 100, 50, b""),
        boxes=boxes,
        labels=np.arange(5, dtype=np.int32),
        iscrowd=np.array([True, False, False, False, False]),
        area=np.full(5, 80.0),
    )
    tile = cut_record(record, (5, 0, 40, 30))
    assert tile.file_name == "a.png@5,0"
    assert (tile.width, tile.height) == (35, 30)
    assert tile.boxes.tolist() == [[0, 0, 5, 10], [30, 0, 35, 10], [25, 20, 35, 30], [33, 0, 35, 10]]
    assert tile.labels.tolist() == [0, 1, 2, 3]
    assert tile.iscrowd.tolist() == [True, False, True, True]  # half, a quarter and a fifth of the last three
    assert tile.area.tolist() == [40, 40, 20, 16]
    assert VISIBLE == 0.5


def test_prepared_tiles_are_parts_of_their_pictures_and_know_the_whole(tmp_path):
    scene = Scene(tmp_path, count=3, width=100, height=64)
    scene.prepare(tile=48, overlap=0.25)
    tiles = scene.dataset()
    whole = ShardedDataset(str(whole_of(scene)), "train")
    frames = grid(64, 100, 48, 0.25)
    assert len(tiles) == 3 * len(frames)
    assert tiles.image_ids.tolist() == list(range(1, len(tiles) + 1))
    for row in range(len(tiles)):
        picture, (x1, y1, x2, y2) = row // len(frames), frames[row % len(frames)]
        pixels = decode_image(whole.read_image(picture))
        assert torch.equal(decode_image(tiles.read_image(row)), pixels[:, y1:y2, x1:x2])
    truth, uncut = tiles.ground_truth(), whole.ground_truth()
    assert truth.tiles is not None
    assert truth.tiles.picture.tolist() == [p for p in range(3) for _ in frames]
    assert truth.tiles.frames.tolist() == [list(f) for _ in range(3) for f in frames]
    for name in ("image_ids", "heights", "widths", "box_image", "boxes", "labels", "iscrowd", "area"):
        assert np.array_equal(getattr(truth.tiles.whole, name), getattr(uncut, name)), name


def whole_of(scene: Scene) -> Path:
    """The same scene, not cut."""
    out = scene.root / "whole"
    import_coco(out, [CocoSplit("train", scene.root / "train.json", scene.images)], overwrite=True)
    return out


def test_pictures_of_tiles_are_the_whole_ones(tmp_path):
    """Names, pixels and annotations; and those of a split that was not cut."""
    scene = Scene(tmp_path, count=3, width=100, height=64)
    scene.prepare(tile=48, overlap=0.25)
    whole = ShardedDataset(str(whole_of(scene)), "train")
    for dataset, cut in ((scene.dataset(), True), (whole, False)):
        pictures = Pictures(dataset)
        assert pictures.are_cut == cut
        assert len(pictures) == 3
        for row in range(3):
            assert pictures.file_name(row) == whole.file_name(row)
            assert torch.equal(pictures.pixels(row), decode_image(whole.read_image(row)))
        assert np.array_equal(pictures.truth.boxes, whole.ground_truth().boxes)


def perfect_detections(truth, seed):
    """Of each tile the visible part of every object, with a random score."""
    rng = np.random.default_rng(seed)
    own = ~truth.iscrowd
    return DetectionArrays(
        truth.box_image[own],
        truth.boxes[own].astype(np.float32),
        rng.uniform(0.5, 1, own.sum()).astype(np.float32),
        truth.labels[own],
    )


def test_objects_that_tiles_show_are_found_once_in_the_whole_picture(tmp_path):
    scene = Scene(tmp_path, count=3, width=100, height=64)
    scene.prepare(tile=63, overlap=0.9)  # so much that every object is whole in some tile
    truth = scene.dataset().ground_truth()
    assert truth.tiles is not None
    found = of_whole_pictures(perfect_detections(truth, 0), truth.tiles, 0.5)
    result = coco_ap(truth.tiles.whole, found)
    assert len(found.scores) == len(truth.tiles.whole.boxes)
    assert pytest.approx(1) == result.AP


def test_pictures_that_fit_are_kept_byte_for_byte(tmp_path):
    scene = Scene(tmp_path, count=2)
    scene.prepare(tile=64)
    data = scene.dataset()
    assert [data.file_name(i) for i in range(2)] == ["0001.png", "0002.png"]
    assert data.read_image(0) == (scene.images / "0001.png").read_bytes()


def test_empty_tiles_may_be_left_out_where_it_is_said(tmp_path):
    scene = Scene(tmp_path, count=1, width=200, height=64)
    scene.content["annotations"] = scene.annotations[:1]
    manifest = scene.prepare(tile=64, drop_empty_tiles="train")
    data = scene.dataset()
    assert manifest.splits["train"].negatives == 0
    assert len(data) < len(grid(64, 200, 64))
    assert data.ground_truth().tiles is None  # what is found in the others is not known


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tile": 8}, "tile = 8: allowed are 32 to 16384"),
        ({"tile": 64, "overlap": 1.0}, "overlap = 1: allowed are 0 to 0.9"),
        ({"tile": 64, "drop_empty_tiles": "val"}, "drop_empty_tiles = val: the splits are train"),
    ],
)
def test_impossible_tiles_are_refused(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        Scene(tmp_path, count=1).prepare(**options)


def test_a_damaged_file_of_whole_pictures_is_refused(tmp_path):
    scene = Scene(tmp_path, count=1, width=100)
    scene.prepare(tile=48)
    (scene.out / "train/whole.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"Cannot use .*train/whole.parquet: its checksum is not the manifest's"):
        scene.dataset().ground_truth()


@pytest.mark.slow
def test_a_picture_of_8000_pixels(tmp_path):
    """Prepared, trained on for a step, evaluated and predicted in tiles; AP is that of the whole picture."""
    from mgdet.comparison.judged import read_judged
    from mgdet.inference.evaluate import evaluate_trained
    from mgdet.inference.load import load_detector
    from mgdet.inference.predict import Options, predict
    from mgdet.inference.results import ResultFiles
    from mgdet.runs.launch import train_in_process
    from tests.small import small_experiment

    rng, (height, width) = np.random.default_rng(0), (6000, 8000)
    pixels = np.full((height, width, 3), 110, dtype=np.uint8)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    content["images"].append({"id": 5, "file_name": "large.png", "width": width, "height": height})
    for number in range(1, 41):
        side = int(rng.integers(60, 200))
        x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        pixels[y : y + side, x : x + side] = rng.integers(0, 256, 3)
        box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
        content["annotations"].append({"id": number, "image_id": 5, "category_id": 1, **box})
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images/large.png", compress_level=1)
    (tmp_path / "a.json").write_text(json.dumps(content))
    splits = [CocoSplit(name, tmp_path / "a.json", tmp_path / "images") for name in ("train", "val")]
    import_coco(tmp_path / "tiles", splits, tile=2048, overlap=0.2)
    experiment = small_experiment(
        tmp_path, data__uri=str(tmp_path / "tiles"), data__generate=None, train__epochs=1, train__batch_size=4
    )
    train_in_process(experiment)
    trained = load_detector(experiment.run_uri)
    done = evaluate_trained(trained, files=ResultFiles.below(str(tmp_path / "judged")))
    assert done.images == len(grid(height, width, 2048))
    assert "val/AP" in done.metrics
    judged = read_judged(str(tmp_path / "judged"))
    assert judged.files == ("large.png",)
    assert judged.gt.image_ids.tolist() == [5]
    assert sorted(judged.gt.boxes.tolist()) == sorted(
        [x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in content["annotations"])
    )
    assert pytest.approx(done.metrics["val/AP"], abs=1e-9) == coco_ap(judged.gt, judged.det).AP
    options = Options(score=0.0, tile=2048, batch_size=4)
    found = predict(trained, [str(tmp_path / "images")], str(tmp_path / "found"), options=options)
    assert found.images == 1
    boxes = np.array([d["bbox"] for d in json.loads((tmp_path / "found/detections.json").read_text())])
    assert found.detections == len(boxes)
    if len(boxes):
        assert (boxes[:, :2] >= 0).all()
        assert ((boxes[:, :2] + boxes[:, 2:]) <= [width, height]).all()
