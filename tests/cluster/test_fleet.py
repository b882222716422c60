"""Predictions and imports on a Ray cluster: the results of one process, whichever of them end on the way."""

import json
import os
from contextlib import closing

import psutil
import pytest

from mgdet.cluster import fleet
from mgdet.cluster.fleet import predict_on_cluster, prepare_on_cluster
from mgdet.data import import_shared, writer
from mgdet.data.formats.coco import Coco
from mgdet.errors import ClusterError, DataError
from mgdet.inference import evaluate_shared, predict_shared
from mgdet.inference.evaluate import evaluate_trained
from mgdet.inference.load import load_detector
from mgdet.inference.predict import Options, predict
from mgdet.inference.predict_shared import PredictionPlan
from mgdet.runs.config import ClusterConfig
from tests.cluster.clusters import ray_children
from tests.data.scenes import Scene
from tests.trained_runs import call, import_job, train

pytestmark = pytest.mark.slow
LOW = Options(score=0.006)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fleet")
    train(directory, "retinanet", train__epochs=1, data__generate__train=16)
    return str(directory / "runs" / "retinanet")


@pytest.fixture
def photos(run, tmp_path, monkeypatch):
    """16 images in eight portions."""
    from mgdet.data import ShardedDataset

    monkeypatch.setattr(predict_shared, "SIZE", 2)
    dataset = ShardedDataset(load_detector(run).experiment.data.uri, "train")
    directory = tmp_path / "photos"
    directory.mkdir()
    for row in range(16):
        (directory / f"{row:02d}.jpg").write_bytes(dataset.read_image(row))
    return directory


def processes():
    """Those that do portions."""
    found = []
    for process in ray_children():
        try:
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it has ended
            continue
    return found


def disturb(monkeypatch):
    """Kill the processes whenever they have given their first answer, and end the first command there.

    Returns the processes that were killed, and what was to be done each time: the name of the work, and how many
    portions.
    """
    killed, given = [], []
    spread = fleet._spread

    def disturbed(work, wanted, **how):
        given.append((type(work).__name__, len(wanted)))
        with closing(spread(work, wanted, **how)) as answers:
            for count, done in enumerate(answers):
                if count == 0:
                    for process in processes():
                        process.kill()
                        killed.append(process.pid)
                yield done
                if len(given) == 1:
                    raise RuntimeError("the driver ends")

    monkeypatch.setattr(fleet, "_spread", disturbed)
    return killed, given


def test_processes_that_are_killed_change_nothing(shared, run, photos, tmp_path, monkeypatch, capfd):
    """They are killed when the first portion is done; the first try ends there, with one portion kept."""
    predict(load_detector(run), [str(photos)], str(tmp_path / "one"), options=LOW)
    config = ClusterConfig(address=shared["cluster__address"], workers=2)
    killed, given = disturb(monkeypatch)
    out = tmp_path / "two"
    with pytest.raises(RuntimeError):
        predict_on_cluster(run, [str(photos)], str(out), config, options=LOW)
    job = import_job("predict")
    arguments = ["--score", 0.006, "--workers", 2, "--address", shared["cluster__address"]]
    answer = call(job, run, photos, "--out", out, *arguments)
    assert answer.status == 0, answer.err
    assert len(killed) >= 2, "at least one in each try: the other one may still be starting"
    assert given[0] == ("Prediction", 8)
    assert all(1 <= left <= 7 for _, left in given[1:]), "unless all were done before the first answer was heard"
    assert f"detections in 16 images; written to {out}" in answer.out
    for name in ("detections.json", "images.json"):
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert "constructor arguments" not in capfd.readouterr().err


