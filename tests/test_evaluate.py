"""`jobs/evaluate.py`: the training's own numbers from its checkpoint, and what is said where that cannot be."""

import copy
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from mgdet.config import Experiment
from mgdet.data import ShardedDataset
from mgdet.errors import CheckpointError
from mgdet.inference import evaluate as evaluation
from mgdet.inference.evaluate import _tell_other_data
from mgdet.inference.load import _sharing, load_detector
from mgdet.records import seal, unseal
from mgdet.text import metric_text
from mgdet.training.checkpoint import CheckpointStore, read_checkpoint
from mgdet.training.loop import Worker
from mgdet.training.progress import ProgressLog
from tests.small import small_experiment
from tests.trained_runs import MODELS, call, import_job, refused, train

job = import_job("evaluate")


class Run(NamedTuple):
    """A training that ended."""

    directory: Path
    experiment: Experiment
    worker: Worker

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.directory / "checkpoints").glob("*.pt"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("evaluate")
    return {name: Run(directory / "runs" / name, *train(directory, name)) for name in MODELS}


@pytest.fixture
def run(runs):
    return runs["retinanet"]


def copy_checkpoints(run, directory, metrics):
    """A run with the checkpoints of another one, which count as evaluated with `metrics`."""
    (directory / "checkpoints").mkdir(parents=True)
    for path, values in zip(run.checkpoints, metrics, strict=True):
        os.link(path, directory / "checkpoints" / path.name)
        info = {**unseal(path.with_suffix(".json").read_bytes()), "metrics": values}
        (directory / "checkpoints" / path.name).with_suffix(".json").write_bytes(seal(info))
    return directory


# --- the same numbers


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_checkpoint_gives_exactly_the_metrics_of_its_training(runs, tmp_path, name):
    infos = CheckpointStore(str(runs[name].directory)).committed()
    assert [i.epoch for i in infos] == [1, 2]
    for info, path in zip(infos, runs[name].checkpoints, strict=True):
        answer = call(job, path, "--json", tmp_path / "deep" / "metrics.json")
        assert answer.status == 0, answer.err
        written = json.loads((tmp_path / "deep" / "metrics.json").read_text())
        assert written["metrics"] == info.metrics
        assert "val/divergence_pre_nms_oracle" in info.metrics, "the detector finds enough to compare"
        assert (written["step"], written["images"], written["split"]) == (info.step, 3, "val")
        shown = dict(re.findall(r"^(val/\S+) +(\S+)$", answer.out, re.MULTILINE))
        assert shown == {k: metric_text(info.metrics[k]) for k in shown}
        assert {"val/AP", "val/divergence_recall", "val/divergence_pre_nms"} <= shown.keys()
        assert {k for k in info.metrics if k.startswith("val/AP/")} <= shown.keys()


@pytest.mark.slow
def test_images_are_batched_as_by_the_workers_of_the_training(run):
    """With padding, what an image is padded to depends on its batch."""
    trained = load_detector(str(run.directory))
    assert (trained.shards, trained.batch_size) == (1, 2)
    dataset = ShardedDataset(trained.experiment.data.uri, "train")  # six images
    batches = evaluation._batches(dataset, trained._replace(shards=2))
    assert [b.positions.tolist() for b in batches] == [[0, 1], [2], [3, 4], [5]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("position", "overrides", "expected"),
    [
        ({}, {}, (4, 3)),
        ({"world": 2, "batch_size": 6}, {}, (2, 6)),
        ({"world": 0, "batch_size": 0}, {}, (4, 3)),
        ({"world": 2, "batch_size": 6}, {"train.batch_size": 24}, (1, 24)),
    ],
    ids=["as configured", "as it was at the checkpoint", "not known", "override"],
)
def test_shards_and_batches_of_a_training_with_workers(tmp_path, position, overrides, expected):
    changes = {"cluster__workers": 4, "train__accumulate": 2, "train__batch_size": 24}
    experiment = small_experiment(tmp_path, **changes)
    assert _sharing(experiment, position, overrides) == expected


@pytest.mark.slow
def test_the_moving_average_is_what_is_evaluated(run):
    state = read_checkpoint(run.checkpoints[-1], "last")
    trained = load_detector(str(run.checkpoints[-1]))
    key = "head.classification_head.cls_logits.weight"
    assert not torch.equal(state["model"][key], state["ema"]["weights"][key])
    for name, value in trained.detector.state_dict().items():
        assert torch.equal(value, state["ema"]["weights"][name])
    assert trained.averaged
    assert not trained.detector.training
    assert "moving average" in str(trained)


@pytest.mark.slow
def test_without_a_moving_average_the_weights_themselves_are(runs):
    run = runs["fcos"]
    trained = load_detector(str(run.checkpoints[-1]))
    assert not trained.averaged
    for name, value in run.worker.detector.state_dict().items():
        assert torch.equal(value, trained.detector.state_dict()[name])


@pytest.mark.slow
def test_overrides_change_how_it_is_judged(runs, tmp_path):
    run, answers = runs["fcos"], {}
    changes = ["model.postprocess.score_threshold=0.99"], ["evaluation.max_dets=50"], ["train.batch_size=1"]
    for i, overrides in enumerate([[], *changes, ["data.transform.resize={name: fixed, height: 96, width: 96}"]]):
        path = tmp_path / f"{i}.json"
        answer = call(job, run.directory, *overrides, "--json", path)
        assert answer.status == 0, answer.err
        answers[i] = json.loads(path.read_text())["metrics"]
    plain, strict, more, single, larger = answers.values()
    assert strict["val/AR100"] == 0 < plain["val/AR100"]
    assert "val/AR50" in more.keys() - plain.keys()
    assert single == pytest.approx(plain, abs=1e-3)
    assert larger != plain


@pytest.mark.slow
def test_the_protocol_is_an_override_and_stands_in_the_result(runs, tmp_path):
    run, found = runs["retinanet"], {}
    for protocol in ("coco", "voc07", "voc12"):
        answer = call(job, run.directory, f"evaluation.protocol={protocol}", "--json", tmp_path / f"{protocol}.json")
        assert answer.status == 0, answer.err
        assert re.search(rf"^AP by the rule of +{protocol}$", answer.out, re.MULTILINE)
        found[protocol] = json.loads((tmp_path / f"{protocol}.json").read_text())
        assert found[protocol]["protocol"] == protocol
    assert "val/AR100" in found["coco"]["metrics"].keys() - found["voc07"]["metrics"].keys()
    assert found["voc07"]["metrics"].keys() == found["voc12"]["metrics"].keys()
    same = [name for name in found["coco"]["metrics"] if name.startswith(("val/divergence", "val/spearman"))]
    assert all(found["coco"]["metrics"][name] == found["voc07"]["metrics"][name] for name in same)
    assert call(job, run.directory, "evaluation.protocol=voc").status == 2


@pytest.mark.slow
def test_other_data_and_split(run, tmp_path):
    shutil.copytree(run.experiment.data.uri, tmp_path / "copy")
    answer = call(job, run.directory, "--data", tmp_path / "copy", "--split", "train")
    assert answer.status == 0, answer.err
    assert re.search(rf"^images +6 \({tmp_path}/copy, train\)$", answer.out, re.MULTILINE)


# --- which checkpoint


@pytest.mark.slow
def test_a_run_directory_means_its_best_checkpoint(run, tmp_path):
    copy = copy_checkpoints(run, tmp_path / "run", [{"val/AP": 0.5}, {"val/AP": 0.25}])
    for given in (copy, f"file://{copy}/", copy / "checkpoints"):
        assert load_detector(str(given)).step == 3


@pytest.mark.slow
def test_a_run_without_evaluations_means_its_newest_whole_checkpoint(run, tmp_path, caplog):
    copy = copy_checkpoints(run, tmp_path / "run", [{}, {}])
    assert load_detector(str(copy)).step == 6
    assert "the newest is taken" in caplog.text
    newest = copy / "checkpoints" / run.checkpoints[-1].name
    newest.unlink()
    newest.write_bytes(b"cut off")
    assert load_detector(str(copy)).step == 3


@pytest.mark.slow
def test_a_file_alone_is_enough(run, tmp_path):
    os.link(run.checkpoints[-1], tmp_path / "mine.pt")
    assert load_detector(f"file://{tmp_path}/mine.pt").step == 6


# --- what is refused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluation.backnd=faster", "unknown key evaluation.backnd. Did you mean evaluation.backend?"),
        ("model.postproces.nms_iou=0.4", "unknown key model.postproces. Did you mean model.postprocess?"),
        ("model.postprocess.nms_iou=2", "model.postprocess.nms_iou = 2"),
        ("assigner.sigma=3", "assigner.sigma cannot be set for weights that are trained already. Allowed are evalu"),
        ("model.channels=64", "model.channels cannot be set"),
        ("model.name=fcos", "model.name cannot be set"),
        ("data.uri=elsewhere", "data.uri cannot be set"),
        ("evaluation", "an override is written key=value"),
    ],
)
def test_overrides_that_are_refused(run, override, said):
    assert said in refused(call(job, run.directory, override))


