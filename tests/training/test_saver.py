"""A checkpoint is written beside the training, from a copy, and everything that relies on it waits for it."""

import errno
import hashlib
import io
import threading
from concurrent.futures import Future

import pytest
import torch

from mgdet.errors import Interrupted
from mgdet.runs.launch import prepare
from mgdet.storage import Location
from mgdet.tracking import NullTracker
from mgdet.training import checkpoint, loop, saver
from mgdet.training.checkpoint import CheckpointStore, tensors_in
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.saver import Saver, on_host
from tests.faults import same, weights
from tests.small import STATEFUL, small_experiment

CPU = World(0, 1, torch.device("cpu"))
ABOUT = {"epoch": 0, "metrics": {}}


def state(value):
    return {"model": {"w": torch.full((3, 2), float(value))}, "position": {}}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(str(tmp_path))


@pytest.fixture
def gate(monkeypatch):
    """Set: checkpoints are written; clear: they wait before their first byte."""
    gate, commit = threading.Event(), CheckpointStore._commit
    monkeypatch.setattr(CheckpointStore, "_commit", lambda *args: (gate.wait(60), commit(*args))[1])
    yield gate
    gate.set()


def test_what_is_written_is_the_state_when_it_was_handed_over(store, gate):
    writer, tensors = Saver(store), state(1)
    writer.save(tensors, step=1, **ABOUT)
    tensors["model"]["w"].fill_(2)
    assert store.committed() == [], "the training goes on before anything is written"
    gate.set()
    assert writer.settle() == ""
    assert store.latest()[1]["model"]["w"].unique().tolist() == [1.0]


def test_one_checkpoint_is_on_its_way_and_the_next_waits_for_it(store, gate):
    writer, tensors = Saver(store), state(1)
    writer.save(tensors, step=1, **ABOUT)
    kept = writer._kept["model"]["w"]
    second = threading.Thread(target=writer.save, args=(state(2),), kwargs={"step": 2, **ABOUT})
    second.start()
    second.join(0.05)
    assert second.is_alive()
    assert kept.unique().tolist() == [1.0], "the copy is not written over while it is read"
    gate.set()
    second.join(60)
    writer.settle()
    assert [i.step for i in store.committed()] == [1, 2]
    assert writer._kept["model"]["w"] is kept, "the buffers are kept"
    assert [store.load(i)["model"]["w"].max().item() for i in store.committed()] == [1.0, 2.0]


@pytest.mark.slow
def test_the_copy_is_the_original_to_the_byte(tmp_path):
    """Of a state with everything that a training can carry along, in another memory layout than the usual."""
    e = prepare(small_experiment(tmp_path, train__channels_last=True, train__epochs=1, **STATEFUL), 1, 0)[0]
    worker = Worker(e, CPU, NullTracker())
    worker.run()

    def as_file(content):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    original = worker.state_dict()
    copied = on_host(original, on_host(original))
    assert as_file(copied) == as_file(original)
    assert len(list(tensors_in(copied))) > 4 * len(worker.detector.state_dict()), "optimizer and average too"
    (info,) = worker.store.committed()
    data = worker.store.path(info).read_bytes()
    assert (info.size, info.sha256) == (len(data), hashlib.sha256(data).hexdigest()), "hashed as it was written"


def test_buffers_of_another_shape_or_layout_are_not_written_over():
    kept = on_host({"a": torch.zeros(2), "b": [torch.zeros(2, 3)], "c": 1})
    new = {"a": torch.ones(3), "b": (torch.ones(3, 2).t(), torch.ones(1)), "c": torch.ones(1)}
    copied = on_host(new, kept)
    assert torch.equal(copied["a"], new["a"])
    assert isinstance(copied["b"], tuple)
    assert copied["b"][0].stride() == new["b"][0].stride()
    assert kept["b"][0].max() == 0


def test_a_failed_checkpoint_is_told_and_the_next_is_written(store, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: None)
    writer = Saver(store)
    with monkeypatch.context() as patch:

        def full(self):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(Location, "open_output", full)
        writer.save(state(1), step=1, **ABOUT)
        assert "step 1 (0 MiB) not written" in writer.settle()
    assert "training goes on, the newest checkpoint stays the one before" in caplog.text
    writer.save(state(2), step=2, **ABOUT)
    assert writer.settle() == ""
    assert [i.step for i in store.committed()] == [2]


