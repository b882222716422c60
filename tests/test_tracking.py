import errno
import json
import logging
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgdet.tracking import (
    Best,
    CloseReport,
    DataSet,
    JournalTracker,
    Mlflow,
    NewRun,
    NullTracker,
    Point,
    RunHandle,
    Tracker,
)
from mgdet.tracking.client import mlflow_name, resolve_uri, shown_uri
from mgdet.tracking.journal import Journal, Outbox, fresh
from tests.forked import CONTEXT
from tests.tracking_servers import Server, wait_for

DEAD = "http://127.0.0.1:9"
QUICK = {"send_every_s": 0.05, "retry_after_s": (0.1, 0.2), "flush_timeout_s": 20.0}


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A SQLite store in a directory whose name needs quoting; making its schema takes seconds, so once."""
    config = Mlflow(uri=f"sqlite:///{tmp_path_factory.mktemp('a store')}/mlflow.db", **QUICK)
    assert config.start(NewRun("first")) is not None
    return config


def start_run(config, **changes):
    handle = config.start(NewRun(**{"name": "run", **changes}))
    assert handle is not None
    return handle


def client_of(handle):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=handle.store)


def history(handle, key):
    return client_of(handle).get_metric_history(handle.run_id, key)


def steps(handle, key):
    return [m.step for m in history(handle, key)]


def records(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


# --- one run, from start to end


@pytest.mark.slow
def test_what_is_logged_is_found_in_the_store(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = {"train": {"lr": 0.1, "milestones": (8, 11)}, "note": "x" * 7000, "none": None, "empty": {}}
    params |= {f"many{i}": i for i in range(150)}
    handle = start_run(
        store, name="named", params=params, config_yaml="a: 1\n", parent_run_id="p" * 32, tags={"t": "1"}
    )
    tracker = store(handle, tmp_path / "run")
    before = time.time()
    tracker.log({"train/loss": np.float32(0.5), "train/lr": torch.tensor(0.25)}, 10)
    tracker.log({"train/loss": 0.25}, np.int64(20))
    after = time.time()
    picture = tmp_path / "p.png"
    picture.write_bytes(b"first")
    tracker.artifact(picture, "pictures/score_iou.png")
    picture.write_bytes(b"overwritten")
    tracker.artifact("text", "table.csv")
    report = tracker.close()

    assert report == CloseReport(sent=3)
    assert tracker.close() is report
    client = client_of(handle)
    run = client.get_run(handle.run_id)
    assert (run.info.status, run.info.run_name) == ("RUNNING", "named"), "the driver ends it"
    assert run.data.tags["mlflow.parentRunId"] == "p" * 32
    assert run.data.tags["t"] == "1"
    expected = {"train.lr": "0.1", "train.milestones": "(8, 11)", "none": "None", "empty": "{}", "many149": "149"}
    assert expected.items() <= run.data.params.items()
    assert len(run.data.params) == 155
    assert run.data.params["note"] == "x" * 5997 + "..."
    points = history(handle, "train/loss")
    assert [(m.step, m.value) for m in points] == [(10, 0.5), (20, 0.25)]
    assert all(int(before * 1000) <= m.timestamp <= after * 1000 for m in points)
    assert history(handle, "train/lr")[0].value == 0.25
    for name, content in {
        "config.yaml": b"a: 1\n",
        "pictures/score_iou.png": b"first",
        "table.csv": b"text",
    }.items():
        assert Path(client.download_artifacts(handle.run_id, name, str(tmp_path))).read_bytes() == content
    location = client.get_experiment(handle.group).artifact_location
    assert location == (Path(store.uri.removeprefix("sqlite:///")).parent / "mlruns" / "mgdet").as_uri()
    assert not (tmp_path / "mlflow.db").exists()
    assert not list((tmp_path / "run" / "unsent_artifacts").rglob("*.*"))


@pytest.mark.slow
def test_handle_is_plain_and_names_the_ui(store):
    handle = start_run(store)
    assert pickle.loads(pickle.dumps(handle)) == handle
    assert all(type(v) is str for v in (handle.run_id, handle.store, handle.group, *sum(handle.see, ())))
    assert f" ui --backend-store-uri '{store.uri}'" in dict(handle.see)["see it in MLflow"]


@pytest.mark.slow
def test_a_run_is_ended(store):
    handle = start_run(store)
    store.end(handle, "KILLED")
    assert client_of(handle).get_run(handle.run_id).info.status == "KILLED"


SPLITS = tuple(
    DataSet(f"shapes/{split}", use, digest, uri, {"images": n, "boxes": 3 * n})
    for split, use, digest, uri, n in (
        ("train", "training", "0123456789ab", "/data/shapes", 600),
        ("val", "validation", "ba9876543210", "s3://bucket/shapes", 30),
    )
)


@pytest.mark.slow
def test_a_run_names_its_data_sets_once(store):
    handle = start_run(store, data=SPLITS)
    start_run(store, data=SPLITS, run_id=handle.run_id)
    start_run(store, data=SPLITS)
    inputs = client_of(handle).get_run(handle.run_id).inputs.dataset_inputs
    found = {
        i.dataset.name: (i.dataset.digest, i.dataset.source_type, [(t.key, t.value) for t in i.tags]) for i in inputs
    }
    assert len(inputs) == 2
    assert found == {
        "shapes/train": ("0123456789ab", "local", [("mlflow.data.context", "training")]),
        "shapes/val": ("ba9876543210", "s3", [("mlflow.data.context", "validation")]),
    }
    assert {json.loads(i.dataset.source)["uri"] for i in inputs} == {"/data/shapes", "s3://bucket/shapes"}
    assert {json.loads(i.dataset.profile)["boxes"] for i in inputs} == {1800, 90}


@pytest.mark.slow
def test_the_best_checkpoint_is_a_model_to_which_its_metrics_are_linked(store, tmp_path):
    """Also where the metrics arrive later, and however often it is said; the run's own history stays as it is."""
    handle = start_run(store, name="a.b", data=SPLITS)
    best = Best("/runs/a.b/checkpoints/step-00000020.pt", 20, 2, {"val/AP": 0.5, "val/divergence": 0.25}, SPLITS[1])
    store.show_best(handle, best)
    tracker = store(handle, tmp_path)
    for step in (10, 20, 30):
        tracker.log({"val/AP": step / 40, "val/divergence": 0.25, "train/loss": 1.0}, step)
    tracker.close()
    client, histories = client_of(handle), [history(handle, key) for key in best.metrics]
    (model,) = client.search_logged_models([handle.group], f"source_run_id = '{handle.run_id}'")
    assert (model.status, model.metrics) == ("PENDING", None), "MLflow has none of its metrics yet"
    for _ in range(2):
        store.show_best(handle, best)
    (model,) = client.search_logged_models([handle.group], f"source_run_id = '{handle.run_id}'")
    assert (model.name, model.status, model.model_type) == ("a_b", "READY", "detector")
    assert model.tags == {"mgdet.checkpoint": best.checkpoint, "mlflow.model.isExternal": "true"}
    assert model.params == {"epoch": "2", "step": "20"}
    linked = {m.key: (m.value, m.step, m.dataset_name, m.dataset_digest) for m in model.metrics}
    assert linked == {k: (v, 20, "shapes/val", "ba9876543210") for k, v in best.metrics.items()}
    run = client.get_run(handle.run_id)
    assert [(o.model_id, o.step) for o in run.outputs.model_outputs] == [(model.model_id, 20)]
    assert [history(handle, key) for key in best.metrics] == histories
    assert run.data.metrics["val/AP"] == 0.75
    store.show_best(handle, best._replace(checkpoint="/another.pt", step=30, metrics={}))
    assert len(client.get_run(handle.run_id).outputs.model_outputs) == 2