def test_errors_of_a_process_are_those_of_the_command(shared, run, photos, tmp_path):
    asked = {"address": shared["cluster__address"], "workers": 1}
    config = ClusterConfig(**asked)

    class Gone(PredictionPlan):
        def run(self, spread):
            (photos / "03.jpg").unlink()
            return super().run(spread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet, "PredictionPlan", Gone)
        with pytest.raises(DataError, match=r"03\.jpg was listed, and is not there on"):
            predict_on_cluster(run, [str(photos)], str(tmp_path / "out"), config, options=LOW)

    class Broken(predict_shared.Prediction):  # local, so that it is sent as it is
        def __call__(self, portion):
            raise ValueError("a fault of the program")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_shared, "Prediction", Broken)
        with pytest.raises(ClusterError, match="the work stopped: ValueError: a fault of the program"):
            predict_on_cluster(run, [str(photos)], str(tmp_path / "other"), config, options=LOW)
    with pytest.raises(ClusterError, match="the workers do not fit: 50 workers x 1 CPUs = 50 CPUs"):
        predict_on_cluster(run, [str(photos)], str(tmp_path / "other"), ClusterConfig(**{**asked, "workers": 50}))


def test_an_evaluation_has_the_numbers_of_one_process(shared, run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_shared, "SIZE", 1)
    expected = evaluate_trained(load_detector(run, ["train.batch_size=1"]))
    out, address = tmp_path / "judged", shared["cluster__address"]
    arguments = ["--out", out, "--workers", 1, "--address", address, "--json", tmp_path / "metrics.json"]
    answer = call(import_job("evaluate"), run, "train.batch_size=1", *arguments)
    assert answer.status == 0, answer.err
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["metrics"] == expected.metrics
    assert json.loads((out / "metrics.json").read_text()) == found
    assert "report.html" in os.listdir(out)
    assert "portions" not in os.listdir(out)


def test_an_import_has_the_bytes_of_one_process_whichever_are_killed(shared, tmp_path, monkeypatch, capfd):
    """All processes are killed when the first portion is checked, and again when the first shard is written.

    The first command ends in the middle of the checks; what it did is kept.
    """
    for module in (import_shared, writer):
        monkeypatch.setattr(module, "ROWS_PER_SHARD", 3)
    monkeypatch.setattr(import_shared, "SIZE", 2)
    scene = Scene(tmp_path, count=12)
    scene.prepare(name="same")
    places = (tmp_path / "train.json", scene.images)
    config = ClusterConfig(address=shared["cluster__address"], workers=2, gpu=False)
    killed, given = disturb(monkeypatch)
    out = tmp_path / "two"
    with pytest.raises(RuntimeError):
        prepare_on_cluster(str(out), Coco(), [("train", places)], config, name="same")
    assert not out.exists()
    options = ["--name", "same", "--cluster", "--workers", 2, "--address", shared["cluster__address"]]
    answer = call(import_job("prepare"), "coco", "--split", "train", *places, "--out", out, *options)
    assert answer.status == 0, answer.err
    assert f"Written to {out}" in answer.out
    assert (given[0], given[-1]) == (("Checking", 6), ("Writing", 4))
    for name, rest in given[1:-1]:  # unless all were checked before the first answer was heard
        assert name == "Checking"
        assert 1 <= rest <= 5
    assert len(killed) >= 2, "at least one in each round: the other one may still be starting"
    for file in ("dataset.json", *(f"train/part-0000{number}.parquet" for number in range(4))):
        assert (out / file).read_bytes() == (scene.out / file).read_bytes(), file
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert "constructor arguments" not in capfd.readouterr().err


def test_an_import_names_all_images_that_cannot_be_used(shared, tmp_path):
    scene = Scene(tmp_path, count=3)
    (scene.images / "0002.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="image files cannot be used"):
        scene.prepare()
    config = ClusterConfig(address=shared["cluster__address"], workers=1, gpu=False)
    with pytest.raises(DataError, match=r"0002\.png: not a readable image \(8 bytes\)"):
        prepare_on_cluster(str(tmp_path / "two"), Coco(), [("train", (tmp_path / "train.json", scene.images))], config)
    assert not (tmp_path / "two").exists()