def test_an_error_in_mid_file_leaves_no_part_and_is_the_storages_own(store, monkeypatch):
    """torch would hide it behind one of its own."""
    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: None)
    output = Location.open_output

    class Breaks:
        def __init__(self, stream):
            self.stream, self.writes = stream, 0

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.stream.close()

        def write(self, data):
            self.writes += 1
            if self.writes == 3:
                raise OSError(errno.EIO, "Input/output error")
            self.stream.write(data)

    monkeypatch.setattr(Location, "open_output", lambda self: Breaks(output(self)))
    with pytest.raises(checkpoint.CheckpointError, match="Input/output error"):
        store.save(state(1), step=1, **ABOUT)
    assert store.directory.children() == {}


def test_what_is_no_matter_of_the_storage_ends_the_training(store):
    writer = Saver(store, secure=lambda: 1 / 0)
    writer.save(state(1), step=1, **ABOUT)
    with pytest.raises(ZeroDivisionError):
        writer.save(state(2), step=2, **ABOUT)


def test_a_training_that_waits_for_its_storage_says_so_once(store, monkeypatch, caplog):
    monkeypatch.setattr(saver, "TOLERATED_WAIT_S", -1)
    writer = Saver(store)
    for step in (1, 2, 3):
        writer.save(state(step), step=step, **ABOUT)
    writer.settle()
    assert caplog.text.count("train.checkpoint_every_steps") == 1


@pytest.mark.parametrize(
    ("stalled", "took", "pause"), [(0.0, 0.0, 10), (0.15, 0.5, 10), (0.4, 0.5, 20), (0.15, 3.0, 30), (1.0, 26.0, 260)]
)
def test_checkpoints_by_time_cost_little_of_it(store, monkeypatch, stalled, took, pause):
    now = [1000.0]
    monkeypatch.setattr(saver.time, "monotonic", lambda: now[0])
    writer = Saver(store)
    assert not writer.due(10)
    now[0] += 10
    assert writer.due(10)
    writer._stalled, writer._took = stalled, took
    now[0] = 1000 + pause - 0.1
    assert not writer.due(10)
    now[0] = 1000 + pause + 0.1
    assert writer.due(10)
    writer.outcome = Future()
    assert not writer.due(10), "one at a time"


@pytest.mark.slow
def test_a_training_saves_by_time_within_an_epoch(tmp_path, monkeypatch):
    """At each question here; the weights are those of a training that saves at its end."""
    monkeypatch.setattr(Saver, "due", lambda self, every_s: self.settle() == "")
    saved, save = [], Worker._save

    def noted(self, *args, **how):
        saved.append(self.position.step)
        save(self, *args, **how)

    monkeypatch.setattr(Worker, "_save", noted)
    trained = []
    for every_s in (10, None):
        changes = {"train__epochs": 1, "train__log_every": 1, "data__generate__train": 12}
        e = small_experiment(tmp_path, name=f"{every_s}", train__checkpoint_every_s=every_s, **changes)
        Worker(prepare(e, 1, 0)[0], CPU, NullTracker()).run()
        trained.append(weights(e))
    assert saved == [1, 2, 3, 4, 5, 6, 6]
    assert same(*trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a peer is gone"),
        pytest.param(Interrupted("asked"), marks=pytest.mark.exhaustive),
        pytest.param(KeyboardInterrupt(), marks=pytest.mark.exhaustive),
    ],
)
def test_a_training_that_ends_waits_for_the_checkpoint_on_its_way(tmp_path, monkeypatch, gate, error):
    e = prepare(small_experiment(tmp_path, train__checkpoint_every_steps=1), 1, 0)[0]
    worker = Worker(e, CPU, NullTracker())
    step = worker._step

    def ends(group, sums):
        if worker.position.step == 1:
            threading.Timer(0.05, gate.set).start()
            raise error
        return step(group, sums)

    worker._step = ends
    with pytest.raises(type(error)):
        worker.run()
    assert [i.step for i in worker.store.committed()] == [1]


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_a_storage_that_hangs(tmp_path, monkeypatch, gate):
    monkeypatch.setattr(loop, "GRACE_S", 0.01)
    e = prepare(small_experiment(tmp_path, train__checkpoint_every_steps=1), 1, 0)[0]
    worker = Worker(e, CPU, NullTracker())
    step = worker._step

    def ends(group, sums):
        if worker.position.step == 1:
            raise KeyboardInterrupt
        return step(group, sums)

    worker._step = ends
    with pytest.raises(KeyboardInterrupt):
        worker.run()
    assert worker.store.committed() == []
