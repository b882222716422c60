"""One owner: a second start is refused and told who it is, and a dead owner does not stand in the way."""

import contextlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from pyarrow import fs

from mgdet import lease
from mgdet.data.schema import read_manifest
from mgdet.data.shapes import ShapesConfig, ensure_shapes
from mgdet.errors import OwnedError
from mgdet.lease import OWNER, claims, owned
from mgdet.records import seal, unseal
from mgdet.runs import launch
from mgdet.runs.launch import train_in_process
from mgdet.storage import Location, locate
from tests.forked import Job, run_job
from tests.small import small_experiment

WHAT = "the run r"
CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    """The same rules, with shorter times."""
    for name, seconds in {"BEAT_S": 0.05, "DEAD_AFTER_S": 0.6, "_POLL_S": 0.02}.items():
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture(params=["a disk", "an object store"])
def file(request, tmp_path, monkeypatch):
    """The owner's file of a run, of which there is none yet."""
    local = locate(tmp_path / "r" / OWNER)
    if request.param == "a disk":
        return local
    (tmp_path / "r").mkdir()
    remote = fs.SubTreeFileSystem("/", fs.LocalFileSystem())
    monkeypatch.setattr(Location, "replace", at_once)
    return Location(remote, local.path.lstrip("/"), f"mock://{local.path}")


def at_once(location, data):
    """As an object store does it: a reader sees the old or the new object."""
    part = Path("/", f"{location.path}.{os.getpid()}.{threading.get_ident()}")
    part.write_bytes(data)
    part.replace(Path("/", location.path))


def written(file):
    (data,) = claims(file).values()
    return unseal(data)


def write(file, content):
    """The file of an owner as its token calls it."""
    file.with_name(f"owner-{content['token']}.json").replace(seal(content))


def test_the_file_is_there_only_within_the_block(file):
    with owned(file, WHAT):
        assert written(file)["pid"] == os.getpid()
    assert not claims(file)
    with contextlib.suppress(RuntimeError), owned(file, WHAT):
        raise RuntimeError
    assert not claims(file)
    assert Path("/", file.parent.path).exists()
    assert list(Path("/", file.parent.path).iterdir()) == []


def refused(file, match):
    with pytest.raises(OwnedError, match=match), owned(file, WHAT):
        pytest.fail("two owners")


def test_a_second_start_is_refused_and_told_who_it_is(file):
    with owned(file, WHAT):
        refused(file, rf"the run r is being written by process {os.getpid()} on .*, since 2")
        assert written(file)["pid"] == os.getpid(), "the first one stays the owner"


def hold(file, ready, seconds):
    with owned(file, WHAT):
        ready.set()
        time.sleep(seconds)


@pytest.fixture
def holder(file):
    """Another process that owns the file."""
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=hold, args=(file, ready, 60))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


@pytest.mark.slow
def test_another_process_is_refused_while_it_lives_and_followed_at_once_when_it_is_dead(file, holder, monkeypatch):
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 1e9)  # of a process of this machine it is known
    refused(file, f"process {holder.pid}")
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # a zombie: it is dead, and its pid is not free yet
    with owned(file, WHAT):
        assert written(file)["pid"] == os.getpid()


def test_a_pid_that_is_another_process_by_now(file):
    with owned(file, WHAT):
        kept = written(file)
    write(file, {**kept, "started": kept["started"] + 1})
    with owned(file, WHAT):
        assert written(file)["token"] != kept["token"]


def test_an_owner_elsewhere_that_shows_itself_is_refused(file, holder, monkeypatch):
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 60.0)
    monkeypatch.setattr(lease, "_machine", lambda: "another machine")
    refused(file, f"process {holder.pid}")


@pytest.mark.parametrize("state", ["silent", "damaged"])
def test_an_owner_elsewhere_that_is_silent_is_followed(file, caplog, state):
    """Whatever its clock says: only whether the file changes counts."""
    with owned(file, WHAT):
        data = seal({**written(file), "machine": "another machine", "began": 1e10})
    file.with_name("owner-0a.json").write(data if state == "silent" else data[:100])
    with owned(file, WHAT):
        assert written(file)["pid"] == os.getpid()
    assert "looking for at most" in caplog.text
    assert "which is gone; taking over" in caplog.text


