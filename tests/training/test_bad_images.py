"""A training that meets images which cannot be read, or other data than it began with, alone and on two workers."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mgdet.data.collate import Collate, _empty
from mgdet.data.shapes import ShapesConfig, generate_shapes
from mgdet.errors import ConfigError, DataError
from mgdet.runs.launch import prepare, training_data
from mgdet.runs.record import save_run
from mgdet.tracking import NullTracker
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.step import forward
from tests import forked  # noqa: F401  # the fork server has imported torch
from tests.data.damages import spoil
from tests.ranks import both
from tests.small import STATEFUL, small_experiment
from tests.training.test_resume import train

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


class Noting(NullTracker):
    """Keeps what is logged."""

    def __init__(self):
        self.metrics = []

    def log(self, metrics, step):
        self.metrics.append(metrics)


def spoilt(directory, rows, **changes):
    """An experiment on six images, of which some cannot be read."""
    data = directory / "shapes"
    if not data.exists():
        generate_shapes(str(data), ShapesConfig(train=6, val=3, size=64))
        spoil(data, "train", rows)
    changes = {"data__generate": None, "train__log_every": 1, "train__epochs": 1, **changes}
    return prepare(small_experiment(directory, **changes), cpus=1, gpus=0)[0]


@pytest.mark.slow
def test_the_number_of_images_that_were_left_out_is_tracked(tmp_path):
    tracker = Noting()
    worker = Worker(spoilt(tmp_path, [0, 1, 3], data__max_bad_images=3), ALONE, tracker)
    worker.run()
    counts = [m["train/bad_images"] for m in tracker.metrics if "train/bad_images" in m]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    assert worker.position.step == 3, "the steps are those of the whole data set"


@pytest.mark.slow
def test_the_limit_is_not_what_a_run_is(tmp_path):
    """It may be raised for the run that it ended."""
    assert spoilt(tmp_path, [0]).identity() == spoilt(tmp_path, [0], data__max_bad_images=5).identity()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 4])
def test_resumed_equals_straight_with_an_image_left_out(tmp_path, stop):
    changes = {"train__epochs": 2, "train__checkpoint_every_steps": 1, "data__max_bad_images": 2, **STATEFUL}
    runs = {}
    for name, stops in {"straight": [], "resumed": [stop]}.items():
        experiment = spoilt(tmp_path, [2, 3], **changes, name=name)
        for each in stops:
            train(experiment, stop_after_step=each)
        runs[name] = train(experiment)
    straight, resumed = runs["straight"], runs["resumed"]
    assert resumed.position == straight.position
    for (name, a), (_, b) in zip(
        resumed.ema.module.state_dict().items(), straight.ema.module.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.slow
def test_an_empty_picture_takes_no_part_in_the_losses(tmp_path):
    """The loss, its terms and their gradient are those of the other images."""
    worker = Worker(spoilt(tmp_path, [0], data__max_bad_images=1), ALONE, NullTracker())
    images = worker.data.train_loader.dataset
    (bad,) = [x for x in (images[_key(i)] for i in range(6)) if not hasattr(x, "data")]
    good = [images[_key(i)] for i in (1, 2)]
    losses = []
    for samples in (good, [*good, _empty(bad)]):
        batch = Collate(32)(samples)
        losses.append(forward(worker.detector, worker.detector, batch, worker.experiment, ALONE, 0.0).losses)
    torch.testing.assert_close(losses[0].total, losses[1].total, rtol=1e-5, atol=1e-6)
    assert float(losses[0].total.detach()) > 0


def _key(position):
    from mgdet.data.order import SampleKey

    return SampleKey(0, position)


@pytest.mark.slow
def test_a_data_set_that_is_prepared_again_ends_the_training_and_is_refused_afterwards(tmp_path):
    experiment = spoilt(tmp_path, [], train__epochs=2)
    worker = Worker(experiment, ALONE, NullTracker())
    evaluate = worker.evaluations.begin

    def then_somebody_prepares(*about):
        metrics = evaluate(*about)
        generate_shapes(experiment.data.uri, ShapesConfig(train=6, val=3, size=64, seed=1), overwrite=True)
        return metrics

    worker.evaluations.begin = then_somebody_prepares
    with pytest.raises(DataError, match="was prepared again after it was opened"):
        worker.run()
    assert [info.epoch for info in worker.store.committed()] == [1]
    with pytest.raises(ConfigError, match="was trained on other data"):
        Worker(experiment, ALONE, NullTracker())


@pytest.mark.slow
def test_a_restart_before_the_first_checkpoint_does_not_take_up_other_data(tmp_path):
    """Ray starts the workers again while the driver, which compared the data, goes on."""
    experiment = spoilt(tmp_path, [])
    save_run(experiment, experiment, {}, training_data(experiment.data)[1])
    Worker(experiment, ALONE, NullTracker())
    generate_shapes(experiment.data.uri, ShapesConfig(train=6, val=3, size=64, seed=1), overwrite=True)
    with pytest.raises(ConfigError, match="was trained on other data"):
        Worker(experiment, ALONE, NullTracker())


# --- two workers


def work(rank, directory, limit):
    """One of two processes, whose share of the epoch has a bad image; what came of it goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    world = World.current(CPU)
    worker = Worker(spoilt(Path(directory), range(6), data__max_bad_images=limit), world, NullTracker())
    try:
        worker.run()
        said = "finished"
    except DataError as error:
        said = str(error)
    torch.save((said, sorted(worker.data.train_loader.bad.known), worker.position.step), f"{directory}/rank-{rank}.pt")
    dist.destroy_process_group()


def two_workers(directory, limit):
    spoilt(directory, [0, 1, 2, 3, 4, 5])
    return both(work, directory, limit, seconds=300)


@pytest.mark.slow
def test_two_workers_count_together_and_refuse_at_the_same_step(tmp_path):
    """Each meets one bad image a step: after two, neither knows of more than three by itself, which are allowed."""
    (said, known, step), (also, too, same_step) = two_workers(tmp_path, 3)
    assert said == also
    assert "4 images of the training split cannot be read, data.max_bad_images allows 3" in said
    assert known == too
    assert len(known) == 4
    assert step == same_step == 2


@pytest.mark.exhaustive
def test_two_workers_finish_without_any_image(tmp_path):
    """No collective misses a partner when a worker has nothing but bad images."""
    assert two_workers(tmp_path, 6) == [("finished", [0, 1, 2, 3, 4, 5], 3)] * 2