@pytest.mark.slow
def test_a_store_that_is_away_costs_the_best_checkpoint_a_warning(tmp_path, caplog):
    away = Mlflow(uri=f"sqlite:///{tmp_path}/none.db")
    away.show_best(RunHandle("r", away.uri), Best("/a.pt", 1, 1, {}))
    assert "run r could not be given its best checkpoint" in caplog.text


@pytest.mark.slow
def test_metrics_arrive_while_the_run_goes_on(store, tmp_path):
    handle = start_run(store)
    tracker = store(handle, tmp_path)
    tracker.log({"a": 1}, 1)
    wait_for(lambda: steps(handle, "a") == [1])
    tracker.log({"a": 2}, 2)
    wait_for(lambda: steps(handle, "a") == [1, 2])
    assert tracker.close().sent == 2


@pytest.mark.slow
def test_more_metrics_than_one_request_takes(store, tmp_path):
    handle = start_run(store)
    tracker = store(handle, tmp_path)
    tracker.log({f"val/AP/{i}": i for i in range(1203)}, 5)
    assert tracker.close().sent == 1203
    assert len(client_of(handle).get_run(handle.run_id).data.metrics) == 1203


# --- awkward values


@pytest.mark.slow
def test_values_that_are_not_finite_stay_valid_json(store, tmp_path):
    handle = start_run(store)
    tracker = store(handle, tmp_path)
    tracker.log({"nan": math.nan, "inf": math.inf, "low": -math.inf}, 1)
    tracker.log({"nan": 2.0}, 2)
    assert tracker.close().sent == 4
    assert records(tmp_path)[0]["metrics"] == {"nan": "NaN", "inf": "Infinity", "low": "-Infinity"}
    assert [math.isnan(m.value) for m in history(handle, "nan")] == [True, False]
    assert math.isnan(history(handle, "inf")[0].value)


