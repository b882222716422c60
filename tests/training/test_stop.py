"""A training that is asked to stop, and one whose ranks change in mid-epoch. In one process."""

import os
import signal

import pytest
import torch

from mgdet.cluster.train import run
from mgdet.errors import Interrupted
from mgdet.runs.launch import prepare
from mgdet.runs.stop import StopRequest
from mgdet.tracking import NullTracker
from mgdet.training.checkpoint import CheckpointStore
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.position import Position
from tests.faults import same, weights
from tests.small import small_experiment

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture
def experiment(tmp_path):
    return prepare(small_experiment(tmp_path, train__log_every=1), cpus=1, gpus=0)[0]


def asking(at):
    """Asks for a stop at its call number `at`."""
    calls = []

    def stop_asked():
        calls.append(1)
        return len(calls) == at

    return stop_asked


def steps(experiment):
    return [c.step for c in CheckpointStore(experiment.run_uri).committed()]


@pytest.mark.slow
def test_stopped_on_request_it_goes_on_at_that_step(experiment):
    straight = experiment.model_copy(update={"name": "straight"})
    Worker(straight, CPU, NullTracker()).run()
    with pytest.raises(Interrupted, match="after step 2, with a checkpoint"):
        Worker(experiment, CPU, NullTracker(), stop_asked=asking(2)).run()
    assert steps(experiment) == [2]
    worker = Worker(experiment, CPU, NullTracker())
    assert worker.position.step == 2
    worker.run()
    assert same(weights(experiment), weights(straight))


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_of_the_last_step(tmp_path, monkeypatch):
    """Without Ray, where the process trains itself."""
    e = small_experiment(tmp_path, train__log_every=1)
    step = Worker._step

    def terminated(self, group, sums):
        if self.position.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, group, sums)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Worker, "_step", terminated)
    with pytest.raises(Interrupted, match="after step 2"):
        run(e)
    assert signal.getsignal(signal.SIGTERM) == before
    monkeypatch.setattr(Worker, "_step", step)
    summary, _ = run(e)
    assert summary.epoch >= 1


@pytest.mark.slow
def test_the_stop_file(tmp_path):
    (tmp_path / "run").mkdir()
    stop = StopRequest(str(tmp_path / "run"))
    assert not stop.exists()
    stop.remove()
    stop.create()
    assert stop.exists()
    stop.remove()
    assert not stop.exists()
    StopRequest(str(tmp_path / "nowhere")).create()  # never raises


@pytest.mark.slow
def test_a_position_for_other_ranks():
    """What was done with the old ranks is kept as a segment, and the count starts anew."""
    place = Position(epoch=3, micro_step=5, step=40, world=2, batch_size=4)
    assert place.on(2, 4) == place
    moved = place.on(1, 8)
    assert (moved.done, moved.micro_step, moved.world, moved.batch_size) == ([[2, 4, 5]], 0, 1, 8)
    assert moved.on(4, 2).done == [[2, 4, 5]], "nothing was done with one rank"
    fresh = Position().on(2, 4)
    assert (fresh.world, fresh.done) == (2, [])


@pytest.mark.slow
def test_ranks_that_change_in_mid_epoch_still_train_on_each_image_once(tmp_path):
    """One rank, then another batch size (which splits the epoch alike), then the first again."""
    e = prepare(small_experiment(tmp_path, train__log_every=1, data__generate__train=13), cpus=1, gpus=0)[0]
    seen = []
    step = Worker._step

    def noted(self, group, sums):
        seen.extend(int(p) for b in group for p in b.positions)
        return step(self, group, sums)

    def part(batch_size, stop_after):
        train = e.train.model_copy(update={"batch_size": batch_size, "epochs": 1})
        stop_asked = asking(stop_after) if stop_after else (lambda: False)
        worker = Worker(e.model_copy(update={"train": train}), CPU, NullTracker(), stop_asked=stop_asked)
        worker._step = noted.__get__(worker)
        try:
            worker.run()
        except Interrupted:
            assert 0 < worker._epochs_done < 1
        return worker

    part(2, 2)
    part(3, 1)
    last = part(2, None)
    assert sorted(seen) == list(range(13))
    assert last.position.epoch == 1
    assert last.position.done == []