@pytest.mark.parametrize("hours", [-1, 1])
def test_clocks_that_are_an_hour_apart_decide_nothing(file, holder, monkeypatch, hours):
    """Of the machines, and of the storage, which dates the file: an owner that shows itself is never followed."""
    machine, clock = lease._machine(), time.time
    monkeypatch.setattr(lease, "_machine", lambda: f"not {machine}")
    monkeypatch.setattr(lease.time, "time", lambda: clock() + hours * 3600)
    (name,) = claims(file)
    os.utime(Path("/", file.path).with_name(name), (clock() + hours * 3600,) * 2)
    refused(file, f"process {holder.pid}")
    os.kill(holder.pid, signal.SIGKILL)
    with owned(file, WHAT):
        assert written(file)["pid"] == os.getpid()


def test_it_may_be_waited_for(file):
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=hold, args=(file, ready, 0.3))
    process.start()
    assert ready.wait(60)
    with owned(file, WHAT, wait_s=60):
        assert written(file)["pid"] == os.getpid()
    process.join()


def compete(file, barrier, owners):
    barrier.wait()
    with contextlib.suppress(OwnedError), owned(file, WHAT):
        owners.put(os.getpid())
        time.sleep(2.0)


@pytest.mark.slow
def test_of_several_that_start_together_one_wins(file):
    barrier, owners = CONTEXT.Barrier(4), CONTEXT.Queue()
    processes = [CONTEXT.Process(target=compete, args=(file, barrier, owners)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert owners.get(timeout=60)
    assert owners.empty()
    assert not claims(file)


def test_an_owner_that_was_followed_stops(file, monkeypatch):
    """It slept, say, and somebody else took over; that one is left alone."""
    asked = threading.Event()
    monkeypatch.setattr(lease, "interrupt", asked.set)

    def sleep():
        with owned(file, WHAT):
            write(file, {**written(file), "token": "0a", "generation": 2, "pid": 7, "host": "other"})
            assert asked.wait(60)
            raise KeyboardInterrupt

    with pytest.raises(OwnedError, match=r"was taken over by process 7 on 'other'"):
        sleep()
    assert written(file)["token"] == "0a"


def test_an_interrupt_is_an_interrupt(file):
    with pytest.raises(KeyboardInterrupt), owned(file, WHAT):
        raise KeyboardInterrupt


def test_it_shows_itself_again_where_its_file_was_removed(file):
    with owned(file, WHAT):
        file.with_name(*claims(file)).delete()
        until = time.monotonic() + 60
        while not claims(file) and time.monotonic() < until:
            time.sleep(0.02)
        assert written(file)["pid"] == os.getpid()


# --- processes that pause between two steps


class GivesUp(Exception):
    """A process that would wait for a paused one, which does not go on before it."""


def start(file, owners, stacks):
    """One more start: who becomes the owner stays it, and is noted."""
    stack = contextlib.ExitStack()
    stacks.append(stack)
    with contextlib.suppress(OwnedError, GivesUp):
        owners.append(stack.enter_context(owned(file, WHAT)))


@pytest.mark.parametrize("step", range(9))
@pytest.mark.parametrize("follows", [False, True], ids=["waits for it", "deems it dead"])
@pytest.mark.parametrize("before", ["nobody", "a dead owner"])
def test_a_start_that_pauses_at_any_step_makes_no_second_owner(file, monkeypatch, before, follows, step):
    """Another one, on another machine, starts meanwhile, and goes as far as it comes. Nothing sleeps."""
    if before == "a dead owner":
        with owned(file, WHAT):
            kept = written(file)
        write(file, {**kept, "started": kept["started"] + 1})

    def gives_up(seconds):
        raise GivesUp

    here = lease._machine
    for name, value in {"BEAT_S": 1e6, "DEAD_AFTER_S": 1e9, "_POLL_S": 0.0}.items():
        monkeypatch.setattr(lease, name, value)
    monkeypatch.setattr(lease.time, "sleep", gives_up)
    owners, stacks, steps = [], [], itertools.count()

    def pausing(whole):
        def action(self, *args):
            if next(steps) == step:
                monkeypatch.setattr(lease, "_machine", lambda: "another machine")
                monkeypatch.setattr(lease, "DEAD_AFTER_S", 0.0 if follows else 1e9)
                start(file, owners, stacks)
                monkeypatch.setattr(lease, "_machine", here)
                monkeypatch.setattr(lease, "DEAD_AFTER_S", 1e9)
            return whole(self, *args)

        return action

    for name in ("children", "replace", "delete", "read_bytes"):
        monkeypatch.setattr(Location, name, pausing(getattr(Location, name)))
    start(file, owners, stacks)
    assert next(steps) > step or len(owners) == 1, "it pauses at every step that there is"
    assert [each.lost() for each in owners].count(False) <= 1
    assert owners, "somebody owns it, or did when the other one found that out"
    for stack in stacks:
        stack.close()


@pytest.mark.parametrize("wins", [False, True])
def test_of_two_that_ask_together_the_lower_token_goes_on(file, monkeypatch, wins):
    """When the other one has withdrawn."""
    with owned(file, WHAT):
        kept = written(file)
    asking = file.with_name(f"owner-{('f' if wins else '0') * 32}.json")
    asking.write(seal({**kept, "token": ("f" if wins else "0") * 32, "asks": True}))
    if not wins:
        refused(file, f"process {os.getpid()}")
        return
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: asking.delete())
    with owned(file, WHAT):
        assert written(file)["asks"] is False


@pytest.fixture
def machines(monkeypatch):
    """Every start is on another machine, and deems all others dead at once."""
    numbers = itertools.count()
    for name, value in {"BEAT_S": 1e6, "DEAD_AFTER_S": 0.0, "_machine": lambda: f"machine {next(numbers)}"}.items():
        monkeypatch.setattr(lease, name, value)


def test_an_owner_that_slept_while_it_was_followed_finds_its_successor(file, machines):
    """It is deemed dead, its file is deleted, and it writes that again when it goes on: its successor stays."""
    with contextlib.ExitStack() as stack:
        sleeper = stack.enter_context(owned(file, WHAT))
        (data,) = claims(file).values()
        follower = stack.enter_context(owned(file, WHAT))
        file.with_name(f"owner-{sleeper.token}.json").write(data)  # the beat that it was about to write
        assert not follower.lost()
        with pytest.raises(OwnedError, match="was taken over by"):
            sleeper.require()
        assert follower.generation == sleeper.generation + 1


def test_a_dead_owner_that_shows_itself_again_is_not_followed(file, machines, monkeypatch):
    """Between the moment when it is deemed dead and that in which it is followed."""
    with owned(file, WHAT) as sleeper:
        mine = file.with_name(f"owner-{sleeper.token}.json")
        whole = Location.replace

        def replace(self, data):
            whole(self, data)
            if not unseal(data)["asks"]:  # the follower has just written that it is the owner
                whole(mine, seal({**unseal(mine.read_bytes()), "beat": 1}))
                monkeypatch.setattr(lease, "DEAD_AFTER_S", 1e9)

        monkeypatch.setattr(Location, "replace", replace)
        refused(file, "is being written by")
        monkeypatch.setattr(Location, "replace", whole)
        assert not sleeper.lost()
        assert [unseal(data)["token"] for data in claims(file).values()] == [sleeper.token]


def test_a_copied_file_of_a_living_owner_says_nothing(tmp_path, monkeypatch):
    """A run directory that is copied while it is trained has the owner's file in it, which never changes there."""
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 0.0)
    (tmp_path / "a").mkdir()
    with owned(locate(tmp_path / "a" / OWNER), WHAT):
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        with owned(locate(tmp_path / "b" / OWNER), WHAT):
            refused(locate(tmp_path / "a" / OWNER), "is being written")