@pytest.mark.slow
def test_names_that_mlflow_refuses(store, tmp_path):
    names = ("val/AP/cell (red)", "val/AP/a//b", "../up", "val/AP/größe", "x" * 300, "/root", "new\nline", "")
    handle = start_run(store, params=dict.fromkeys(names, 1))
    tracker = store(handle, tmp_path)
    tracker.log(dict.fromkeys(names, 1.0), 1)
    report = tracker.close()
    assert (report.sent, report.unsent) == (8, 0)
    assert set(records(tmp_path)[0]["metrics"]) == set(names)
    data = client_of(handle).get_run(handle.run_id).data
    assert {mlflow_name(name) for name in names} == set(data.metrics)
    assert "val/AP/größe" in data.metrics, "what MLflow takes stays as it is"
    assert set(data.params) == set(data.metrics)


@pytest.mark.slow
def test_a_value_that_is_no_number_costs_one_warning(tmp_path, caplog):
    tracker = JournalTracker(tmp_path)
    for step in range(3):
        tracker.log({"good": 1.0, "bad": "text", "many": np.zeros(3)}, step)
    tracker.log({"good": 1.0}, None)
    tracker.log({}, 9)
    tracker.artifact(b"", "../outside")
    tracker.artifact(tmp_path / "missing", "a.png")
    assert [r["metrics"] for r in records(tmp_path)] == [{"good": 1.0}] * 3
    assert [r.message.split(" is not")[0] for r in caplog.records] == [
        "metric bad",
        "metric many",
        "step",
        "artifact ../outside",
        "artifact a.png",
    ]


