"""Nodes that are lost with all that lies on them: what a tracker has not got yet survives in the run's storage."""

import itertools
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from pyarrow import fs

from mgdet import storage
from mgdet.errors import ConfigError
from mgdet.runs.launch import train_in_process
from mgdet.runs.record import journal_copies, log_directory, set_old_journal_aside
from mgdet.storage import Location, locate
from mgdet.tracking import Best, CloseReport, DataSet, JournalTracker, NewRun, RunHandle, StoreTracking
from mgdet.tracking import copies as copies_module
from mgdet.tracking.copies import BEGUN, JournalCopies, begin, read_copies
from mgdet.tracking.run import Connection
from mgdet.training.loop import Worker
from tests.faults import note
from tests.forked import CONTEXT
from tests.small import small_experiment

SENT: dict[str, list[tuple[str, int, float]]] = {}
SAID: dict[str, tuple[tuple[DataSet, ...], list[Best]]] = {}


class Memory(StoreTracking):
    """A tracker whose store is this process's memory, and may be away."""

    title: ClassVar[str] = "Memory"
    name: Literal["memory"] = "memory"
    away: bool = False
    send_every_s: float = 0.01
    retry_after_s: tuple[float, ...] = (0.01,)

    def open(self, run: NewRun) -> RunHandle:
        run_id = run.run_id or f"run-{len(SENT)}"
        SENT.setdefault(run_id, [])
        SAID[run_id] = run.data, []
        return RunHandle(run_id)

    def set_best(self, handle: RunHandle, best: Best) -> None:
        SAID[handle.run_id][1].append(best)

    def connect(self, handle: RunHandle) -> Connection:
        if self.away:
            raise ConnectionError("the store is away")
        return _InMemory(SENT[handle.run_id])


class _InMemory(Connection):
    def __init__(self, rows):
        self.rows = rows

    def reached(self):
        return {key: max(s for k, s, _ in self.rows if k == key) for key, _, _ in self.rows}

    def send_metrics(self, points):
        self.rows += [(p.key, p.step, p.value) for p in points]

    def send_artifact(self, path, name):
        pass


def as_object_store(monkeypatch=None):
    """Let store://DIRECTORY be a store that is not of this machine, as far as anybody can tell."""

    def opened(uri):
        return fs.SubTreeFileSystem("/", fs.LocalFileSystem()), uri.removeprefix("store:///")

    if monkeypatch:
        monkeypatch.setattr(storage, "_open", opened)
    else:
        storage._open = opened


@pytest.fixture
def place(monkeypatch, tmp_path) -> Location:
    as_object_store(monkeypatch)
    SENT.clear()
    return locate(f"store://{tmp_path}/bucket/run/journal")


@pytest.fixture(autouse=True)
def _leave_torch_as_it_was():
    yield
    torch.use_deterministic_algorithms(False)


def lost(tracker: JournalTracker) -> None:
    """The tracker's process and machine end without a word."""
    assert tracker._copies
    tracker._copies._over = True
    if tracker._sender:
        tracker._sender._abandoned = True
    shutil.rmtree(tracker._journal.path.parent)


# --- a tracker


def test_what_was_not_sent_is_taken_back_and_sent_once(place, tmp_path):
    handle = Memory().start(NewRun("r"))
    tracker = Memory(away=True)(handle, tmp_path / "first", place)
    for step in range(1, 11):
        tracker.log({"loss": step / 7, "nan": float("nan")}, step)
    tracker.secure()
    before = (tmp_path / "first/metrics.jsonl").read_bytes()
    lost(tracker)
    assert SENT[handle.run_id] == []

    tracker = Memory()(handle, tmp_path / "second", place)
    assert (tmp_path / "second/metrics.jsonl").read_bytes() == before
    for step in range(8, 14):  # from a checkpoint of step 7
        tracker.log({"loss": -step}, step)
    assert tracker.close() == CloseReport(sent=23)
    found = [(s, v) for k, s, v in SENT[handle.run_id] if k == "loss"]
    assert found == [*((s, s / 7) for s in range(1, 11)), *((s, -s) for s in range(11, 14))]
    assert read_copies(place) == (tmp_path / "second/metrics.jsonl").read_bytes()
    lines = [json.loads(line) for line in read_copies(place).splitlines()]
    assert [line["step"] for line in lines if line.get("replay")] == [8, 9, 10]