# --- runs and data sets


@pytest.mark.slow
def test_two_drivers_on_one_run(tmp_path):
    """The second one is refused before it reads or writes anything of the run."""
    e = small_experiment(tmp_path, train__epochs=1)
    said = []

    def files():  # but the owner's, which changes now and then by itself
        return sorted(p for p in Path(e.run_uri).rglob("*") if not p.name.startswith("owner"))

    def execute(experiment, handle, owner):
        other = small_experiment(tmp_path, train__epochs=1, train__optimizer={"name": "sgd", "lr": 5e-2})
        before = files()
        with pytest.raises(OwnedError) as error:
            train_in_process(other)
        said.append(str(error.value))
        assert files() == before
        launch.in_process(experiment, handle, owner)

    resolved, reasons = launch.prepare(e, 1, 0)
    launch.launch(e, resolved, reasons, execute)
    assert f"the run {e.run_uri} is being written by process {os.getpid()}" in said[0]
    assert train_in_process(e)[0].already_finished


def test_a_training_waits_for_another_one_that_draws_the_same_data(tmp_path):
    uri, config = str(tmp_path / "shapes"), ShapesConfig(train=3, val=2, size=48)
    processes = [CONTEXT.Process(target=ensure_shapes, args=(uri, config)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert read_manifest(uri).splits["train"].images == 3
    assert [p.name for p in tmp_path.iterdir()] == ["shapes"]


# --- the lock of MLflow's database


def lock_for(path, ready, seconds):
    from mgdet.tracking.mlflow import _alone

    with _alone(f"sqlite:///{path}"):
        ready.set()
        time.sleep(seconds)


@pytest.mark.parametrize("seconds", [0.5, 60], ids=["is released", "stays"])
def test_the_lock_of_a_new_database_is_waited_for_with_a_bound(tmp_path, monkeypatch, caplog, seconds):
    from mgdet.tracking import mlflow as run

    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=lock_for, args=(tmp_path / "mlflow.db", ready, seconds))
    process.start()
    assert ready.wait(60)
    monkeypatch.setattr(run, "_LOCK_S", 60.0 if seconds < 1 else 0.3)
    with contextlib.ExitStack() as stack:
        if seconds > 1:
            stack.enter_context(
                pytest.raises(TimeoutError, match=rf"mlflow\.db\.lock is held by process {process.pid} on")
            )
        with run._alone(f"sqlite:///{tmp_path}/mlflow.db"):
            assert seconds < 1
    assert f"is held by process {process.pid} on" in caplog.text
    process.kill()
    process.join()


def test_the_lock_names_its_owner(tmp_path):
    from mgdet.tracking.mlflow import _alone

    with _alone(f"sqlite:///{tmp_path}/x/mlflow.db"):
        assert (tmp_path / "x" / "mlflow.db.lock").read_text().startswith(f"process {os.getpid()} on ")


# --- processes


def written_config(tmp_path, name, **changes):
    path = tmp_path / name
    path.write_text(small_experiment(tmp_path, **changes).to_yaml())
    return path


@pytest.mark.slow
def test_two_drivers_that_are_started_together(tmp_path):
    """Also the data are drawn once. One trains; the other one, with another learning rate, never touches the run."""
    rates = [1e-3, 5e-2]
    configs = [
        written_config(tmp_path, f"{i}.yaml", train__optimizer={"name": "sgd", "lr": lr, "momentum": 0})
        for i, lr in enumerate(rates)
    ]
    jobs = [Job("train", [path], path.with_suffix(".log")) for path in configs]
    statuses = [job.wait(600) for job in jobs]
    logs = [path.with_suffix(".log").read_text() for path in configs]
    assert sorted(statuses) == [0, 2], logs
    loser = logs[statuses.index(2)]
    assert "is being written by process" in loser or "exists with another configuration" in loser
    run = tmp_path / "runs" / "small"
    winner = rates[statuses.index(0)]
    assert unseal((run / "run.json").read_bytes())["learned"]["train.optimizer.lr"] == winner
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/lr" in line["metrics"]]
    assert steps == sorted(set(steps)), "one journal of one training"
    assert len(list((run / "checkpoints").glob("*.json"))) == 2
    assert not claims(locate(run) / OWNER)


@pytest.mark.slow
def test_a_resubmitted_job_takes_over_from_one_that_was_killed(tmp_path):
    path = written_config(tmp_path, "c.yaml", train__epochs=3)
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    job = Job("train", [path], tmp_path / "killed.log")
    until = time.monotonic() + 600
    while not list(checkpoints.glob("*.json")) and job.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    job.kill()
    job.wait(60)
    assert claims(locate(tmp_path / "runs/small") / OWNER), (tmp_path / "killed.log").read_text()
    done = run_job("train", [path], tmp_path / "again.log", timeout=600)
    assert done.returncode == 0, done.output
    assert f"process {job.pid} on" in done.output
    assert "which is gone; taking over" in done.output
    assert "resuming at epoch" in done.output
