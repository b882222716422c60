"""Ctrl-C and SIGTERM: the first stops in order, the second at once; with real signals, here and to other processes."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mgdet import signals
from mgdet.cli.run import run_cli
from mgdet.errors import Interrupted
from mgdet.runs.stop import StopRequest
from mgdet.signals import apart, heed, interrupt, keep, on_stop, received
from mgdet.training.checkpoint import CheckpointStore
from mgdet.training.loop import Worker
from tests.forked import Job
from tests.small import small_experiment

BOTH = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)


def send(number):
    os.kill(os.getpid(), number)


@BOTH
def test_the_first_stops_in_order_the_second_at_once(number, status, monkeypatch, capfd):
    monkeypatch.setattr(signals, "SAME_S", 0.0)
    asked, before = [], [signal.getsignal(n) for n in signals.STOP_SIGNALS]
    with heed(), on_stop(lambda: asked.append(1)):
        send(number)
        assert asked == [1]
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert asked == [1]
    assert received() == number
    assert "stopping at the next checkpoint; a second signal stops at once" in capfd.readouterr().err
    assert [signal.getsignal(n) for n in signals.STOP_SIGNALS] == before


def test_one_that_comes_twice_at_the_same_time_is_one():
    """As from `kill` to the process and its group."""
    asked = []
    with on_stop(lambda: asked.append(1)):
        send(signal.SIGTERM)
        send(signal.SIGTERM)
    assert asked == [1]


@BOTH
def test_without_anything_to_put_in_order_it_stops_at_once(number, status, capsys):
    assert run_cli(lambda: send(number), "nothing was written") == status
    assert "interrupted; nothing was written" in capsys.readouterr().err


@BOTH
def test_the_status_of_a_stop_in_order_names_the_signal(number, status, capsys):
    def work():
        with on_stop(lambda: None):
            send(number)
        raise Interrupted("at a checkpoint")

    assert run_cli(work, "nothing") == status
    assert "interrupted: at a checkpoint" in capsys.readouterr().err


def test_an_owner_that_lost_its_run_stops_at_once_not_at_a_checkpoint():
    asked = []

    def lose():
        interrupt()
        time.sleep(60)

    with on_stop(lambda: asked.append(1)), pytest.raises(KeyboardInterrupt):
        lose()
    assert asked == []


@BOTH
def test_a_library_cannot_keep_its_own_handlers(number, status):
    with heed():
        with keep():
            signal.signal(number, signal.SIG_IGN)
        with pytest.raises(KeyboardInterrupt):
            send(number)


@BOTH
def test_a_library_cannot_replace_them_while_there_is_something_to_put_in_order(number, status):
    """As Ray Train does when a training begins. Other signals are its own affair, and so are its processes."""
    asked, others = [], signal.getsignal(signal.SIGUSR1)
    with on_stop(lambda: asked.append(1)):
        ours = signal.getsignal(number)
        assert signal.signal(number, signal.SIG_IGN) is ours
        assert signal.getsignal(number) is ours
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        if not (child := os.fork()):
            signal.signal(number, signal.SIG_IGN)
            os._exit(signal.getsignal(number) is not signal.SIG_IGN)
        assert os.waitpid(child, 0)[1] == 0
        send(number)
    assert asked == [1]
    signal.signal(signal.SIGUSR1, others)


def test_a_handler_that_came_past_is_told(caplog):
    import _signal

    with on_stop():
        _signal.signal(signal.SIGINT, lambda *_: None)
    assert "a library has replaced the handler of SIGINT" in caplog.text


def test_a_block_without_an_action_ends_first(monkeypatch, capfd):
    monkeypatch.setattr(signals, "SAME_S", 0.0)
    ended = []
    with heed():
        with on_stop(says="ending the run"):
            send(signal.SIGTERM)
            ended.append(1)
        with pytest.raises(KeyboardInterrupt), on_stop(says="ending the run"):
            send(signal.SIGTERM)
    assert ended == [1]
    assert "ending the run; a second signal stops at once" in capfd.readouterr().err


def test_the_workers_keep_a_request_when_the_driver_stops_at_once(tmp_path):
    stop = StopRequest(str(tmp_path))
    stop.create()
    for error, kept in ((KeyboardInterrupt, True), (RuntimeError, False), (None, False)):
        with pytest.raises(error) if error else contextlib.nullcontext(), stop.offered():
            assert not stop.exists()
            stop.create()
            if error:
                raise error
        assert stop.exists() is kept


def test_an_exit_that_a_library_makes_of_sigterm_is_a_stop():
    with heed():
        with pytest.raises(KeyboardInterrupt), keep():
            sys.exit(signal.SIGTERM)
        assert received() == signal.SIGTERM
        with pytest.raises(SystemExit), keep():
            sys.exit(3)


def test_processes_apart_have_groups_of_their_own():
    command = [sys.executable, "-c", "import os; print(os.getpgrp())"]
    start = lambda: int(subprocess.run(command, preexec_fn=lambda: None, capture_output=True, check=True).stdout)  # noqa: E731
    assert start() == os.getpgrp()
    with apart():
        assert start() != os.getpgrp()
    assert start() == os.getpgrp()


@pytest.mark.slow
def test_a_training_is_asked_between_epochs_too(tmp_path, monkeypatch):
    """Who asks after the last question of an epoch does not wait for the next one: an evaluation may be long."""
    import torch

    from mgdet.runs.launch import prepare
    from mgdet.tracking import NullTracker
    from mgdet.training.distributed import World

    e = prepare(small_experiment(tmp_path, train__log_every=50), cpus=1, gpus=0)[0]
    world = World(0, 1, torch.device("cpu"))
    worker = Worker(e, world, NullTracker(), stop_asked=lambda: worker.position.epoch == 1)
    with pytest.raises(Interrupted, match="after epoch 1; the same command goes on"):
        worker.run()
    (info,) = CheckpointStore(e.run_uri).committed()
    assert (info.epoch, "val/AP" in info.metrics) == (1, True)
    assert not StopRequest(e.run_uri).exists()
    Worker(e, world, NullTracker()).run()
    torch.use_deterministic_algorithms(False)


PHASES = {
    "start-up": "from mgdet.runs import launch\ntarget, name = launch, 'examine_data'",
    "step": "from mgdet.training.loop import Worker\ntarget, name = Worker, '_step'",
    "evaluation": "from mgdet.training import loop\ntarget, name = loop, 'evaluate'",
    "checkpoint": "from mgdet.training.checkpoint import CheckpointStore\ntarget, name = CheckpointStore, 'save'",
    "the end in MLflow": "from mgdet.tracking import Mlflow\ntarget, name = Mlflow, 'finish'",
}
"""Where the first signal comes: when this is called for the first time, which then takes half a second longer."""
PATIENT = """
import os, time, sys, runpy
from pathlib import Path
{target}
whole, mark = getattr(target, name), Path(os.environ["MARK"])
def slow(*args, **more):
    if not mark.exists():
        mark.touch()
        for _ in range(10):  # a signal ends a sleep only by an exception
            time.sleep(0.1)
    return whole(*args, **more)