def test_the_last_copy_is_made_at_the_end_and_a_further_start_sends_the_rest(place, tmp_path):
    tracker = Memory(away=True, flush_timeout_s=0)(RunHandle("r"), tmp_path / "first", place)
    tracker.log({"a": 1.0}, 1)
    assert tracker.close().unsent == 1
    SENT["r"] = []
    Memory().close_child(RunHandle("r"), "KILLED", {}, tmp_path / "another machine", place)
    assert SENT["r"] == [("a", 1, 1.0)]


def test_the_journal_is_cut_into_parts_of_which_only_the_last_is_written_again(place, tmp_path, monkeypatch):
    monkeypatch.setattr(copies_module, "PART_BYTES", 300)
    written: list[str] = []
    replace = Location.replace
    monkeypatch.setattr(Location, "replace", lambda self, data: (written.append(self.name), replace(self, data))[1])
    tracker = JournalTracker(tmp_path / "a", copies=place)
    for step in range(30):
        tracker.log({"loss": step}, step)
        tracker.secure()
    tracker.close()
    assert not tracker._copies._thread.is_alive(), "nothing is written later, over the copies of another tracker"
    whole = (tmp_path / "a/metrics.jsonl").read_bytes()
    assert read_copies(place) == whole
    sizes = [size for name, size in sorted(place.children().items()) if name.startswith("part-")]
    assert len(sizes) > 5
    assert all(300 < size < 450 for size in sizes[:-1])
    assert written == sorted(written)
    for where in ("a", "b"):  # on the same machine and on another one: nothing that is there is written again
        written.clear()
        tracker = JournalTracker(tmp_path / where, copies=place)
        assert (tmp_path / where / "metrics.jsonl").read_bytes() == whole
        tracker.log({"loss": 1.0}, 40 + ord(where))
        tracker.close()
        whole = (tmp_path / where / "metrics.jsonl").read_bytes()
        assert len(written) <= 2
        assert read_copies(place) == whole


def test_any_history_of_machines_loses_nothing_that_was_copied(place, tmp_path, monkeypatch):
    """Machines take turns, come back with what they had, are lost, or end well; the oracle is a set of lines."""
    monkeypatch.setattr(copies_module, "PART_BYTES", 200)
    random.seed(0)
    known: set[bytes] = set()
    step = 0
    for _ in range(40):
        directory = tmp_path / random.choice("abc")
        tracker = JournalTracker(directory, copies=place)
        assert known <= set((directory / "metrics.jsonl").read_bytes().splitlines() if known else [])
        for _ in range(random.randrange(4)):
            tracker.log({"loss": step / 3}, step)
            step += 1
        end = random.choice(["lost", "lost after a checkpoint", "closed", "killed"])
        if end == "closed":
            tracker.close()
        elif end == "lost after a checkpoint":
            tracker.secure()
        copied = set(read_copies(place).splitlines())
        assert known <= copied
        known = copied
        if end.startswith("lost") and directory.exists():
            lost(tracker)
        tracker._copies._over = True
    assert len(known) > 20


def test_the_journal_of_a_run_that_had_this_place_before_is_never_sent(place, tmp_path):
    begin(place)
    tracker = JournalTracker(tmp_path / "machine", copies=place)
    tracker.log({"loss": 1.0}, 1)
    tracker.close()
    begin(place)  # the run never reached a checkpoint, and is replaced by one that begins on another machine
    assert list(place.children()) == [BEGUN]
    SENT["new"] = []
    tracker = Memory()(RunHandle("new"), tmp_path / "machine", place)
    tracker.log({"loss": 2.0}, 1)
    tracker.close()
    assert SENT["new"] == [("loss", 1, 2.0)]
    assert len(list((tmp_path / "machine").glob("metrics-*.jsonl"))) == 1


