"""A process whose run was taken over leaves everything to the new owner: checkpoints, records, journal, tracker."""

import json
import math
import pickle
import threading
from pathlib import Path

import pytest
import torch

from mgdet import lease
from mgdet.errors import OwnedError
from mgdet.lease import OWNER, owned
from mgdet.records import seal, unseal
from mgdet.runs import launch
from mgdet.runs.launch import worker_tracker
from mgdet.storage import Location, locate
from mgdet.sweep.trials import Trial, TrialStore
from mgdet.tracking import RunHandle, Status
from mgdet.tracking.copies import read_copies
from mgdet.training.checkpoint import CheckpointStore
from tests import test_copies
from tests.small import small_experiment

ENDED: list[tuple[str, Status]] = []


class Memory(test_copies.Memory):
    """Notes how runs were ended."""

    def finish(self, handle: RunHandle, status: Status) -> None:
        ENDED.append((handle.run_id, status))


@pytest.fixture(autouse=True)
def _anew():
    ENDED.clear()
    test_copies.SENT.clear()


def take_over(file: Location, generation: int = 2) -> Location:
    """Another process owns it from now on."""
    data = next(data for name, data in lease.claims(file).items() if "f" * 32 not in name)
    other = {**unseal(data), "token": "f" * 32, "generation": generation, "pid": 7, "host": "other"}
    theirs = file.with_name(f"owner-{'f' * 32}.json")
    theirs.write(seal(other))
    return theirs


@pytest.fixture
def owner(tmp_path):
    with owned(locate(tmp_path / "r") / OWNER, "the run r") as ownership:
        yield ownership


def test_whoever_writes_for_the_owner_learns_that_it_was_taken_over(owner):
    owner.require()
    worker = pickle.loads(pickle.dumps(owner))  # what Ray does with it
    assert (worker._seen, worker.token) == (-math.inf, owner.token), "it looks for itself, by its own clock"
    assert not worker.lost()
    worker.require()
    theirs = take_over(owner.file)
    assert not worker.lost(seen_within_s=1e9), "an answer of before counts where it may"
    with pytest.raises(OwnedError, match="the run r was taken over by process 7 on 'other'"):
        worker.require()
    theirs.delete()
    assert worker.lost(), "for ever"


def test_one_that_is_followed_late_is_no_new_owner(owner):
    """It was suspended while it was followed, and wrote its file again when it went on."""
    take_over(owner.file, generation=0).write(b"?")
    owner.require()
    take_over(owner.file, generation=0)
    owner.require()


def test_a_storage_that_cannot_be_read_is_no_new_owner(owner, monkeypatch):
    def fails(self):
        raise OSError("away")

    monkeypatch.setattr(Location, "read_bytes", fails)
    owner.require()


def test_no_checkpoint_is_written_or_deleted(owner, tmp_path):
    store = CheckpointStore(str(tmp_path / "r"), owner=owner)
    for step in (1, 2):
        store.save({"model": {}}, step=step, epoch=0, metrics={})
    before = {p.name: p.read_bytes() for p in store_files(store)}
    take_over(owner.file)
    with pytest.raises(OwnedError):
        store.save({"model": {}}, step=3, epoch=0, metrics={})
    assert {p.name: p.read_bytes() for p in store_files(store)} == before


def store_files(store: CheckpointStore) -> list[Path]:
    return sorted(Path(store.directory.path).iterdir())


def test_a_checkpoint_that_was_being_written_does_not_count(owner, tmp_path, monkeypatch):
    """The process is suspended in the middle of it, say; nothing of it is committed, and nothing deleted."""
    store = CheckpointStore(str(tmp_path / "r"), owner=owner)
    for step in (1, 2):
        store.save({"model": {}}, step=step, epoch=0, metrics={})

    def suspended(state, stream, save=torch.save):
        save(state, stream)
        take_over(owner.file)

    monkeypatch.setattr(torch, "save", suspended)
    with pytest.raises(OwnedError):
        store.save({"model": {}}, step=3, epoch=0, metrics={})
    assert [c.step for c in CheckpointStore(str(tmp_path / "r")).committed()] == [1, 2]


def test_no_record_of_a_trial_is_written(owner, tmp_path):
    store = TrialStore(str(tmp_path / "s"), "s", owner)
    trial = Trial(number=0, name="s-000", params={}, settings={}, epochs=2)
    store.save(trial)
    take_over(owner.file)
    with pytest.raises(OwnedError):
        store.save(trial.model_copy(update={"state": "failed"}))
    assert TrialStore(str(tmp_path / "s"), "s").trials[0].state == trial.state


def test_nothing_is_logged_sent_or_copied(owner, tmp_path):
    handle, copies = RunHandle("r"), locate(tmp_path / "r" / "journal")
    test_copies.SENT["r"] = []
    tracker = Memory(send_every_s=60)(handle, tmp_path / "journal", copies, owner)
    tracker.log({"loss": 1.0}, 1)
    tracker.secure()
    tracker.log({"loss": 2.0}, 2)
    take_over(owner.file)
    report = tracker.close()
    tracker.log({"loss": 3.0}, 3)
    assert report.sent == 0
    assert test_copies.SENT["r"] == []
    assert [json.loads(line)["step"] for line in read_copies(copies).splitlines()] == [1]
    assert [p.step for p in tracker.points()] == [1, 2]


@pytest.mark.parametrize("ends_by", [KeyboardInterrupt, RuntimeError])
def test_the_run_in_the_tracker_is_left_to_the_new_owner(tmp_path, monkeypatch, caplog, ends_by):
    """Neither KILLED nor FAILED: the new owner is using that run."""
    e = small_experiment(tmp_path).model_copy(update={"tracking": Memory(send_every_s=60)})
    monkeypatch.setattr(lease, "BEAT_S", 1e9 if ends_by is RuntimeError else 0.01)
    interrupted = threading.Event()
    monkeypatch.setattr(lease, "interrupt", interrupted.set)

    def execute(experiment, handle, ownership):
        tracker = worker_tracker(experiment, handle, ownership)
        try:
            tracker.log({"loss": 1.0}, 1)
            take_over(ownership.file)
            if ends_by is KeyboardInterrupt:
                assert interrupted.wait(60)
            raise ends_by
        finally:
            tracker.close()

    resolved, reasons = launch.prepare(e, 1, 0)
    with pytest.raises(OwnedError if ends_by is KeyboardInterrupt else ends_by):
        launch.launch(e, resolved, reasons, execute)
    assert ENDED == []
    assert test_copies.SENT == {"run-0": []}
    (data,) = lease.claims(locate(e.run_uri) / OWNER).values()
    assert unseal(data)["pid"] == 7, "its file is not removed"


def test_the_run_of_an_owner_is_ended(tmp_path):
    e = small_experiment(tmp_path).model_copy(update={"tracking": Memory()})

    def execute(experiment, handle, ownership):
        raise KeyboardInterrupt

    resolved, reasons = launch.prepare(e, 1, 0)
    with pytest.raises(KeyboardInterrupt):
        launch.launch(e, resolved, reasons, execute)
    assert ENDED == [("run-0", "KILLED")]