@pytest.mark.slow
def test_other_classes_are_refused_by_name_and_order(run, tmp_path):
    def change(name, edit):
        shutil.copytree(run.experiment.data.uri, tmp_path / name)
        manifest = unseal((tmp_path / name / "dataset.json").read_bytes())
        edit(manifest["categories"])
        (tmp_path / name / "dataset.json").write_bytes(seal(manifest))
        return refused(call(job, run.directory, "--data", tmp_path / name))

    ours = "was trained on 6: 1 disk, 2 square, 3 triangle, 4 star, 5 ring, 6 cross."
    renamed = change("renamed", lambda c: c[1].update(name="box"))
    assert "differ from number 1 on" in renamed
    assert ours in renamed
    assert f"{tmp_path}/renamed has 6: 1 disk, 2 box, 3" in renamed
    assert f"{tmp_path}/swapped has 6: 2 square, 1 disk" in change("swapped", lambda c: c.insert(0, c.pop(1)))
    assert "has 6: 1 disk, 2 square, 3 triangle, 4 star, 5 ring, 9" in change("id", lambda c: c[5].update(id=9))
    assert "from number 6 on" in change("more", lambda c: c.append({"id": 7, "name": "dot"}))


@pytest.mark.slow
def test_data_that_were_prepared_again_are_told(run, caplog):
    """At the place of the training. Where other data are asked for, nobody is surprised."""
    trained = load_detector(str(run.directory))
    data = ShardedDataset(trained.experiment.data.uri, "val")
    _tell_other_data(trained, data)
    _tell_other_data(trained._replace(data={}), data)  # a checkpoint of an earlier version
    assert caplog.text == ""
    before = copy.deepcopy(trained.data)
    before["splits"]["val"]["content"] = "0" * 64
    _tell_other_data(trained._replace(data=before), data)
    assert "was trained on other data than are at" in caplog.text
    assert "split 'val' has as many images and boxes, but another content (000000000000 there" in caplog.text