def test_files_that_are_no_parts_are_left_alone(place, tmp_path):
    JournalTracker(tmp_path / "a", copies=place).close()
    for name in ("part-0.jsonl", "part-00000.jsonl.tmp", "x", "part-00000.parquet"):
        (place / name).write(b"{}\n")
    tracker = JournalTracker(tmp_path / "b", copies=place)
    tracker.log({"a": 1.0}, 1)
    tracker.close()
    begin(place)
    assert len(place.children()) == 5
    assert read_copies(place) == b""


# --- a storage that fails


def test_a_step_never_waits_for_a_storage_that_hangs_and_the_end_waits_for_a_bounded_time(
    place, tmp_path, monkeypatch, caplog
):
    hanging, answers = threading.Event(), threading.Event()
    replace = Location.replace

    def hangs(self, data):
        hanging.set()
        answers.wait()
        replace(self, data)

    copies = JournalCopies(tmp_path / "a/metrics.jsonl", place, every_s=0.01)
    monkeypatch.setattr(Location, "replace", hangs)
    tracker = JournalTracker(tmp_path / "a")
    tracker._copies = copies
    copies.restore()
    for step in range(100):
        tracker.log({"loss": step}, step)
    assert hanging.wait(60)
    copies.secure(0.05)
    copies.secure(1e9)  # late already: it is not waited for again
    copies.finish(0.05)
    assert sum("The storage is slow" in r.getMessage() for r in caplog.records) == 2
    assert len((tmp_path / "a/metrics.jsonl").read_text().splitlines()) == 100
    answers.set()
    copies._thread.join(60)
    assert not copies._thread.is_alive()
    copied = read_copies(place)  # as much as there was when the storage began to hang
    assert copied
    assert (tmp_path / "a/metrics.jsonl").read_bytes().startswith(copied)


def test_a_storage_that_cannot_be_written_costs_one_warning_and_gets_the_rest_later(
    place, tmp_path, monkeypatch, caplog
):
    tracker = JournalTracker(tmp_path / "a", copies=place)
    with monkeypatch.context() as patch:
        patch.setattr(Location, "replace", refuses)
        for step in range(3):
            tracker.log({"loss": step}, step)
            tracker.secure()
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        f"Metrics are not copied to {place} (no). Training goes on; it is tried again."
    ]
    assert read_copies(place) == b""
    tracker.close()
    assert len(read_copies(place).splitlines()) == 3


def test_copies_that_cannot_be_read_are_not_written_over(place, tmp_path, monkeypatch, caplog):
    tracker = JournalTracker(tmp_path / "a", copies=place)
    tracker.log({"loss": 1.0}, 1)
    tracker.close()
    kept = read_copies(place)
    SENT["r"] = []
    monkeypatch.setattr(copies_module, "PAUSES_S", (0.0, 0.0))
    with monkeypatch.context() as patch:
        patch.setattr(Location, "read_bytes", refuses)
        tracker = Memory()(RunHandle("r"), tmp_path / "b", place)
    tracker.log({"loss": 2.0}, 2)
    tracker.secure()
    assert tracker.close().unsent == 1
    assert (read_copies(place), SENT["r"]) == (kept, [])
    assert caplog.text.count("cannot be read") == 1
    Memory()(RunHandle("r"), tmp_path / "b", place).close()
    assert [json.loads(line)["step"] for line in read_copies(place).splitlines()] == [1, 2]
    assert SENT["r"] == [("loss", 1, 1.0), ("loss", 2, 2.0)]


def test_a_storage_that_is_read_at_the_third_attempt(place, tmp_path, monkeypatch):
    monkeypatch.setattr(copies_module, "PAUSES_S", (0.0, 0.0))
    failures = iter([True, True, False])
    children = Location.children
    monkeypatch.setattr(Location, "children", lambda self: refuses(self) if next(failures, False) else children(self))
    copies = JournalCopies(tmp_path / "a/metrics.jsonl", place)
    assert copies.restore()
    copies.finish()


