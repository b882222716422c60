"""Any number of workers learns the same from the same global batches, also where the number changes in mid-epoch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mgdet.data.dataset import ShardedDataset
from mgdet.data.loader import LoaderConfig, build_train_loader
from mgdet.data.transforms import TransformConfig
from mgdet.errors import Interrupted
from mgdet.runs.launch import prepare, worker_tracker
from mgdet.tracking import NullTracker
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.step import StepSums, accumulate_gradients, forward
from tests import forked  # noqa: F401  # the fork server has imported torch
from tests.faults import step_records
from tests.ranks import ranks
from tests.small import small_experiment

CPU = torch.device("cpu")
IMAGES, BATCH = 53, 12
"""Five global batches in an epoch, of which the last has 5 images: for 12 workers, 7 have none of them."""


def experiment(directory, workers, assigner="max_iou", **changes):
    """A hundred steps in float32 with group norm; the same run for every number of workers."""
    changes = {
        "train__epochs": 20,
        "train__evaluate_every": 20,
        "train__batch_size": BATCH,
        "train__log_every": 1,
        "data__generate__train": IMAGES,
        "data__transform__hflip": 0.5,
        "assigner": {"name": assigner},
        "cluster": {"workers": workers, "gpu": False},
        **changes,
    }
    return prepare(small_experiment(Path(directory), **changes), max(1, workers), 0)[0]


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return ShardedDataset(experiment(tmp_path_factory.mktemp("data"), 0).data.uri, "train")


def pixels(split, world, epoch):
    """Of each step: the images of all ranks that count, by row, as (id, pixels, boxes)."""
    transform = TransformConfig(resize={"name": "fixed", "height": 64, "width": 64}, hflip=0.5)
    options = {"batch_size": BATCH // world, "seed": 3, "world": world}
    loaders = [
        build_train_loader(split, transform, LoaderConfig(workers=0), rank=rank, **options) for rank in range(world)
    ]
    for loader in loaders:
        loader.start(epoch)
    found = []
    for batches in zip(*loaders, strict=True):
        step = {}
        for batch in batches:
            for i, row in enumerate(batch.positions.tolist()):
                boxes = batch.targets.boxes[i][batch.targets.valid[i]]
                if row >= 0:
                    step[row] = (int(batch.image_ids[i]), batch.images[i], boxes)
                else:
                    assert not batch.images[i].any()
                    assert not len(boxes)
        found.append(step)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4, 12])
def test_every_number_of_workers_sees_the_same_pixels(split, world):
    for epoch in (0, 5):
        one, several = pixels(split, 1, epoch), pixels(split, world, epoch)
        assert [sorted(step) for step in several] == [sorted(step) for step in one]
        assert [len(step) for step in one] == [12, 12, 12, 12, 5]
        for mine, theirs in zip(several, one, strict=True):
            for row, (image_id, image, boxes) in theirs.items():
                assert mine[row][0] == image_id
                assert torch.equal(mine[row][1], image)
                assert torch.equal(mine[row][2], boxes)


def test_a_picture_that_only_fills_a_place_adds_nothing(split, tmp_path):
    """Neither loss nor gradient, nor an image of the mean."""
    e = experiment(tmp_path, 0)
    loader = build_train_loader(
        split, e.data.transform, LoaderConfig(workers=0), batch_size=1, seed=0, world=12, rank=11
    )
    loader.start(0, 4)
    (batch,) = loader
    assert batch.positions.tolist() == [-1]
    network = e.model.build(3)
    losses = forward(network, network, batch, e, World(0, 1, CPU), 0.0).losses
    losses.total.backward()
    assert losses.total.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())
    sums = StepSums()
    accumulate_gradients(network, network, [batch], e, World(0, 1, CPU), 0.0, sums)
    assert sums.sums["images"].item() == 0


def asking(at):
    calls = []

    def stop_asked():
        calls.append(1)
        return len(calls) == at

    return stop_asked


def as_rank(rank, directory, workers, stop_at, assigner):
    """A rank of a run that goes on from its last checkpoint; stops after so many steps."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/group-{workers}", rank=rank, world_size=workers)
    e = experiment(directory, workers, assigner)
    tracker = worker_tracker(e, None) if rank == 0 else NullTracker()
    worker = Worker(e, World.current(CPU), tracker, stop_asked=asking(stop_at) if stop_at else lambda: False)
    try:
        worker.run()
    except Interrupted:
        assert stop_at
    tracker.close()
    torch.save(worker.position.step, f"{directory}/rank-{rank}.pt")
    dist.destroy_process_group()


def losses(directory):
    """The loss of each step."""
    records = step_records(Path(directory) / "runs/small/metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 101))
    return torch.tensor([r["metrics"]["train/loss"] for r in records], dtype=torch.float64)


EXHAUSTIVE = pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("workers", "assigner"),
    [
        pytest.param([2], "max_iou", marks=EXHAUSTIVE),
        pytest.param([3], "max_iou", marks=EXHAUSTIVE),
        pytest.param([4], "mutual_guidance", marks=EXHAUSTIVE),
        pytest.param([2, 1], "max_iou", marks=pytest.mark.slow),
        pytest.param([1, 4, 3], "mutual_guidance", marks=EXHAUSTIVE),
    ],
    ids=str,
)
def test_the_losses_are_those_of_one_worker(tmp_path, workers, assigner):
    """Over a hundred steps; where several numbers are given, the run changes in mid-epoch, after each 33 steps."""
    straight, other = tmp_path / "straight", tmp_path / "other"
    for directory in (straight, other):
        directory.mkdir()
    e = experiment(straight, 0, assigner)
    tracker = worker_tracker(e, None)
    Worker(e, World(0, 1, CPU), tracker).run()
    tracker.close()
    for i, count in enumerate(workers):
        stop_at = 0 if i + 1 == len(workers) else 33  # it is asked after each step, and after each epoch
        assert len(set(ranks(count, as_rank, other, count, stop_at, assigner, seconds=600))) == 1
    mine, theirs = losses(other), losses(straight)
    assert ((mine - theirs).abs() / theirs).max() < 1e-5