@pytest.mark.slow
def test_missing_data_and_splits(run, tmp_path):
    assert f"No data set at {tmp_path}" in refused(call(job, run.directory, "--data", tmp_path))
    assert "has no split 'test'. It has: train, val" in refused(call(job, run.directory, "--split", "test"))
    assert "is a directory" in refused(call(job, run.directory, "--json", tmp_path))


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_executed(tmp_path, how):
    path, trace = tmp_path / "step.pt", tmp_path / "trace"
    content = {"model": Harmful(trace), "config": "name: x"}
    torch.save(content, path) if how == "torch" else path.write_bytes(pickle.dumps(content))
    said = refused(call(job, path))
    assert not trace.exists()
    assert str(path) in said
    assert "read safely" in said
    assert how == "pickle" or "it holds getattr, which would have to be executed" in said
    assert "weights_only" not in said, "torch's advice to read it unsafely"
    pickle.loads(pickle.dumps(Harmful(trace)))
    assert trace.exists(), "it would have been"


@pytest.mark.slow
def test_files_that_are_no_checkpoint(run, tmp_path):
    whole = run.checkpoints[-1].read_bytes()
    state = {**read_checkpoint(run.checkpoints[-1], "last"), "optimizer": None}
    files = {
        "truncated.pt": whole[: len(whole) // 2],
        "empty.pt": b"",
        "text.pt": b"These are notes.\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        said = refused(call(job, tmp_path / name))
        assert f"{tmp_path}/{name}: not a file that can be read safely" in said
        assert f"({len(content)} bytes): cut off, or no checkpoint of mgdet" in said
        assert "weights_only" not in said, "torch advises to read it unsafely"
        assert "such as runs/quickstart" in said
    changes = {
        "no 'model'": {"model": None},
        "holds no configuration": {"config": None},
        "unknown key sede. Did you mean seed?": {"config": state["config"].replace("\nseed:", "\nsede:")},
        "holds no list of classes": {"categories": "[1, 2"},
        "do not fit its own configuration": {"categories": '[[1, "only"]]'},
        "'weights'": {"ema": {}},
    }
    for said, change in changes.items():
        torch.save({k: v for k, v in {**state, **change}.items() if v is not None}, tmp_path / "changed.pt")
        assert said in refused(call(job, tmp_path / "changed.pt"))


@pytest.mark.slow
def test_a_flipped_bit_is_found_where_the_checksum_lies_beside(run, tmp_path):
    data = bytearray(run.checkpoints[-1].read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "step.pt").write_bytes(data)
    shutil.copy(run.checkpoints[-1].with_suffix(".json"), tmp_path / "step.json")
    with pytest.raises(CheckpointError, match=r"damaged .* another checksum"):
        load_detector(str(tmp_path / "step.pt"))


@pytest.mark.slow
def test_places_without_a_checkpoint(tmp_path):
    assert "no such file or directory" in refused(call(job, tmp_path / "missing"))
    assert "a directory without a whole checkpoint" in refused(call(job, tmp_path))
    assert "name is empty" in refused(call(job, ""))
    assert "Cannot open 'nope://x'" in refused(call(job, "nope://x"))


# --- progress


@pytest.mark.slow
def test_a_long_evaluation_says_where_it_is(monkeypatch, caplog):
    now = 100.0
    monkeypatch.setattr("mgdet.training.progress.time.monotonic", lambda: now)
    caplog.set_level("INFO", logger="mgdet")
    pace = ProgressLog("evaluated", 100)
    for _ in range(10):
        now += 2
        pace.add(10)
    assert [r.message for r in caplog.records][:2] == [
        "evaluated 30 of 100 images, 5.0 images/s, 14 s left",
        "evaluated 60 of 100 images, 5.0 images/s, 8 s left",
    ]