def refuses(self, *arguments):
    raise OSError("no")


# --- a run


def remote_experiment(directory: Path, **changes):
    e = small_experiment(
        directory, train__log_every=1, train__evaluate_every=2, train__checkpoint_every_steps=2, **changes
    )
    return e.model_copy(update={"storage": f"store://{directory}/bucket"})


class Killed(BaseException):
    pass


def before_step(monkeypatch, number: int, action: Callable[[Worker], None]) -> None:
    step = Worker._step

    def with_action(self, group, sums):
        if self.position.step + 1 == number:
            action(self)
        return step(self, group, sums)

    monkeypatch.setattr(Worker, "_step", with_action)


@pytest.mark.slow
def test_the_node_of_a_run_is_lost_before_its_tracker_had_anything(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    e = remote_experiment(tmp_path)
    away, back = (e.model_copy(update={"tracking": Memory(away=away)}) for away in (True, False))

    def killed(worker):
        patch.setattr(JournalTracker, "close", lost)
        raise Killed

    with monkeypatch.context() as patch:
        before_step(patch, 6, killed)
        with pytest.raises(Killed):
            train_in_process(away)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    _, handle = train_in_process(back)
    journal = [json.loads(line) for line in read_copies(journal_copies(e)).splitlines()]
    times = [r["time"] for r in journal if "train/loss" in r["metrics"]]
    silence = max(b - a for a, b in itertools.pairwise(times))
    # Step 5 came after the last checkpoint, and its record was lost with the node
    note("node lost while MLflow is away, storage remote", steps_repeated=1, seconds=silence)
    # `epoch` stands in the line of the last step and in that of its evaluation
    recorded = {(k, r["step"], v) for r in journal if not r.get("replay") for k, v in r["metrics"].items()}
    assert sorted(SENT[handle.run_id]) == sorted(recorded)
    assert [s for k, s, _ in SENT[handle.run_id] if k == "train/loss"] == list(range(1, 7))

    splits, (best,) = SAID[handle.run_id]
    assert [(s.name, s.use, s.uri, s.counts["images"]) for s in splits] == [
        ("shapes/train", "training", e.data.uri, 6),
        ("shapes/val", "validation", e.data.uri, 3),
    ]
    assert splits[0].digest != splits[1].digest
    assert (best.step, best.epoch, best.data) == (6, 2, splits[1])
    assert best.checkpoint == f"{e.run_uri}/checkpoints/step-00000006.pt"
    assert {(key, 6, value) for key, value in best.metrics.items()} <= recorded

    # On a third machine, which has nothing: a finished run is not trained again, and a tracker that lost it gets all
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    SENT[handle.run_id] = []
    train_in_process(back)
    assert sorted(SENT[handle.run_id]) == sorted(recorded)


def test_a_run_that_is_replaced_begins_with_an_empty_journal(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    e = remote_experiment(tmp_path)
    copies = journal_copies(e)
    for _ in range(2):
        set_old_journal_aside(e)
        tracker = JournalTracker(log_directory(e), copies=copies)
        tracker.log({"loss": 1.0}, 1)
        tracker.close()
        assert len(read_copies(copies).splitlines()) == 1
    assert journal_copies(small_experiment(tmp_path)) is None
    monkeypatch.setattr(Location, "mkdir", refuses)
    with pytest.raises(ConfigError, match=r"storage = 'store:.*cannot be used: no"):
        set_old_journal_aside(e)


def log_and_be_killed(directory: Path) -> None:
    as_object_store()
    tracker = JournalTracker(directory / "first", copies=locate(f"store://{directory}/bucket/run/journal"))
    for step in range(100):
        tracker.log({"loss": step}, step)
    tracker.secure()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_the_copies_of_a_process_that_is_killed(place, tmp_path):
    process = CONTEXT.Process(target=log_and_be_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    shutil.rmtree(tmp_path / "first")
    SENT["r"] = []
    assert Memory()(RunHandle("r"), tmp_path / "second", place).close().sent == 100
    assert SENT["r"] == [("loss", s, float(s)) for s in range(100)]