setattr(target, name, slow)
from mgdet.cli.main import main
sys.exit(main(["train", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        pytest.param("step", signal.SIGINT, marks=pytest.mark.slow),
        *(
            pytest.param(phase, number, marks=pytest.mark.exhaustive)
            for phase in PHASES
            for number in signals.STOP_SIGNALS
            if (phase, number) != ("step", signal.SIGINT)
        ),
    ],
    ids=str,
)
def test_a_signal_to_the_group_of_a_training(tmp_path, phase, number):
    """Without Ray. The run ends at a checkpoint and is closed in MLflow; the same command goes on to the end."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    e = small_experiment(tmp_path, train__log_every=1, tracking={"enabled": True, "uri": uri})
    (tmp_path / "small.yaml").write_text(e.to_yaml())
    (tmp_path / "patient.py").write_text(textwrap.dedent(PATIENT).format(target=PHASES[phase]))
    command = [sys.executable, str(tmp_path / "patient.py"), str(tmp_path / "small.yaml")]
    environment = {**os.environ, "MARK": str(tmp_path / "mark")}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "mark").exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, number)
    status, text = process.wait(300), (tmp_path / "log").read_text()
    assert "Traceback" not in text, text
    finished = phase == "the end in MLflow"
    assert status == (0 if finished else 128 + number), text
    assert runs(uri) == ([] if phase == "start-up" else ["FINISHED" if finished else "KILLED"])
    if phase not in ("start-up", "the end in MLflow"):
        assert "the same command goes on" in text
        assert CheckpointStore(e.run_uri).committed()
    job = Job("train", [tmp_path / "small.yaml"], tmp_path / "again")
    assert job.wait(300) == 0, (tmp_path / "again").read_text()
    assert runs(uri) == ["FINISHED"]


def runs(uri):
    from mlflow import MlflowClient

    if not Path(uri.removeprefix("sqlite:///")).exists():
        return []
    client = MlflowClient(uri)
    found = client.get_experiment_by_name("mgdet")
    return [r.info.status for r in client.search_runs([found.experiment_id])] if found else []
