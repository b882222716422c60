"""A training that cannot keep its last checkpoint is not finished, and says what is missing."""

import errno

import pytest

from mgdet.cli.main import main
from mgdet.errors import ClusterError, Interrupted
from mgdet.runs import launch
from mgdet.runs.launch import train_in_process
from mgdet.storage import Location
from mgdet.tracking import NoTracking, NullTracker, RunHandle
from mgdet.training import checkpoint
from mgdet.training.checkpoint import ATTEMPTS, LAST_ATTEMPTS, CheckpointStore, UnsavedError
from mgdet.training.loop import Worker
from tests.small import small_experiment


@pytest.fixture
def failing(monkeypatch):
    """Makes the writing of checkpoints fail so many times from some step on, without waiting between attempts."""
    calls = []
    commit = CheckpointStore._commit

    def start(step, times):
        def failed(self, state, at, *about):
            if at >= step and len(calls) < times:
                calls.append(at)
                raise OSError(errno.ENOSPC, "No space left on device")
            return commit(self, state, at, *about)

        monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(CheckpointStore, "_commit", failed)
        return calls

    return start


@pytest.mark.slow
def test_it_ends_as_failed_and_says_what_is_missing(tmp_path, failing, monkeypatch):
    ended = []
    monkeypatch.setattr(NoTracking, "start", lambda self, run: RunHandle("0af3"))
    monkeypatch.setattr(launch, "worker_tracker", lambda *args: NullTracker())
    monkeypatch.setattr(NoTracking, "end", lambda self, handle, status: ended.append(status))
    e = small_experiment(tmp_path, tracking={"name": "none"})
    calls = failing(6, LAST_ATTEMPTS)
    with pytest.raises(UnsavedError) as error:
        train_in_process(e)
    assert ended == ["FAILED"]
    assert calls == LAST_ATTEMPTS * [6]
    said = str(error.value)
    assert "its last checkpoint is missing: checkpoint of step 6" in said
    assert "No space left on device" in said
    assert "The newest that is kept is of step 3, epoch 1." in said
    assert "run the same command" in said

    assert train_in_process(e)[0].epoch == 2, "the same command goes on from what is kept"
    assert [c.step for c in CheckpointStore(e.run_uri).complete()] == [3, 6]
    assert ended == ["FAILED", "FINISHED"]


@pytest.mark.slow
def test_the_command_ends_with_2(tmp_path, failing, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(small_experiment(tmp_path, train__epochs=1).to_yaml())
    failing(1, 99)
    assert main(["train", str(path)]) == 2
    assert "None is kept." in capsys.readouterr().err


@pytest.mark.slow
def test_a_storage_that_comes_back_late_costs_nothing(tmp_path, failing):
    calls = failing(3, LAST_ATTEMPTS - 1)
    summary, _ = train_in_process(small_experiment(tmp_path, train__epochs=1))
    assert summary.epoch == 1
    assert len(calls) > ATTEMPTS


@pytest.mark.slow
def test_a_store_that_takes_a_file_and_does_not_have_it(tmp_path, monkeypatch):
    e = small_experiment(tmp_path)
    replace = Location.replace
    monkeypatch.setattr(Location, "replace", lambda self, data: "00006" in self.name or replace(self, data))
    with pytest.raises(ClusterError, match=r"no whole checkpoint of its last epoch\. .* step 3, epoch 1\."):
        train_in_process(e)


@pytest.mark.slow
def test_a_stop_whose_checkpoint_cannot_be_written_says_so(tmp_path, failing):
    failing(1, 99)
    asked = iter([False, True])
    e, _ = launch.prepare(small_experiment(tmp_path, train__log_every=1), 1, 0)
    world = launch.World.current(launch.torch.device("cpu"))
    worker = Worker(e, world, launch.worker_tracker(e, None), stop_asked=lambda: next(asked))
    with pytest.raises(Interrupted, match="after step 2, WITHOUT a checkpoint of it"):
        worker.run()
