"""A part that a training leans on fails, for real: what survives, and what it costs. In one process, without Ray.

Each test notes what the fault cost: benchmarks/faults.py makes the table of docs/operations.md of it. Faults that need
a cluster are in tests/cluster/test_faults.py. The integration tier has MLflow that goes away, a damaged checkpoint, and
storage that cannot be written or read; their variants are in the exhaustive tier.
"""

import errno
import itertools
import logging
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from mgdet import bounded
from mgdet.cluster.train import run
from mgdet.errors import CheckpointError
from mgdet.storage import Location
from mgdet.tracking import Mlflow
from mgdet.tracking.journal import Journal
from mgdet.training import checkpoint
from mgdet.training.checkpoint import ATTEMPTS, LAST_ATTEMPTS, CheckpointStore, UnsavedError
from mgdet.training.loop import Worker
from tests.faults import cost, disk_of, note, same, step_records, weights
from tests.small import small_experiment
from tests.tracking_servers import Gate, Server, wait_for

SLOW, EXHAUSTIVE = pytest.mark.slow, pytest.mark.exhaustive

STEPS = 24
SENDS_SOON = {"send_every_s": 0.05, "retry_after_s": (0.1, 0.5), "request_retries": 0, "request_timeout_s": 60}


@pytest.fixture(autouse=True)
def _leave_torch_as_it_was():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def limits(monkeypatch):
    """Sets how long one request to MLflow may take; mgdet leaves what is in the environment as it is."""

    def set_to(seconds):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(seconds))
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

    set_to(60)
    return set_to


def experiment(directory, name="small", **changes):
    """24 steps in 4 epochs, each in the journal."""
    changes = {"train__epochs": 4, "data__generate__train": 12, "train__log_every": 1, **changes}
    return small_experiment(directory, name=name, **{"train__evaluate_every": 4, **changes})


def tracked(directory, uri, **settings):
    return experiment(directory, tracking={"uri": uri, "pictures": True, **SENDS_SOON, **settings})


def journal(e):
    return Path(e.run_uri) / "metrics.jsonl"