@pytest.mark.slow
def test_full_disk_neither_raises_nor_repeats_itself(tmp_path, monkeypatch, caplog):
    tracker = JournalTracker(tmp_path)
    tracker.log({"a": 1.0}, 1)
    write, room = os.write, [10, 0, 0]

    def nearly_full(fd, data):
        if not (left := room.pop(0)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:left])

    with monkeypatch.context() as patch:
        patch.setattr("mgdet.tracking.journal.os.write", nearly_full)
        for step in (2, 3, 4):
            tracker.log({"a": 1.0, "b": 2.0}, step)
    tracker.log({"a": 5.0}, 5)
    report = tracker.close()
    assert (report.unsent, report.lost) == (2, 6)
    assert len(caplog.records) == 1
    assert "disk may be full" in caplog.text
    assert [(p.key, p.step) for p in Journal(tmp_path / "metrics.jsonl").points()] == [("a", 1), ("a", 5)]


@pytest.mark.slow
def test_unwritable_directory_is_no_error(tmp_path, caplog):
    (tmp_path / "run").write_text("a file where a directory is needed")
    tracker = JournalTracker(tmp_path / "run")
    tracker.log({"a": 1.0}, 1)
    tracker.artifact("text", "a.txt")
    assert tracker.close() == CloseReport(lost=1)
    assert len(caplog.records) == 2


@pytest.mark.slow
def test_log_is_cheap(tmp_path):
    tracker = JournalTracker(tmp_path)
    metrics = {f"train/metric{i}": i / 7 for i in range(12)}
    costs = []
    for step in range(500):
        start = time.perf_counter()
        tracker.log(metrics, step)
        costs.append(time.perf_counter() - start)
    assert sorted(costs)[250] < 1e-3


# --- restarts


@pytest.mark.slow
def test_replayed_steps_stand_once(store, tmp_path):
    handle = start_run(store, params={"lr": 0.1, "same": 1}, config_yaml="a: 1")
    tracker = store(handle, tmp_path)
    for step in range(1, 121):
        tracker.log({"loss": 1.0 / step}, step)
        if step == 100:
            tracker.log({"AP": 0.5}, step)
    assert tracker.close().sent == 121

    again = start_run(store, run_id=handle.run_id, params={"lr": 0.1, "same": 1})
    assert (again.run_id, again.group) == (handle.run_id, handle.group)
    tracker = store(again, tmp_path)
    for step in range(101, 141):
        tracker.log({"loss": 2.0 / step}, step)
        if step == 130:
            tracker.log({"AP": 0.6}, step)
    assert tracker.close() == CloseReport(sent=21)
    assert steps(again, "loss") == list(range(1, 141))
    assert history(again, "loss")[110].value == 1.0 / 111  # the first value of a step stays
    assert steps(again, "AP") == [100, 130]
    marked = [r["step"] for r in records(tmp_path) if r.get("replay")]
    assert marked == list(range(101, 121))


@pytest.mark.slow
def test_replay_is_known_without_the_journal(store, tmp_path):
    handle = start_run(store)
    for directory, first in (("one", 1), ("two", 5)):
        tracker = store(handle, tmp_path / directory)
        for step in range(first, first + 10):
            tracker.log({"loss": 1.0}, step)
        tracker.close()
    assert steps(handle, "loss") == list(range(1, 15))


@pytest.mark.slow
def test_a_parameter_that_changed_stays_and_is_told(store, caplog):
    handle = start_run(store, params={"lr": 0.1, "same": 1})
    store.end(handle, "FAILED")
    start_run(store, run_id=handle.run_id, params={"lr": 0.2, "same": 1, "new": 3})
    run = client_of(handle).get_run(handle.run_id)
    assert run.data.params == {"lr": "0.1", "same": "1", "new": "3"}
    assert run.info.status == "RUNNING"
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "MLflow keeps parameter lr = 0.1 of the first start; now it is 0.2."
    ]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["unknown", "deleted"])
