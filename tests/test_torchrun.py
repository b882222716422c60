"""torchrun trains without Ray: the same loop on the processes that it starts, of which rank 0 speaks and records."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mgdet.cli.main import main
from mgdet.cluster.train import run
from mgdet.errors import ClusterError, ConfigError, Interrupted
from mgdet.host import Rank, speaks, torchrun_rank
from mgdet.runs import torchrun
from mgdet.runs.launch import prepare, train_in_process
from mgdet.runs.torchrun import train_under_torchrun, with_workers
from mgdet.tracking import NullTracker
from mgdet.training.checkpoint import CheckpointStore
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from tests import forked  # noqa: F401  # the fork server has imported torch
from tests.faults import same, weights
from tests.ranks import both
from tests.small import small_experiment


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def started_by_torchrun(monkeypatch, rank=0, world=2, **more):
    values = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, **more}
    values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_who_started_this_process(monkeypatch):
    assert torchrun_rank() is None
    assert speaks()
    started_by_torchrun(monkeypatch, 1, 4, LOCAL_WORLD_SIZE=2)
    assert torchrun_rank() == Rank(1, 4, 1, 2)
    assert not speaks()
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(ConfigError, match=r"RANK='4'.*0 <= RANK < WORLD_SIZE"):
        torchrun_rank()
    monkeypatch.delenv("MASTER_PORT")
    assert torchrun_rank() is None, "a variable of this name may be anybody's"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workers": 4}, r"cluster.workers = 4, but torchrun has started 2 .*cluster.workers=auto"),
        ({"workers": 0}, "cluster.workers = 0, but torchrun has started 2"),
        ({"workers": [1, 2]}, r"cluster.workers = \[1, 2\], but torchrun"),
        ({"workers": 2, "address": "10.0.0.1:6379"}, "cluster.address = .* trains without Ray"),
    ],
)
def test_contradictions_are_refused(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        with_workers(small_experiment(tmp_path, cluster=changes), Rank(0, 2, 0, 2))


def test_the_processes_are_the_workers(tmp_path):
    for asked in (2, "auto"):
        e = with_workers(small_experiment(tmp_path, cluster__workers=asked), Rank(0, 2, 0, 2))
        assert e.cluster.workers == 2
    assert with_workers(small_experiment(tmp_path), Rank(0, 1, 0, 1)).cluster.workers == 1


@pytest.mark.parametrize("arguments", [["tune", "quick"], ["train", "--dry-run"], ["evaluate", "runs/mine"]])
def test_what_does_not_share_its_work_is_refused(monkeypatch, capsys, arguments):
    started_by_torchrun(monkeypatch)
    assert main(arguments) == 2
    assert "each of its processes would do the same" in capsys.readouterr().err


def test_a_gpu_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    e = small_experiment(tmp_path, cluster={"workers": "auto", "gpu": True})
    with pytest.raises(ConfigError, match=r"2 processes on this machine, which has 1 GPUs.*--nproc-per-node"):
        train_under_torchrun(e, Rank(1, 2, 1, 2))


@pytest.mark.slow
def test_one_process_learns_what_a_training_without_torchrun_learns(tmp_path, monkeypatch):
    changes = {"train__epochs": 1, "train__checkpoint_every_steps": 1}
    alone = small_experiment(tmp_path, name="alone", **changes)
    train_in_process(alone)
    started_by_torchrun(monkeypatch, 0, 1)
    e = small_experiment(tmp_path, cluster={"workers": "auto", "gpu": False}, **changes)
    try:
        summary, _ = run(e)
        assert (summary.epoch, summary.already_finished) == (1, True)
        assert same(weights(e), weights(alone))
        assert not dist.is_initialized()
        assert run(e)[0] == summary, "a finished run is not trained again"
    finally:
        torch.use_deterministic_algorithms(False)


class Follower(World):
    """Rank 1 of two, to whom rank 0 says that it does not train."""

    def broadcast(self, value):
        return None


def test_a_follower_ends_when_rank_0_does_not_begin(tmp_path, monkeypatch):
    world = Follower(1, 2, torch.device("cpu"))
    with pytest.raises(ClusterError, match="rank 1 has nothing to train"):
        torchrun._follow(small_experiment(tmp_path), world)


@pytest.mark.parametrize("error", [None, Interrupted("asked"), RuntimeError("a peer is gone")])
def test_a_follower_stays_until_rank_0_has_recorded_the_end(tmp_path, monkeypatch, error):
    """torchrun stops all processes when one has failed; an error that only this rank has is told at once."""
    e, asked = small_experiment(tmp_path), []

    class World1(World):
        def broadcast(self, value):
            asked.append(value)
            return e.model_dump(mode="json") if len(asked) == 1 else None

    def train(*args):
        if error:
            raise error

    monkeypatch.setattr(torchrun, "_train", train)
    with pytest.raises(ClusterError if error is None else type(error)):
        torchrun._follow(e, World1(1, 2, torch.device("cpu")))
    assert len(asked) == (1 if isinstance(error, RuntimeError) else 2)


# --- two processes


def as_one_of_two(rank, directory):
    """What a rank of any launcher does, with nothing around it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/group", rank=rank, world_size=2)
    e = prepare(small_experiment(Path(directory), name="ranks", cluster={"workers": 2, "gpu": False}), 2, 0)[0]
    worker = Worker(e, World.current(torch.device("cpu")), NullTracker())
    worker.run()
    torch.save(worker.detector.state_dict(), f"{directory}/rank-{rank}.pt")
    dist.destroy_process_group()


PATIENT = """
import os, sys, time
from pathlib import Path
from mgdet.training.loop import Worker
step, directory = Worker._step, Path(os.environ["DIRECTORY"])
def patient(self, group, sums):
    if self.position.step == 1 and not (directory / "go on").exists():
        (directory / f"rank {self.world.rank} is there").touch()
        while not (directory / "go on").exists():
            time.sleep(0.02)
    return step(self, group, sums)
Worker._step = patient
from mgdet.cli.main import main
sys.exit(main(["train", sys.argv[1]]))
"""


def until(condition, process, log):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_learn_what_two_ranks_learn_and_stop_and_go_on(tmp_path):
    """Stopped by a signal to torchrun in the second step, and continued by the same command."""
    prepare(small_experiment(tmp_path), 1, 0)  # makes the data set for all of them
    expected = both(as_one_of_two, tmp_path, seconds=300)[0]
    e = small_experiment(tmp_path, cluster={"workers": "auto", "gpu": False}, train__log_every=1)
    (tmp_path / "small.yaml").write_text(e.to_yaml())
    (tmp_path / "patient.py").write_text(PATIENT)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "DIRECTORY": str(tmp_path),
    }

    def command():
        at = ("--master-addr", "127.0.0.1", "--master-port", free_port())
        started = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *at)
        return [*started, str(tmp_path / "patient.py"), str(tmp_path / "small.yaml")]

    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command(), stdout=file, stderr=file, env=environment)
        until(lambda: all((tmp_path / f"rank {rank} is there").exists() for rank in range(2)), process, log)
        process.send_signal(signal.SIGTERM)
        until(lambda: log.read_text().count("stopping at the next checkpoint") == 2, process, log)
        (tmp_path / "go on").touch()
        process.wait(300)
    assert log.read_text().count("interrupted: stopped on request after step 2") == 1, log.read_text()
    assert [i.step for i in CheckpointStore(e.run_uri).committed()] == [2]
    again = subprocess.run(command(), capture_output=True, text=True, env=environment, timeout=300)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("best checkpoint") == 1, "rank 0 alone speaks"
    assert same(weights(e), expected)