def before_step(monkeypatch, actions):
    """Call `actions[n]()` before optimizer step `n`, `actions[None](n)` before each; what was saved is written then."""
    step = Worker._step

    def with_actions(self, group, sums):
        number = self.position.step + 1
        self.settle()
        for action in (actions.get(number), actions.get(None) and (lambda: actions[None](number))):
            if action:
                action()
        return step(self, group, sums)

    monkeypatch.setattr(Worker, "_step", with_actions)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of a training that nothing happens to."""
    e = experiment(tmp_path_factory.mktemp("undisturbed"))
    run(e)
    return weights(e)


def sent_steps(uri, handle, key="train/loss"):
    from mlflow import MlflowClient

    return [m.step for m in MlflowClient(tracking_uri=uri).get_metric_history(handle.run_id, key)]


def assert_all_sent(e, uri, handle):
    """MLflow has every record of the journal once: step, time and value."""
    from mlflow import MlflowClient

    history = MlflowClient(tracking_uri=uri).get_metric_history(handle.run_id, "train/loss")
    found = [(m.step, m.timestamp, m.value) for m in history]
    records = step_records(journal(e))
    assert found == [(r["step"], int(r["time"] * 1000), r["metrics"]["train/loss"]) for r in records]
    assert [step for step, _, _ in found] == list(range(1, STEPS + 1))


# --- MLflow


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def gate(server):
    server.start()
    gate = Gate(server.port)
    yield gate
    gate.close()


@pytest.mark.slow
def test_mlflow_is_down_at_the_start(tmp_path, server, limits, monkeypatch, caplog):
    took = []
    start = Mlflow.start

    def timed(*args):
        import mlflow  # noqa: F401  # its seconds are no fault

        begin = time.monotonic()
        handle = start(*args)
        took.append(time.monotonic() - begin)
        return handle

    monkeypatch.setattr(Mlflow, "start", timed)
    e = tracked(tmp_path, server.uri)
    _, handle = run(e)
    assert handle is None
    assert caplog.text.count(f"MLflow at {server.uri} cannot be used") == 1
    assert [r["step"] for r in step_records(journal(e))] == list(range(1, STEPS + 1))
    assert any((Path(e.run_uri) / "unsent_artifacts").rglob("*.png"))
    note("MLflow down at the start", steps_repeated=cost(journal(e)).steps_repeated, seconds=took[0])

    server.start()
    _, handle = run(e)
    assert_all_sent(e, server.uri, handle)
    assert not [p for p in (Path(e.run_uri) / "unsent_artifacts").rglob("*") if p.is_file()]


@pytest.mark.slow
def test_mlflow_goes_away_in_mid_run_and_comes_back(tmp_path, server, limits, monkeypatch, caplog):
    """The rest of the training does not need it to be back: what is missing is sent while training goes on."""
    server.start()
    handles, seen = [], {}
    start = Mlflow.start
    monkeypatch.setattr(Mlflow, "start", lambda *args: handles.append(start(*args)) or handles[0])

    def wait_and_kill():
        wait_for(lambda: sent_steps(server.uri, handles[0]) == [1, 2, 3])
        server.kill()

    def come_back():
        seen["while away"] = [r["step"] for r in step_records(journal(e))][3:]
        server.start()

    def caught_up():
        wait_for(lambda: sent_steps(server.uri, handles[0])[3:18] == list(range(4, 19)))

    before_step(monkeypatch, {4: wait_and_kill, 17: come_back, 20: caught_up})
    e = tracked(tmp_path, server.uri)
    run(e)
    assert seen["while away"] == list(range(4, 17)), "training went on"
    assert caplog.text.count("does not take metrics") == 1
    assert_all_sent(e, server.uri, handles[0])
    away = [r["time"] for r in step_records(journal(e))][3:16]
    seconds = max(b - a for a, b in itertools.pairwise(away))
    note("MLflow away in mid-run", steps_repeated=cost(journal(e)).steps_repeated, seconds=seconds)


@pytest.mark.exhaustive
def test_mlflow_never_answers_in_mid_run(tmp_path, server, gate, limits, monkeypatch):
    """From before step 4 on no request is answered; all the other steps are done before anybody gives the first up."""
    limits(600)
    during = []

    def hang():
        gate.delay = None

    def hangs():
        # the record of step 4 must be sent, if nothing before it was still to be
        wait_for(lambda: gate.held == 1 and gate.arrived == gate.answered + 1)

    def count(number):
        if number > 4:
            during.append((gate.arrived, gate.answered))

    before_step(monkeypatch, {4: hang, 5: hangs, None: count})
    e = tracked(tmp_path, gate.uri, flush_timeout_s=1.0)
    begin = time.monotonic()
    # ending the run is the driver's, which waits for as long as a request may take
    monkeypatch.setattr(Mlflow, "end", lambda *args: None)
    _, handle = run(e)
    total = time.monotonic() - begin
    assert len(during) == STEPS - 4
    assert len(set(during)) == 1, "the same request hung all the time"
    assert during[0][0] > during[0][1]
    times = [r["time"] for r in step_records(journal(e))]
    seconds = max(b - a for a, b in itertools.pairwise(times[4:]))
    note("MLflow never answers, from mid-run on", steps_repeated=0, seconds=seconds, whole_run=round(total, 1))
    assert [r["step"] for r in step_records(journal(e))] == list(range(1, STEPS + 1))
    gate.release()
    wait_for(lambda: not any(call.is_alive() for call in bounded._given_up))  # with four of them, others fail at once
    run(e)
    assert_all_sent(e, server.uri, handle)


@pytest.mark.exhaustive
def test_mlflow_is_slow(tmp_path, server, gate, limits, monkeypatch):
    """Two seconds a request: more than ten steps are done for each request that is answered."""
    log = []

    def slow():
        gate.delay = 2.0
        log.append(gate.answered)

    before_step(monkeypatch, {4: slow, STEPS: lambda: log.append(gate.answered)})
    e = tracked(tmp_path, gate.uri, flush_timeout_s=60.0)
    _, handle = run(e)
    assert log[1] - log[0] < STEPS - 4, "training did not wait for an answer at each step"
    assert_all_sent(e, server.uri, handle)
    note("MLflow answers after 2 s", steps_repeated=0, seconds=cost(journal(e)).seconds, answered=log[1] - log[0])


@pytest.mark.exhaustive
def test_mlflow_never_answers_at_the_start(tmp_path, server, gate, limits, caplog):
    """The one place that waits: the driver needs the run's id, or the knowledge that there will be none."""
    limits(2)
    gate.delay = None
    e = tracked(tmp_path, gate.uri)
    import mlflow  # noqa: F401

    begin = time.time()
    _, handle = run(e)
    assert handle is None
    assert "cannot be used" in caplog.text
    first = step_records(journal(e))[0]["time"]
    note("MLflow never answers at the start (timeout 2 s, no retry)", steps_repeated=0, seconds=first - begin)
    gate.delay = 0.0
    limits(60)
    _, handle = run(e)
    assert_all_sent(e, server.uri, handle)


