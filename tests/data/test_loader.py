"""The loader: the same batches whatever made them, exact evaluation, clear errors."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from mgdet.data import ShardedDataset, build_eval_loader, build_train_loader
from mgdet.data.loader import LoaderConfig, TrainLoader, check_shared_memory, resolve_loader_workers
from mgdet.data.order import steps_per_epoch
from mgdet.data.schema import Record
from mgdet.data.transforms import TransformConfig
from mgdet.data.writer import write_dataset
from mgdet.errors import ConfigError, DataError
from mgdet.structures import Batch, Category

AUGMENT = TransformConfig.model_validate(
    {
        "resize": {"name": "fixed", "height": 48, "width": 64},
        "vflip": 0.5,
        "color": {"hue": 0.1},
        "scale_jitter": {"low": 0.5, "high": 1.5},
    }
)
IN_PROCESS = LoaderConfig(workers=0)


def same(a: list[Batch], b: list[Batch]) -> bool:
    def flat(batch: Batch) -> list[torch.Tensor]:
        fields = batch.fields()
        return [*fields.pop("targets").fields().values(), *fields.values()]

    pairs = [(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(flat(one), flat(two), strict=True)]
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def train_loader(source: ShardedDataset, loader: LoaderConfig = IN_PROCESS, **options: int) -> TrainLoader:
    return build_train_loader(source, AUGMENT, loader, **({"batch_size": 16, "seed": 7} | options))


def epoch(loader: TrainLoader, number: int, step: int = 0) -> list[Batch]:
    loader.start(number, step)
    batches = loader.batches
    assert len(loader) == steps_per_epoch(sum(batches.row_group_sizes), batches.world, batches.batch_size) - step
    return list(loader)


def test_batches_are_as_the_values_say(shapes: ShardedDataset) -> None:
    batches = epoch(train_loader(shapes), 0)
    assert [len(b.images) for b in batches] == [16] * 9 + [6]
    batch = batches[0]
    assert isinstance(batch, Batch)
    assert batch.images.shape == (16, 3, 64, 64)  # 48 is padded to a multiple of 32
    assert batch.images.dtype == torch.uint8
    assert not batch.images[:, :, 48:].any()
    assert batch.sizes.tolist() == [[48, 64]] * 16
    assert batch.original_sizes.tolist() == [[64, 64]] * 16
    assert batch.targets.boxes.dtype == torch.float32
    assert batch.targets.labels.dtype == torch.int64
    assert batch.image_ids.tolist() == shapes.image_ids[batch.positions].tolist()
    assert sorted(int(p) for b in batches for p in b.positions) == list(range(150))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "method"), [(1, "forkserver"), (2, "spawn")])
def test_same_batches_for_any_number_of_workers(shapes: ShardedDataset, workers: int, method: str) -> None:
    reference = train_loader(shapes)
    loader = train_loader(shapes, LoaderConfig(workers=workers, start_method=method))  # type: ignore[arg-type]
    for number in (0, 1):
        assert same(epoch(reference, number), epoch(loader, number))
    loader.start(2)
    next(iter(loader))  # an iteration that is given up must not spoil the next
    assert same(epoch(reference, 3, step=4), epoch(loader, 3, step=4))


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 1, 7, 10])
def test_start_in_mid_epoch(shapes: ShardedDataset, step: int) -> None:
    whole = epoch(train_loader(shapes), 5)
    torch.manual_seed(99)
    assert same(epoch(train_loader(shapes), 5, step), whole[step:])


@pytest.mark.slow
def test_epochs_differ_in_order_and_augmentation(shapes: ShardedDataset) -> None:
    loader = train_loader(shapes, batch_size=150)
    (one,), (two,) = epoch(loader, 0), epoch(loader, 1)
    assert one.positions.tolist() != two.positions.tolist()
    assert not torch.equal(one.images[one.positions.argsort()], two.images[two.positions.argsort()])


@pytest.mark.slow
def test_an_image_is_augmented_alike_on_every_rank(shapes: ShardedDataset) -> None:
    alone = {int(p): im for b in epoch(train_loader(shapes), 0) for p, im in zip(b.positions, b.images, strict=True)}
    for rank in range(2):
        for batch in epoch(train_loader(shapes, world=2, rank=rank), 0):
            for position, image in zip(batch.positions, batch.images, strict=True):
                assert torch.equal(image, alone[int(position)])


@pytest.mark.slow
def test_loading_leaves_the_training_randomness_alone(shapes: ShardedDataset) -> None:
    loader = train_loader(shapes)
    state = torch.get_rng_state()
    epoch(loader, 0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("world", [1, 3, 4])
def test_evaluation_sees_every_image_once(shapes: ShardedDataset, world: int) -> None:
    val = ShardedDataset(shapes.uri, "val")
    positions = []
    for rank in range(world):
        for batch in build_eval_loader(val, AUGMENT, IN_PROCESS, batch_size=2, world=world, rank=rank):
            positions += batch.positions.tolist()  # type: ignore[attr-defined]
    assert positions == list(range(7))


def test_a_rank_may_have_nothing_to_evaluate(shapes: ShardedDataset) -> None:
    val = ShardedDataset(shapes.uri, "val")
    assert list(build_eval_loader(val, AUGMENT, IN_PROCESS, batch_size=2, world=9, rank=8)) == []


def size(image: bytes) -> tuple[int, int]:
    """(width, height) that the file states."""
    with Image.open(io.BytesIO(image)) as opened:
        return opened.size


def write(path: Path, images: list[bytes], crowd: bool = False) -> ShardedDataset:
    boxes, label = np.array([[2.0, 2, 20, 20], [5, 5, 30, 28]]), np.array([0, 0], dtype=np.int32)
    rows = [
        Record(i, f"{i}.jpg", *size(image), image, boxes, label, np.array([crowd, False]), np.ones(2))
        for i, image in enumerate(images)
    ]
    write_dataset(path, {"train": rows}, name="x", categories=[Category(1, "a")])
    return ShardedDataset(str(path), "train")


def test_crowd_boxes_are_no_targets(tmp_path: Path, jpeg: bytes) -> None:
    data = write(tmp_path / "x", [jpeg], crowd=True)
    (batch,) = epoch(train_loader(data, batch_size=1), 0)
    assert batch.targets.valid.sum() <= 1
    (batch,) = build_eval_loader(data, AUGMENT, IN_PROCESS, batch_size=1)
    assert batch.targets.boxes.tolist() == [[[8.0, 8.0, 48.0, pytest.approx(44.8)]]]
    assert data.ground_truth().iscrowd.tolist() == [True, False]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_unreadable_images_are_named(tmp_path: Path, jpeg: bytes, workers: int) -> None:
    data = write(tmp_path / "x", [jpeg, jpeg[:-50]])
    with pytest.raises(DataError, match=r"image 1\.jpg \(id 1, .*split train\): not a readable image"):
        epoch(train_loader(data, LoaderConfig(workers=workers), batch_size=2), 0)


def test_a_cut_image_with_an_end_marker_is_named_in_training_and_evaluation(tmp_path: Path, jpeg: bytes) -> None:
    data = write(tmp_path / "x", [jpeg, jpeg[:-50] + b"\xff\xd9"])
    for batches in (
        lambda: epoch(train_loader(data, batch_size=2), 0),
        lambda: list(build_eval_loader(data, AUGMENT, IN_PROCESS, batch_size=2)),
    ):
        with pytest.raises(DataError, match=r"image 1\.jpg \(id 1, .*: not a readable image .*Corrupt JPEG data"):
            batches()


def test_the_limit_of_pixels_is_a_key(tmp_path: Path, jpeg: bytes) -> None:
    data = write(tmp_path / "x", [jpeg])
    assert len(epoch(train_loader(data, LoaderConfig(workers=0, max_pixels=1200), batch_size=1), 0)) == 1
    with pytest.raises(DataError, match=r"40 x 30 = 1200, allowed are 1199"):
        epoch(train_loader(data, LoaderConfig(workers=0, max_pixels=1199), batch_size=1), 0)


def test_crowds_are_moved_with_the_picture(tmp_path: Path, jpeg: bytes) -> None:
    """A crowd lies where an object with its box would lie, whatever the augmentation."""
    as_crowds = write(tmp_path / "crowds", [jpeg, jpeg], crowd=True)
    as_objects = write(tmp_path / "objects", [jpeg, jpeg], crowd=False)
    (crowds,), (objects,) = (epoch(train_loader(d, batch_size=2), 0) for d in (as_crowds, as_objects))
    assert torch.equal(crowds.images, objects.images)
    for i in range(2):
        regions = crowds.targets.regions[i]
        found = [b for b in regions.tolist() if any(b)] + crowds.targets.boxes[i][crowds.targets.valid[i]].tolist()
        assert sorted(found) == sorted(objects.targets.boxes[i][objects.targets.valid[i]].tolist())


def test_images_of_different_sizes_share_a_batch(tmp_path: Path, bccd: Path) -> None:
    images = [p.read_bytes() for p in sorted((bccd.parent / "aquarium" / "images").glob("*.jpg"))[:12]]
    data = write(tmp_path / "x", images)
    config = TransformConfig.model_validate({"resize": {"name": "shortest_edge", "sizes": (70, 90), "longest": 130}})
    loader = build_train_loader(data, config, LoaderConfig(workers=0, divisor=16), batch_size=12, seed=0)
    (batch,) = epoch(loader, 0)
    height, width = batch.images.shape[2:]
    assert height % 16 == width % 16 == 0
    assert (batch.sizes.amax(dim=0) > torch.tensor([height, width]) - 16).all()
    for image, (h, w) in zip(batch.images, batch.sizes.tolist(), strict=True):
        assert not image[:, h:].any()
        assert not image[:, :, w:].any()


def test_too_few_images(shapes: ShardedDataset) -> None:
    with pytest.raises(ConfigError, match="Allowed: at most 150 workers"):
        train_loader(shapes, world=151)
    with pytest.raises(ConfigError, match="1 to 75"):
        train_loader(shapes, world=2, batch_size=76)


def test_shared_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_shared_memory(10, tmp_path)
    check_shared_memory(10, tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"--shm-size=8g.*medium: Memory"):
        check_shared_memory(2**60, tmp_path)


@pytest.mark.parametrize(("cpus", "workers"), [(0.5, 0), (1, 0), (2, 0), (3, 2), (8, 7), (64, 8)])
def test_auto_workers(cpus: float, workers: int) -> None:
    number, reason = resolve_loader_workers(cpus)
    assert number == workers
    assert f"{cpus:g} CPU" in reason


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"workers": "many"}, {"start_method": "fork"}, {"divisor": 0}])
def test_wrong_configuration(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LoaderConfig.model_validate(wrong)


ORPHAN = """
import multiprocessing, os, time
from mgdet.data.loader import end_with_parent

def child():
    end_with_parent()
    time.sleep(600)

if __name__ == "__main__":
    process = multiprocessing.get_context("forkserver").Process(target=child, daemon=True)
    process.start()
    print(process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_loader_process_does_not_outlive_its_worker(tmp_path):
    """Not even where the fork server between them is killed at the same moment."""
    (tmp_path / "orphan.py").write_text(ORPHAN)
    worker = subprocess.Popen([sys.executable, str(tmp_path / "orphan.py")], stdout=subprocess.PIPE, text=True)
    orphan = psutil.Process(int(worker.stdout.readline()))
    for process in (orphan.parent(), worker):
        process.kill()
    worker.wait()
    orphan.wait(timeout=60)
