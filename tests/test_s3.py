"""Runs and data in an object store: everything goes through a server on this machine that speaks S3."""

import os
import signal

import pytest

from mgdet.runs.compare import compare_metrics
from mgdet.runs.reproduce import journal_of
from mgdet.storage import locate
from mgdet.training.checkpoint import CheckpointStore
from tests.buckets import experiment_in_a_bucket as experiment
from tests.buckets import job
from tests.faults import same, weights
from tests.forked import Job, run_job
from tests.tracking_servers import wait_for

pytestmark = pytest.mark.slow


def test_a_killed_training_goes_on_and_its_detector_is_judged_and_used(uri, tmp_path):
    """Train, kill, train again, evaluate, predict: data and run are in the bucket, and nothing of them is here."""
    e = experiment(tmp_path, uri)
    path, log = job(e, tmp_path)
    store = CheckpointStore(e.run_uri)
    killed = Job("train", [path], log, directory=tmp_path)
    wait_for(lambda: killed.poll() is not None or store.committed(), 300)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    assert 0 < store.committed()[-1].step < 12, log.read_text()

    another_machine = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "empty")}
    done = run_job("train", [path], log, directory=tmp_path, environment=another_machine)
    assert done.returncode == 0, done.output
    assert "continu" in done.output
    assert store.committed()[-1].step == 12

    undisturbed = experiment(tmp_path, uri, name="undisturbed")
    path, log = job(undisturbed, tmp_path)
    assert run_job("train", [path], log, directory=tmp_path).returncode == 0, log.read_text()
    assert same(weights(e), weights(undisturbed))
    assert compare_metrics(journal_of(undisturbed), journal_of(e)).first == ""

    judged = run_job("evaluate", [e.run_uri, "--json", tmp_path / "judged.json"], tmp_path / "evaluate.log")
    assert judged.returncode == 0, judged.output
    assert "val/AP" in (tmp_path / "judged.json").read_text()

    (tmp_path / "photo.png").write_bytes(photo(e))
    found = tmp_path / "found"
    used = run_job("predict", [e.run_uri, tmp_path / "photo.png", "--out", found], tmp_path / "predict.log")
    assert used.returncode == 0, used.output
    assert any(found.iterdir())
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "shapes").exists()


def photo(e):
    """The bytes of an image of the data set."""
    import pyarrow.parquet as pq

    split = locate(e.data.uri) / "val"
    name = next(n for n in sorted(split.children()) if n.endswith(".parquet"))
    with (split / name).open_input() as file:
        return pq.read_table(file).column("image")[0].as_py()


def test_a_bucket_that_is_not_there_is_named(uri, tmp_path):
    e = experiment(tmp_path, uri, storage=uri("x").replace("bucket/x", "nowhere/runs"), tracking__enabled=False)
    path, log = job(e, tmp_path)
    done = run_job("train", [path], log, directory=tmp_path)
    assert done.returncode == 2, done.output
    assert "nowhere" in done.output
    assert "Traceback" not in done.output