def test_a_run_that_is_gone_is_made_anew_with_its_history(store, tmp_path, caplog, how):
    old = start_run(store)
    tracker = store(old, tmp_path)
    tracker.log({"a": 1.0}, 1)
    assert tracker.close().sent == 1
    if how == "deleted":
        client_of(old).delete_run(old.run_id)
    handle = start_run(store, run_id=old.run_id if how == "deleted" else "0" * 32)
    assert handle.run_id != old.run_id
    assert "any more" in caplog.text
    tracker = store(handle, tmp_path)
    tracker.log({"a": 2.0}, 2)
    tracker.close()
    assert steps(handle, "a") == [1, 2]


def exit_codes(function, arguments):
    """Of one process for each tuple of arguments, all at the same time."""
    processes = [CONTEXT.Process(target=function, args=values) for values in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def log_100_steps_and_die(handle, directory, sends):
    tracker = Mlflow(send_every_s=0.05 if sends else 60.0)(handle, directory)
    for step in range(1, 51):
        tracker.log({"loss": step, "lr": 0.5}, step)
    while sends and tracker._sender.sent < 100:
        time.sleep(0.01)
    for step in range(51, 101):
        tracker.log({"loss": step, "lr": 0.5}, step)
    tracker.artifact(b"late", "pictures/late.png")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("sends", ["nothing", "sends"])
def test_killed_process_loses_nothing(store, tmp_path, sends):
    handle = start_run(store)
    assert exit_codes(log_100_steps_and_die, [(handle, tmp_path, sends == "sends")]) == [-signal.SIGKILL]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step":101,"time":1.0,"met')  # as if killed in mid-write
    tracker = store(handle, tmp_path)
    for step in range(81, 121):
        tracker.log({"loss": -step, "lr": 0.5}, step)
    report = tracker.close()
    for key in ("loss", "lr"):
        assert steps(handle, key) == list(range(1, 121))
    assert [m.value for m in history(handle, "loss")] == [*range(1, 101), *range(-101, -121, -1)]
    assert (report.unsent, report.unsent_artifacts) == (0, 0)
    assert [a.path for a in client_of(handle).list_artifacts(handle.run_id, "pictures")] == ["pictures/late.png"]


# --- stores that are away


@pytest.mark.slow
def test_no_store_in_reach_is_no_error(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = Mlflow(uri=DEAD, **{**QUICK, "flush_timeout_s": 10.0})
    assert config.start(NewRun("run")) is None
    assert "metrics.jsonl" in caplog.text
    handle = RunHandle("0" * 32, DEAD, "1")
    tracker = config(handle, tmp_path)
    for step in range(20):
        tracker.log({"a": step, "b": step}, step)
    tracker.artifact("text", "dir/a.txt")
    time.sleep(1.0)
    start = time.monotonic()
    report = tracker.close()
    assert time.monotonic() - start < 11
    assert report == CloseReport(unsent=40, unsent_file=tmp_path / "metrics.jsonl", unsent_artifacts=1)
    assert [r["step"] for r in records(tmp_path)] == list(range(20))
    assert (tmp_path / "unsent_artifacts" / "dir" / "a.txt").read_text() == "text"
    assert caplog.text.count("does not take metrics") == 1
    config.end(handle, "FAILED")


@pytest.mark.slow
def test_close_does_not_wait_for_a_store_that_hangs(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = Mlflow(request_timeout_s=5, **{**QUICK, "flush_timeout_s": 0.3})
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        handle = RunHandle("0" * 32, f"http://127.0.0.1:{silent.getsockname()[1]}", "1")
        tracker = config(handle, tmp_path)
        tracker.log({"a": 1}, 1)
        start = time.monotonic()
        assert tracker.close().unsent == 1
        assert time.monotonic() - start < 1.5


@pytest.mark.slow
def test_what_was_kept_is_sent_when_the_store_is_back(store, tmp_path):
    tracker = store(None, tmp_path)
    tracker.log({"a": 1.0}, 1)
    tracker.artifact("text", "a.txt")
    assert tracker.close() == CloseReport(unsent=1, unsent_file=tmp_path / "metrics.jsonl", unsent_artifacts=1)
    handle = start_run(store)
    assert store(handle, tmp_path).close() == CloseReport(sent=1)
    assert steps(handle, "a") == [1]
    assert [a.path for a in client_of(handle).list_artifacts(handle.run_id)] == ["a.txt", "config.yaml"]


@pytest.mark.slow
def test_worker_makes_no_empty_database(tmp_path, caplog):
    handle = RunHandle("0" * 32, f"sqlite:///{tmp_path}/elsewhere.db", "1")
    tracker = Mlflow(**QUICK)(handle, tmp_path / "run")
    tracker.log({"a": 1.0}, 1)
    assert tracker.close().unsent == 1
    assert not (tmp_path / "elsewhere.db").exists()
    assert "MLFLOW_TRACKING_URI" in caplog.text


@pytest.mark.slow
def test_an_artifact_that_fails_holds_up_nothing_else(store, tmp_path):
    handle = start_run(store)
    artifacts = Path(client_of(handle).get_run(handle.run_id).info.artifact_uri.removeprefix("file://"))
    artifacts = Path(str(artifacts).replace("%20", " "))
    (artifacts / "bad").write_text("a file where a directory is needed")
    tracker = store(handle, tmp_path)
    tracker.artifact("1", "bad/a.txt")
    tracker.artifact("2", "good/b.txt")
    tracker.log({"a": 1.0}, 1)
    wait_for(lambda: (artifacts / "good" / "b.txt").exists() and steps(handle, "a") == [1])
    assert tracker.close().unsent_artifacts == 1


# --- small parts


@pytest.mark.slow
def test_null_tracker_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker: Tracker = NullTracker()
    tracker.log({"a": 1.0}, 1)
    tracker.artifact("x", "a.txt")
    tracker.close()
    assert not list(tmp_path.iterdir())
    assert Mlflow(enabled=False).start(NewRun("n")) is None


@pytest.mark.slow
def test_uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri("auto") == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri("sqlite:///sub/a.db") == f"sqlite:///{tmp_path}/sub/a.db"
    assert resolve_uri("sqlite:////abs/a.db") == "sqlite:////abs/a.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert resolve_uri("auto") == "http://host:5000"
    assert shown_uri("postgresql://me:secret@host/db") == "postgresql://host/db"


@pytest.mark.slow
def test_importing_costs_no_mlflow():
    code = "import sys, mgdet.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_artifact_replaced_while_it_is_sent_stays(tmp_path):
    outbox = Outbox(tmp_path / "out")
    outbox.put("old", "a.txt")
    (path,) = outbox.waiting()
    version = outbox.version(path)
    outbox.put("new", "a.txt")
    outbox.sent(path, version)
    assert path.read_text() == "new"
    outbox.sent(path, outbox.version(path))
    assert outbox.waiting() == []


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=6))
def test_fresh_keeps_each_step_of_a_run_with_restarts_once(restarts):
    """Each restart goes back to any step reached before, then some way on; wherever the sending was interrupted."""
    made, reached = [], 0
    for back, length in restarts:
        start = max(0, reached - back)
        made += [Point("k", float(len(made)), 0, step) for step in range(start + 1, start + length + 1)]
        reached = max(reached, start + length)
    whole = list(fresh(made, {}))
    assert [p.step for p in whole] == list(range(1, reached + 1))
    for cut in range(len(whole)):
        assert whole[: cut + 1] + list(fresh(made, {"k": whole[cut].step})) == whole


@pytest.mark.slow
@given(st.text(max_size=40) | st.text(alphabet="x./", min_size=240, max_size=260))
def test_names_are_accepted_by_mlflow(name):
    from mlflow.utils.validation import _validate_metric_name

    clean = mlflow_name(name)
    _validate_metric_name(clean)
    assert mlflow_name(clean) == clean


@pytest.mark.slow
@given(st.text(max_size=12), st.text(max_size=12))
def test_different_names_have_different_keys(a, b):
    for one, other in ((a, b), ("a&b", "a%b"), ("x" * 300 + a, "x" * 300 + b), (f"{a}&", f"{a}%")):
        assert (mlflow_name(one) == mlflow_name(other)) == (one == other)
    assert mlflow_name("val/AP/red cell") == "val/AP/red cell"


# --- with processes and servers


@pytest.mark.slow
def test_metrics_made_while_the_server_was_away_arrive_once(tmp_path):
    server = Server(tmp_path)
    uri = server.uri
    config = Mlflow(uri=uri, request_retries=0, send_every_s=0.1, retry_after_s=(0.2, 0.5))
    server.start()
    try:
        handle = start_run(config, params={"a": {"b": 1}}, config_yaml="x: 1")
        address = f"{uri}/#/experiments/{handle.group}/runs/{handle.run_id}?workflowType=machine_learning"
        assert dict(handle.see)["this run"] == address
        tracker = config(handle, tmp_path / "run")
        for step in range(1, 11):
            tracker.log({"loss": step, "nan": math.nan}, step)
        wait_for(lambda: tracker._sender.sent == 20)  # also answered: the server has a point before it says so
        assert steps(handle, "loss") == list(range(1, 11))
        server.kill()
        for step in range(11, 31):
            tracker.log({"loss": step, "nan": math.nan}, step)
        tracker.artifact(b"late", "pictures/late.png")
        time.sleep(2)
        assert tracker._sender.sent == 20
        server.start()
        wait_for(lambda: steps(handle, "loss") == list(range(1, 31)))
        tracker.log({"loss": 31}, 31)
        assert tracker.close() == CloseReport(sent=61)
        points = history(handle, "loss")
        assert [m.step for m in points] == list(range(1, 32))
        assert points[11].timestamp < points[30].timestamp - 2000  # when it was logged, not when it arrived
        assert [math.isnan(m.value) for m in history(handle, "nan")] == [True] * 30
        config.end(handle, "FINISHED")
        assert client_of(handle).get_run(handle.run_id).info.status == "FINISHED"
        again = start_run(config, run_id=handle.run_id, params={"a": {"b": 1}})
        assert again.run_id == handle.run_id
        tracker = config(again, tmp_path / "other directory")
        for step in range(25, 36):
            tracker.log({"loss": step}, step)
        assert tracker.close().sent == 4
        assert steps(handle, "loss") == list(range(1, 36))
        assert start_run(config, run_id="0" * 32).run_id != handle.run_id
        names = {a.path for f in (None, "pictures") for a in client_of(handle).list_artifacts(handle.run_id, f)}
        assert names == {"config.yaml", "pictures", "pictures/late.png"}
    finally:
        server.kill()


def write_600_points(handle, directory):
    tracker = Mlflow(send_every_s=0.01)(handle, directory)
    for step in range(1, 301):
        tracker.log({"loss": step, "lr": step}, step)
        time.sleep(0.005)
    report = tracker.close()
    sys.exit(report.sent != 600 or report.unsent != 0)


@pytest.mark.slow
def test_two_processes_share_a_prepared_sqlite_file(store, tmp_path):
    handles = [start_run(store, name=f"writer{i}") for i in range(2)]
    assert exit_codes(write_600_points, [(handle, tmp_path / str(i)) for i, handle in enumerate(handles)]) == [0, 0]
    for handle in handles:
        assert steps(handle, "loss") == steps(handle, "lr") == list(range(1, 301))


def start_a_run(uri):
    sys.exit(Mlflow(uri=uri).start(NewRun("n")) is None)


@pytest.mark.slow
def test_two_drivers_may_make_one_database_at_the_same_time(tmp_path):
    assert exit_codes(start_a_run, 2 * [(f"sqlite:///{tmp_path}/new.db",)]) == [0, 0]