@pytest.mark.slow
def test_a_run_that_is_deleted_in_mlflow_while_it_trains(tmp_path, monkeypatch, caplog):
    """The training does not notice; the same command makes a new run with the whole history."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    e = tracked(tmp_path, uri)

    def delete():
        client = MlflowClient(tracking_uri=uri)
        (found,) = client.search_runs([client.get_experiment_by_name("mgdet").experiment_id])
        client.delete_run(found.info.run_id)

    before_step(monkeypatch, {7: delete})
    _, deleted = run(e)
    assert "does not take metrics" in caplog.text
    assert len(step_records(journal(e))) == STEPS
    _, handle = run(e)
    assert handle.run_id != deleted.run_id
    assert f"MLflow has no run {deleted.run_id} any more" in caplog.text
    assert_all_sent(e, uri, handle)


@pytest.mark.slow
def test_an_artifact_store_that_cannot_be_written(tmp_path, caplog):
    """Metrics arrive all the same. Artifacts wait on disk, and arrive with the next start when there is a store."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    e = tracked(tmp_path, uri)
    in_its_place = tmp_path / "mlruns"
    in_its_place.write_text("a file where MLflow would make the directory of its artifacts")
    _, handle = run(e)
    assert "did not take the config.yaml" in caplog.text
    assert caplog.text.count("does not take artifacts") == 1
    assert_all_sent(e, uri, handle)
    client = MlflowClient(tracking_uri=uri)
    assert client.get_run(handle.run_id).info.status == "FINISHED"
    waiting = [path for path in (Path(e.run_uri) / "unsent_artifacts").rglob("*") if path.is_file()]
    assert waiting
    in_its_place.unlink()
    run(e)
    assert not any(path.exists() for path in waiting)
    assert "config.yaml" in {file.path for file in client.list_artifacts(handle.run_id)}


# --- storage


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 MiB."""
    with disk_of(256, tmp_path / "disk") as disk:
        yield disk


@pytest.mark.exhaustive
def test_the_disk_is_full_for_everything(tmp_path, small_disk, undisturbed, monkeypatch, caplog):
    """Not a byte is left from step 7 to step 15: the owner's file, the journal and the checkpoints all fail."""
    e = experiment(tmp_path).model_copy(update={"storage": str(small_disk)})
    filler = small_disk / "filler"

    def fill():
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free)

    before_step(monkeypatch, {7: fill, 15: filler.unlink})
    run(e)
    assert caplog.text.count("Metrics are being lost") <= 1
    assert "training goes on, the newest checkpoint stays the one before" in caplog.text
    assert [i.step for i in CheckpointStore(e.run_uri).committed()] == [18, 24]
    assert same(weights(e), undisturbed)
    points, _ = Journal(journal(e)).read(0)  # a line that the disk had no room for is cut, and passed over
    assert {p.step for p in points if p.key == "train/loss"} >= {*range(1, 7), *range(16, 25)}


