"""Readers of a run whose training deletes checkpoints meanwhile."""

import itertools

import pytest
import torch

from mgdet.errors import CheckpointError
from mgdet.inference.load import _read, load_detector
from mgdet.training.checkpoint import LOOKS, CheckpointStore, weights_file
from tests.forked import Job
from tests.small import small_experiment


def save(store, step, ap):
    state = {"model": {"w": torch.full((2,), float(step))}, "position": {}}
    return store.save(state, step=step, epoch=step, metrics={"val/AP": ap})


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(str(tmp_path))
    save(store, 1, 0.1)
    return store


def going_on(store, monkeypatch, times):
    """Between the looks of a reader and its reading, `times` times: three better checkpoints, so the best one goes."""
    left, steps, best = [times], itertools.count(2), CheckpointStore.best

    def overtaken(reader):
        found = best(reader)
        if reader is not store and left[0]:
            left[0] -= 1
            for step in itertools.islice(steps, 3):
                save(store, step, 0.1 + step / 1000)
        return found

    monkeypatch.setattr(CheckpointStore, "best", overtaken)


@pytest.mark.parametrize("read", ["predict and evaluate", "model.weights"])
def test_the_next_best_is_taken_where_the_best_one_was_deleted_meanwhile(store, tmp_path, monkeypatch, read, caplog):
    going_on(store, monkeypatch, times=6)
    if read == "model.weights":
        path = weights_file(str(tmp_path))
    else:
        path, state = _read(str(tmp_path))
        assert float(state["model"]["w"][0]) == int(path[-11:-3])
    assert path.endswith(store.best().file)
    assert "passed over" not in caplog.text


def test_a_training_that_is_always_faster_is_given_up(store, tmp_path, monkeypatch):
    going_on(store, monkeypatch, times=1000)
    looks = []
    with pytest.raises(CheckpointError, match="cannot be read"):
        CheckpointStore(str(tmp_path)).read_best(lambda info: looks.append(info) or store.load(info))
    assert len(looks) == LOOKS


def test_a_damaged_best_one_is_no_matter_of_time(store, tmp_path):
    info = store.best()
    path = tmp_path / "checkpoints" / info.file
    path.write_bytes(b"\0" * info.size)
    with pytest.raises(CheckpointError, match="damaged"):
        store.read_best(store.load)


@pytest.mark.exhaustive
def test_a_detector_is_loaded_again_and_again_while_its_training_goes_on(tmp_path):
    """For real: a process trains, saves every step and keeps the best; every load gives a whole detector."""
    experiment = small_experiment(tmp_path, train__epochs=30, train__checkpoint_every_steps=1)
    config = tmp_path / "config.yaml"
    config.write_text(experiment.to_yaml())
    job, loads = Job("train", [config], tmp_path / "log", directory=tmp_path), 0
    try:
        while job.poll() is None:
            if CheckpointStore(experiment.run_uri).best() is not None:
                loads += load_detector(experiment.run_uri).epoch > 0
    finally:
        job.kill()
    assert job.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert loads >= 3
