"""Fixtures and experiments of the tests with an object store: a server on this machine that speaks S3."""

import subprocess
import sys
import urllib.request

import pytest

from tests.tracking_servers import free_port, wait_for

KEYS = {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "anything"}  # the server checks neither


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
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
def uri(s3_server, monkeypatch):
    """Gives the URI of a path in the bucket; the keys are in the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def of(path):
        return f"s3://bucket/{path}?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{s3_server}"

    return of


def experiment_in_a_bucket(tmp_path, uri, name="small", **changes):
    """Twelve steps of a small network, each in the journal, with a checkpoint after every fourth one."""
    from tests.small import STATEFUL, small_experiment  # imports PyTorch, which pytest's own process does not need

    small = {"train__epochs": 4, "train__evaluate_every": 4, "train__log_every": 1, **STATEFUL}
    places = {"storage": uri("runs"), "data__uri": uri("data/shapes")}
    return small_experiment(tmp_path, name=name, **{**small, **places, "train__checkpoint_every_steps": 4, **changes})


def job(e, tmp_path):
    path = tmp_path / f"{e.name}.yaml"
    path.write_text(e.to_yaml())
    return path, tmp_path / f"{e.name}.log"