@pytest.mark.exhaustive
def test_the_disk_is_full_at_a_checkpoint(tmp_path, small_disk, undisturbed, monkeypatch, caplog):
    """It is full after the first checkpoint; there is room again before the third."""
    e = experiment(tmp_path).model_copy(update={"storage": str(small_disk)})
    filler, before = small_disk / "filler", {}

    def fill():
        (first,) = CheckpointStore(e.run_uri).committed()
        before[first.file] = CheckpointStore(e.run_uri).path(first).read_bytes()
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free - first.size // 2)

    def look_and_make_room():
        store = CheckpointStore(e.run_uri)
        ((name, content),) = before.items()
        assert [i.file for i in store.committed()] == [name]
        assert (store.directory / name).read_bytes() == content
        assert [name for name in store.directory.children() if name.endswith(".tmp")] == []
        filler.unlink()

    before_step(monkeypatch, {7: fill, 15: look_and_make_room})
    run(e)
    assert caplog.text.count("attempt 1 of 3") == 1
    assert "No space left on device" in caplog.text
    assert "training goes on, the newest checkpoint stays the one before" in caplog.text
    assert [i.step for i in CheckpointStore(e.run_uri).committed()] == [18, 24]
    assert same(weights(e), undisturbed)
    found = cost(journal(e))  # no record of a step is missing
    assert found.steps_repeated == 0
    note("disk full at a checkpoint, 3 attempts", steps_repeated=0, seconds=found.seconds, steps_at_risk=6)


class Stopped(Exception):
    """The machine goes away."""


def stop():
    raise Stopped


