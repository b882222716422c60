"""Images that cannot be read in the middle of a training: named, counted, left out up to a limit."""

from pathlib import Path

import pytest
import torch

from mgdet.data import ShapesConfig, ShardedDataset, build_eval_loader, build_train_loader, generate_shapes
from mgdet.data.bad_images import BadImage, BadImages
from mgdet.data.loader import LoaderConfig, TrainLoader
from mgdet.data.transforms import TransformConfig
from mgdet.errors import DataError
from mgdet.structures import Batch
from tests.data.damages import flip, spoil

SMALL = TransformConfig.model_validate({"resize": {"name": "fixed", "height": 64, "width": 64}})


def loader(root: Path, limit: int, workers: int = 0, batch_size: int = 2) -> TrainLoader:
    data = ShardedDataset(str(root), "train")
    config = LoaderConfig(workers=workers)
    return build_train_loader(data, SMALL, config, batch_size=batch_size, seed=0, max_bad_images=limit)


def epoch(of: TrainLoader, number: int) -> list[Batch]:
    of.start(number)
    return list(of)


def pictures(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {int(p): image for b in batches for p, image in zip(b.positions, b.images, strict=True)}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_it_is_left_out_and_said_once(root: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    undamaged = pictures(epoch(loader(root, 0, batch_size=3), 0))
    spoil(root, "train", [4])
    of = loader(root, 1, workers, batch_size=3)
    first, second = epoch(of, 0), epoch(of, 1)
    found = pictures(first)
    assert sorted(found) == sorted(pictures(second)) == [0, 1, 2, 3, 5]
    assert all(torch.equal(image, undamaged[p]) for p, image in found.items())
    (said,) = [r.getMessage() for r in caplog.records]
    assert said.startswith("left out (1 of at most 1, data.max_bad_images): image train/000004.jpg (id 5, ")
    assert "not a readable image" in said


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_more_than_the_limit_is_refused(root: Path, workers: int) -> None:
    spoil(root, "train", [1, 4])
    with pytest.raises(
        DataError, match=r"2 images of the training split cannot be read, data\.max_bad_images"
    ) as caught:
        epoch(loader(root, 1, workers), 0)
    assert "train/000001.jpg" in str(caught.value)
    assert "train/000004.jpg" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(DataError, match=r"^image train/00000[14].jpg .*data.max_bad_images, here 0,") as caught:
        epoch(loader(root, 0, workers), 0)
    assert "Traceback" not in str(caught.value)


def test_a_batch_of_nothing_else_is_two_empty_pictures_that_take_no_part(root: Path) -> None:
    spoil(root, "train", range(6))
    batches = epoch(loader(root, 6, batch_size=3), 0)
    assert [len(b.images) for b in batches] == [2, 2]
    for batch in batches:
        assert not batch.images.any()
        assert not batch.targets.valid.any()
        assert batch.targets.regions.tolist() == [[[0, 0, 64, 64]]] * 2


@pytest.mark.parametrize(("batch_size", "left"), [(1, [1] * 6), (2, [2, 2, 2]), (6, [5])])
def test_batch_norm_always_has_what_it_was_checked_for(root: Path, batch_size: int, left: list[int]) -> None:
    spoil(root, "train", [3])
    assert [len(b.images) for b in epoch(loader(root, 1, batch_size=batch_size), 0)] == left


def test_every_image_of_a_damaged_row_group_counts(tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    generate_shapes(str(root), ShapesConfig(train=70, val=1, size=48))
    flip(root, "train", "image")
    with pytest.raises(DataError, match="64 images of the training split cannot be read") as caught:
        list(loader(root, 63, batch_size=70))
    assert "Cannot read row group 0" in str(caught.value)
    (batch,) = loader(root, 64, batch_size=70)
    assert sorted(batch.positions.tolist()) == list(range(64, 70))


def test_no_limit_allows_another_data_set(root: Path) -> None:
    of = loader(root, 1000)
    generate_shapes(str(root), ShapesConfig(train=6, val=3, size=64, seed=1), overwrite=True)
    with pytest.raises(DataError, match="was prepared again after it was opened"):
        epoch(of, 0)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_evaluation_leaves_out_no_image(root: Path, workers: int) -> None:
    spoil(root, "val", [2])
    data = ShardedDataset(str(root), "val")
    with pytest.raises(DataError, match="An evaluation leaves out no image") as caught:
        list(build_eval_loader(data, SMALL, LoaderConfig(workers=workers), batch_size=2))
    assert "Traceback" not in str(caught.value)


def bad(position: int, may: bool = True) -> BadImage:
    return BadImage(position, position, (64, 64), f"image {position} is cut off", may)


def test_workers_that_have_told_each_other_come_to_the_same() -> None:
    ranks = [BadImages(2), BadImages(2)]
    ranks[0].note([bad(5), bad(5)])
    ranks[1].note([bad(5), bad(7)])
    told = [rank.take_new() for rank in ranks]
    assert [sorted(new) for new in told] == [[5], [5, 7]]
    for rank in ranks:
        rank.add(told)
        assert sorted(rank.known) == [5, 7]
        assert rank.take_new() == {}
    texts = []
    for rank in ranks:
        with pytest.raises(DataError) as caught:
            rank.add([{9: "image 9 is cut off"}, {}])
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert "3 images" in texts[0]


def test_what_is_wrong_with_the_whole_data_set_is_refused_at_once() -> None:
    with pytest.raises(DataError, match="image 1 is cut off"):
        BadImages(10).note([bad(1, may=False)])
