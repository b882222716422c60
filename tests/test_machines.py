"""`tracking.system_metrics_every_s`: samples of a machine in MLflow, and what happens where they cannot be sent."""

import contextlib
import logging
import sys
import threading
from types import SimpleNamespace

import pytest

from mgdet.tracking import Mlflow, NewRun, NoTracking
from mgdet.tracking.machines import MachineMonitor, mlflow_sampler


class Client:
    """Takes requests; the first one fails."""

    def __init__(self):
        self.batches, self.twice, self.failures = [], threading.Event(), 1

    def get_run(self, run_id):
        return SimpleNamespace(info=SimpleNamespace(start_time=1000))

    def log_batch(self, run_id, metrics, synchronous):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the server is away")
        self.batches.append((run_id, metrics))
        if len(self.batches) == 2:
            self.twice.set()


def test_samples_go_on_after_a_failure(monkeypatch, caplog):
    entities = SimpleNamespace(Metric=lambda key, value, ms, step: (key, value, ms, step))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(entities=entities))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    client = Client()
    with caplog.at_level(logging.WARNING, logger="mgdet"):
        monitor = MachineMonitor(lambda: client, "r1", "10.0.0.1", 0.01, 60, lambda: lambda: {"cpu": 50.0})
        with monitor:
            assert client.twice.wait(60)
    (run_id, [(key, value, ms, step)]), *_ = client.batches
    assert (run_id, key, value) == ("r1", "system/10.0.0.1/cpu", 50.0)
    assert step == ms // 1000 - 1, "seconds since the run began"
    assert caplog.text.count("MLflow does not get the state of this machine") == 1
    monitor._thread.join(60)
    assert not monitor._thread.is_alive(), "it ends by itself"


def test_nothing_is_watched_unless_it_is_asked_for():
    nothing = contextlib.nullcontext
    asked = Mlflow(system_metrics_every_s=10)
    handle = SimpleNamespace(store="sqlite:///x.db", run_id="r")
    assert isinstance(Mlflow().watch_machine(handle, "node"), nothing)
    assert isinstance(NoTracking().watch_machine(handle, "node"), nothing)
    assert isinstance(asked.watch_machine(None, "node"), nothing)
    assert isinstance(asked.watch_machine(handle, "node"), MachineMonitor)


@pytest.mark.slow
def test_mlflow_shows_a_machine(tmp_path):
    """With MLflow's own monitors and a real store."""
    tracking = Mlflow(uri=f"sqlite:///{tmp_path}/mlflow.db", call_timeout_s=600)
    handle = tracking.start(NewRun(name="run"))
    client = tracking._client(handle.store)
    monitor = MachineMonitor(lambda: client, handle.run_id, "node", 1, 60, mlflow_sampler)
    monitor._send()
    found = client.get_run(handle.run_id).data.metrics
    assert {"system/node/cpu_utilization_percentage", "system/node/disk_usage_percentage"} <= found.keys()