@pytest.mark.parametrize(
    "damage", [pytest.param("truncated", marks=EXHAUSTIVE), pytest.param("one byte flipped", marks=SLOW)]
)
def test_the_newest_checkpoint_is_damaged(tmp_path, undisturbed, monkeypatch, caplog, damage):
    e = experiment(tmp_path)
    with monkeypatch.context() as patch:
        before_step(patch, {15: stop})
        with pytest.raises(Stopped):
            run(e)
    store = CheckpointStore(e.run_uri)
    older, newest = store.committed()
    assert (older.step, newest.step) == (6, 12)
    path = Path(store.path(newest).path)
    if damage == "truncated":
        with path.open("r+b") as file:
            file.truncate(newest.size // 3)
    else:
        with path.open("r+b") as file:
            file.seek(newest.size // 2)
            byte = file.read(1)[0]
            file.seek(newest.size // 2)
            file.write(bytes([byte ^ 1]))
    caplog.clear()
    begin = time.time()
    run(e)
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "damaged" in r.getMessage()]
    assert [str(path) in w for w in warned] == [True]
    assert same(weights(e), undisturbed)
    records = step_records(journal(e))
    assert [r["step"] for r in records] == [*range(1, 15), *range(7, STEPS + 1)], "on from the one before"
    again = next(r["time"] for r in records if r["time"] > begin)
    note(f"newest checkpoint {damage}", steps_repeated=cost(journal(e)).steps_repeated, seconds=again - begin)


def failing(function, times, calls):
    """`function`, whose first `times` calls end as those of a disk that fails (-1: all)."""

    def call(*args):
        if getattr(args[0], "name", "").startswith("owner"):  # who shows itself now and then
            return function(*args)
        calls.append(args)
        if times < 0 or len(calls) <= times:
            raise OSError(errno.EIO, "Input/output error")
        return function(*args)

    return call


@pytest.mark.exhaustive
def test_storage_that_fails_twice_costs_no_checkpoint(tmp_path, undisturbed, monkeypatch, caplog):
    calls = []
    write = Location.open_output
    before_step(
        monkeypatch, {5: lambda: monkeypatch.setattr(Location, "open_output", failing(write, ATTEMPTS - 1, calls))}
    )
    e = experiment(tmp_path)
    run(e)
    assert caplog.text.count("storage failed") == ATTEMPTS - 1
    assert "training goes on" not in caplog.text
    assert [i.step for i in CheckpointStore(e.run_uri).committed()] == [18, 24]
    assert same(weights(e), undisturbed)
    note("storage fails twice at a checkpoint", steps_repeated=0, seconds=cost(journal(e)).seconds)


@pytest.mark.slow
def test_storage_that_always_fails_is_given_up_each_time(tmp_path, undisturbed, monkeypatch, caplog):
    """Three attempts at each checkpoint but the last, which is tried longer; then it says that nothing is kept."""
    calls = []
    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: calls.append(seconds))
    tries = []
    write = Location.open_output
    before_step(monkeypatch, {1: lambda: monkeypatch.setattr(Location, "open_output", failing(write, -1, tries))})
    e = experiment(tmp_path)
    with pytest.raises(UnsavedError, match=r"last checkpoint is missing.*step 24.*None is kept\."):
        run(e)
    assert len(tries) == 3 * ATTEMPTS + LAST_ATTEMPTS
    assert calls == [*(3 * [1.0, 2.0]), 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert caplog.text.count("training goes on") == 3
    assert [r["step"] for r in step_records(journal(e))] == list(range(1, STEPS + 1))
    monkeypatch.undo()
    run(e)
    assert same(weights(e), undisturbed)
    note("storage fails at every checkpoint", steps_repeated=STEPS, seconds=sum(calls[:2]))


@pytest.mark.exhaustive
def test_reading_that_fails_twice_resumes_from_the_newest(tmp_path, undisturbed, monkeypatch):
    e = experiment(tmp_path)
    with monkeypatch.context() as patch:
        before_step(patch, {15: stop})
        with pytest.raises(Stopped):
            run(e)
    calls = []
    load, read = CheckpointStore.load, Location.read_bytes

    def with_failures(self, info):
        if not calls:
            monkeypatch.setattr(Location, "read_bytes", failing(read, ATTEMPTS - 1, calls))
        return load(self, info)

    monkeypatch.setattr(CheckpointStore, "load", with_failures)
    begin = time.time()
    run(e)
    assert same(weights(e), undisturbed)
    records = step_records(journal(e))
    assert [r["step"] for r in records] == [*range(1, 15), *range(13, STEPS + 1)]
    again = next(r["time"] for r in records if r["time"] > begin)
    note("storage fails twice when a checkpoint is read", steps_repeated=2, seconds=again - begin)


@pytest.mark.parametrize(
    "what", [pytest.param("the checkpoint", marks=SLOW), pytest.param("also its record", marks=EXHAUSTIVE)]
)
def test_reading_that_always_fails_does_not_train_from_the_start(tmp_path, undisturbed, monkeypatch, what):
    """A store that is out of reach is not an empty one."""
    e = experiment(tmp_path)
    with monkeypatch.context() as patch:
        before_step(patch, {9: stop})
        with pytest.raises(Stopped):
            run(e)
    before, calls, waits = journal(e).read_bytes(), [], []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.time, "sleep", waits.append)
        name = "load" if what == "the checkpoint" else "latest"
        original, read = getattr(CheckpointStore, name), Location.read_bytes

        def with_failures(*args):
            patch.setattr(Location, "read_bytes", failing(read, -1, calls))
            return original(*args)

        patch.setattr(CheckpointStore, name, with_failures)
        with pytest.raises(CheckpointError, match="Input/output error"):
            run(e)
    assert len(calls) == ATTEMPTS
    assert journal(e).read_bytes() == before, "no step was taken"
    run(e)
    assert same(weights(e), undisturbed)
    assert cost(journal(e)).steps_repeated == 2
    note(f"storage cannot be read at a restart: {what}", steps_repeated=2, seconds=sum(waits))
