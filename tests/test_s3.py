"""Runs, data and sweeps in an object store: everything goes through a server on this machine that speaks S3."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest
import yaml

from mgdet.runs.compare import compare_metrics
from mgdet.runs.reproduce import journal_of
from mgdet.storage import locate
from mgdet.training.checkpoint import CheckpointStore
from tests.faults import same, weights
from tests.forked import Job, run_job
from tests.small import STATEFUL, small_experiment
from tests.tracking_servers import free_port, wait_for

pytestmark = pytest.mark.slow
KEYS = {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "anything"}  # the server checks neither


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of a moto server with a bucket called `bucket`."""
    port = free_port()
    log = (tmp_path_factory.mktemp("s3") / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    create = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")

    def created():
        assert process.poll() is None, "the server ended by itself"
        try:
            return urllib.request.urlopen(create, timeout=5).status == 200
        except OSError:
            return False

    try:
        wait_for(created, 120)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def uri(server, monkeypatch):
    """Gives the URI of a path in the bucket; the keys are in the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def of(path):
        return f"s3://bucket/{path}?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{server}"

    return of


def experiment(tmp_path, uri, name="small", **changes):
    """Twelve steps of a small network, each in the journal, with a checkpoint after every fourth one."""
    small = {"model__backbone": "mobilenet_v3_small", "train__epochs": 4, "train__evaluate_every": 4, **STATEFUL}
    small["train__log_every"] = 1
    places = {"storage": uri("runs"), "data__uri": uri("data/shapes")}
    return small_experiment(tmp_path, name=name, **{**small, **places, "train__checkpoint_every_steps": 4, **changes})


def job(e, tmp_path):
    path = tmp_path / f"{e.name}.yaml"
    path.write_text(e.to_yaml())
    return path, tmp_path / f"{e.name}.log"


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


def test_a_sweep_in_a_bucket_goes_on(uri, tmp_path):
    """Two trials on Ray, then one more of the same sweep: the first two are not trained again."""
    base = experiment(tmp_path, uri, train__epochs=2, train__evaluate_every=2, train__checkpoint_every_steps=None)
    (tmp_path / "base.yaml").write_text(base.to_yaml())
    sweep = {
        "name": "search",
        "base": "base.yaml",
        "set": {"cluster.workers": 1, "cluster.cpus_per_worker": 1},
        "space": {"train.optimizer.lr": {"loguniform": [1e-4, 1e-2]}},
        "trials": 2,
        "scheduler": {"name": "none"},
    }
    path, log = tmp_path / "sweep.yaml", tmp_path / "sweep.log"
    for trials in (2, 3):
        path.write_text(yaml.safe_dump({**sweep, "trials": trials}))
        done = run_job("tune", [path], log, timeout=600, directory=tmp_path, environment={**os.environ, **KEYS})
        assert done.returncode == 0, done.output
    directory = locate(uri("runs/search"))
    assert "sweep.json" in directory.children()
    trials = [name for name in directory.children() if "trial.json" in (directory / name).children()]
    assert len(trials) == 3, directory.children()
    for name in trials:
        assert json.loads((directory / name / "trial.json").read_bytes())


def test_a_bucket_that_is_not_there_is_named(uri, tmp_path):
    e = experiment(tmp_path, uri, storage=uri("x").replace("bucket/x", "nowhere/runs"), tracking__enabled=False)
    path, log = job(e, tmp_path)
    done = run_job("train", [path], log, directory=tmp_path)
    assert done.returncode == 2, done.output
    assert "nowhere" in done.output
    assert "Traceback" not in done.output
