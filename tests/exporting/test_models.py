"""Models in MLflow: of each run that asks for it, and the registered one, used where there is no torch and no Ray."""

import base64
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import mgdet
from mgdet.errors import ConfigError
from mgdet.runs import model as runs_model
from mgdet.runs.launch import train_in_process
from mgdet.tracking import Best, Mlflow, ModelFiles, NewRun
from mgdet.tracking.models import log_files
from tests.exporting.networks import require_same
from tests.small import small_experiment
from tests.tracking_servers import free_port, wait_for

ELSEWHERE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "ray", "mgdet"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/cells@best")
found = model.predict([open(sys.argv[2], "rb").read()], params={"score": 0.01})
print(json.dumps({"found": found, "signature": str(model.metadata.signature), "loaded": "torch" in sys.modules}))
"""


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A trained run whose model is registered as `cells`, its store and a picture."""
    directory = tmp_path_factory.mktemp("models")
    store = f"sqlite:///{directory}/mlflow.db"
    experiment = small_experiment(
        directory,
        tracking={"uri": store, "register": "cells", "call_timeout_s": 3600},
        model__postprocess={"score_threshold": 0.005},
        train__epochs=4,
        train__optimizer={"name": "adamw", "lr": 1e-3},  # scores that differ from each other
    )
    try:
        train_in_process(experiment)
    finally:
        torch.use_deterministic_algorithms(False)
    picture = directory / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    return experiment, store, picture


def client_of(store):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store)


@pytest.mark.slow
def test_a_registered_model_detects_without_torch_and_ray(registered):
    experiment, store, picture = registered
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, store, str(picture)], capture_output=True, text=True, cwd=picture.parent
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    expected = mgdet.load(experiment.run_uri, device="cpu").predict(picture, score=0.01)
    (found,) = said["found"]
    assert len(found["scores"]) == len(expected) > 0
    ids = [c.id for c in expected.classes]
    labels = [ids.index(i) for i in found["category_ids"]]
    assert found["names"] == [expected.classes[label].name for label in labels]
    rows = SimpleNamespace(boxes=found["boxes"], scores=found["scores"], labels=labels)
    require_same(rows, expected, experiment.model.postprocess, 0.01)
    assert not said["loaded"]
    assert "binary" in said["signature"]
    assert "score" in said["signature"]


@pytest.mark.slow
def test_the_model_is_in_the_run_and_nothing_is_done_twice(registered, monkeypatch):
    experiment, store, _ = registered
    client = client_of(store)
    (version,) = client.search_model_versions("name = 'cells'")
    assert client.get_model_version_by_alias("cells", "best").version == version.version
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert float(version.tags["val/AP"]) >= 0
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert model.status == "READY"
    assert "mlflow.model.isExternal" not in model.tags
    names = {path.name for path in Path(model.artifact_location.removeprefix("file://")).rglob("*")}
    assert {"MLmodel", "model.onnx", "runtime.py", "served.py", "input_example.json"} <= names
    assert not any(name.endswith(".pkl") for name in names)
    monkeypatch.setattr(runs_model, "export_detector", None)  # calling it would be a failure, and a warning
    train_in_process(experiment)
    assert len(client.search_model_versions("name = 'cells'")) == 1
    assert runs_model.TAG not in client.get_run(version.run_id).data.tags


@pytest.mark.slow
def test_the_alias_is_that_of_the_best_run(registered, tmp_path):
    _, store, _ = registered
    config = Mlflow(uri=store, call_timeout_s=3600)
    (tmp_path / "x.onnx").write_bytes(b"")
    files = ModelFiles(tmp_path / "x.onnx", tmp_path / "x.onnx", b"")
    client = client_of(store)
    for name, metrics in (("a", {"val/AP": 0.2}), ("b", {"val/AP": 0.9}), ("c", {"val/AP": 0.5}), ("d", {})):
        handle = config.start(NewRun(name))
        best = Best(f"/{name}.pt", 1, 1, metrics)
        config.show_best(handle, best)
        log_files(client, handle.run_id, best, files, "others", save=lambda place, files: place.mkdir())
    at_best = client.get_model_version_by_alias("others", "best")
    assert at_best.tags["val/AP"] == "0.9"
    assert len(client.search_model_versions("name = 'others'")) == 4


@pytest.mark.slow
def test_mlflow_serves_it_over_http(registered):
    _, store, picture = registered
    port = free_port()
    environment = {"MLFLOW_TRACKING_URI": store, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it starts uvicorn by name
    command = ["models", "serve", "-m", "models:/cells@best", "--env-manager", "local", "--port", str(port)]
    log = picture.parent / "serve.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            env=os.environ | environment,
            stdout=file,
            stderr=file,
            cwd=picture.parent,
        )
    try:

        def up():
            assert server.poll() is None, log.read_text()
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).status == 200
            except OSError:
                return False

        wait_for(up, 600)
        body = {"inputs": [base64.b64encode(picture.read_bytes()).decode()], "params": {"score": 0.01}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        (found,) = json.load(urllib.request.urlopen(request, timeout=600))["predictions"]
        assert len(found["boxes"]) == len(found["names"]) > 0
    finally:
        server.terminate()
        server.wait(60)


def test_a_failed_export_costs_a_finished_run_a_warning(tmp_path, monkeypatch, caplog):
    said = {}

    class Store:
        has_model = staticmethod(lambda handle, best: False)
        tag = staticmethod(lambda handle, tags: said.update(tags))

    class Run:
        tracking, plugins, run_uri = Store, (), "/runs/x"

    runs_model.keep_model(Run, None, Best(str(tmp_path / "none.pt"), 1, 1, {}))
    assert "the model of /runs/x was not logged" in caplog.text
    assert said[runs_model.TAG].startswith("not logged: ")


def test_missing_packages_are_told_before_the_training(tmp_path, monkeypatch):
    from mgdet.exporting import packages

    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "onnxruntime" else name)
    experiment = small_experiment(tmp_path, tracking={"log_model": True, "uri": f"sqlite:///{tmp_path}/m.db"})
    with pytest.raises(ConfigError, match=r"needs onnxruntime: install the extra, pip install 'mgdet\[export\]'"):
        train_in_process(experiment)
    assert not Path(experiment.run_uri, "checkpoints").exists()
