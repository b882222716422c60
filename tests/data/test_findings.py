"""What dry run and training say from the annotations alone."""

import logging
from pathlib import Path
from typing import Any

import pytest

from mgdet.cluster import tune
from mgdet.data.findings import examine, examine_data
from mgdet.data.transforms import FixedSize, LongestEdge, ScaleJitter, ShortestEdge, TrainTransform, TransformConfig
from mgdet.runs.config import ClusterConfig
from mgdet.runs.dry_run import dry_run
from mgdet.runs.launch import train_in_process
from mgdet.sweep.config import load_sweep
from tests.data.scenes import Scene
from tests.small import small_experiment
from tests.sweep.test_config import write

SMALL = {"name": "fixed", "height": 64, "width": 64}


@pytest.fixture
def aerial(tmp_path: Path) -> Scene:
    """Four images with two objects of normal size and eight of 3 pixels each."""
    scene = Scene(tmp_path, width=240, height=180)
    for image in range(1, 5):
        for k in range(8):
            scene.annotations.append(
                {"image_id": image, "category_id": 1 + (k == 0), "bbox": [20 * k, 30, 3, 3], "area": 9, "iscrowd": 0}
            )
    scene.prepare()
    return scene


def experiment_of(scene: Scene, **changes: Any) -> Any:
    given = {"data__uri": str(scene.out), "data__generate": None, "data__val_split": "train", **changes}
    return small_experiment(scene.root, **given)


@pytest.mark.parametrize(
    ("resize", "jitter", "lost"),
    [
        (FixedSize(height=60, width=60), None, 32),
        (FixedSize(height=180, width=60), None, 32),  # too narrow
        (FixedSize(height=180, width=240), None, 0),
        (LongestEdge(height=60, width=60), None, 32),
        (LongestEdge(height=60, width=60), ScaleJitter(low=0.5, high=1.2), 32),
        (LongestEdge(height=60, width=60), ScaleJitter(low=0.5, high=5.0), 0),
        (ShortestEdge(sizes=(40, 50)), None, 32),
        (ShortestEdge(sizes=(40, 90)), None, 0),
    ],
)
def test_objects_that_no_epoch_can_learn_are_counted(aerial: Scene, resize: Any, jitter: Any, lost: int) -> None:
    transform = TransformConfig(resize=resize, scale_jitter=jitter)
    found = examine({"train": aerial.dataset()}, transform, trained="train")
    assert (found.objects["train"], found.learnable["train"]) == (40, 40 - lost)
    text = "\n".join(found.lines)
    said = "32 of 40 training objects (80%) are smaller than min_box_size = 1 at this input size"
    assert (said in text) == bool(lost)
    if lost:
        assert "red 28 of 32, green 4 of 8" in text


def test_the_count_is_that_of_the_transform(aerial: Scene) -> None:
    """The training itself drops just these objects."""
    import torch

    data = aerial.dataset()
    transform = TransformConfig(resize=FixedSize(height=70, width=90), hflip=0, min_box_size=1.15)
    kept = 0
    for i in range(len(data)):
        boxes = torch.from_numpy(data.annotation(i).boxes)
        pixels = torch.zeros(3, 180, 240, dtype=torch.uint8)
        out = TrainTransform(transform, 0)(pixels, boxes, torch.zeros(len(boxes)), epoch=0, position=i)
        kept += len(out.boxes)
    assert examine({"train": data}, transform, trained="train").learnable["train"] == kept == 8


@pytest.mark.slow
def test_the_dry_run_says_what_will_not_be_learned(aerial: Scene) -> None:
    report = dry_run(experiment_of(aerial))
    assert "annotations: 32 of 40 training objects (80%)" in report
    assert report.endswith("dry run: everything works; nothing was kept")


@pytest.mark.slow
def test_the_dry_run_does_not_praise_a_training_that_learns_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for thing in scene.annotations:
        thing["bbox"] = [v / 64 for v in thing["bbox"]]
    scene.prepare(accept_boxes=True)
    report = dry_run(experiment_of(scene))
    assert "everything works" not in report
    assert "NOTHING WOULD BE LEARNED" in report
    assert "8 of 8 training objects (100%)" in report


@pytest.mark.slow
def test_a_training_begins_with_it(aerial: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train_in_process(experiment_of(aerial, train__epochs=1))
    said = [record.getMessage() for record in caplog.records]
    assert any(text.startswith("32 of 40 training objects") for text in said)


def test_a_sweep_says_it_once(aerial: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Two of three widths lose the same objects; in the third every object is large enough."""
    path = write(
        aerial.root,
        set={"train.epochs": 4, "data.uri": str(aerial.out), "data.generate": None, "data.val_split": "train"},
        space={"data.transform.resize.width": {"choice": [60, 64, 2000]}},
    )
    with caplog.at_level(logging.WARNING):
        tune._check_corners(load_sweep(path), ClusterConfig(workers=1, gpu=False, cpus_per_worker=1))
    lost = [r.getMessage() for r in caplog.records if "training objects" in r.getMessage()]
    assert len(lost) == 1, lost


def test_classes_that_only_one_split_has(tmp_path: Path) -> None:
    from mgdet.data import CocoSplit, ShardedDataset, import_coco

    places = []
    for name in ("train", "val"):
        scene = Scene(tmp_path / name)
        scene.content["categories"] += [{"id": 3, "name": "blue"}, {"id": 4, "name": "never"}]
        if name == "val":
            scene.annotations[0]["category_id"] = 3
        scene.prepare()
        places.append(CocoSplit(name, scene.root / "train.json", scene.images))
    import_coco(tmp_path / "both", places)
    found = examine({s: ShardedDataset(str(tmp_path / "both"), s) for s in ("train", "val")})
    assert any("1 class has 0 objects in train: blue" in line for line in found.lines)
    assert any("1 class has 0 objects in train and val: never" in line for line in found.lines)


def test_old_sets_with_repeated_entries_are_told(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.content["images"].append({**scene.content["images"][0], "id": 50})
    scene.annotations.append({**scene.annotations[0], "id": 99})
    scene.prepare(keep_repeated=True)
    found = examine_data(experiment_of(scene).data)
    assert "train: 1 files are there under several ids: 0001.png (2 times)" in found.lines
    assert "train: 1 annotations repeat another one (same image, class and box)" in found.lines


def test_sound_data_give_no_line(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.prepare()
    assert examine_data(experiment_of(scene).data).lines == ()
