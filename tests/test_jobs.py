"""`jobs/train.py` as people call it: exit status, what is said, and what is left on disk."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mgdet.cluster import train as cluster_train
from mgdet.training.checkpoint import CheckpointStore, read_checkpoint
from tests.small import small_experiment
from tests.trained_runs import Answer, import_job
from tests.trained_runs import call as call_job

TRAIN = Path(__file__).parents[1] / "jobs" / "train.py"


def call(*args) -> Answer:
    """`python jobs/train.py ARGS` in this process."""
    try:
        return call_job(import_job("train"), *args)
    finally:
        torch.use_deterministic_algorithms(False)


def write(directory: Path, **changes) -> Path:
    path = directory / "small.yaml"
    path.write_text(small_experiment(directory, **changes).to_yaml())
    return path


def snapshot(directory: Path):
    return {p: p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


# --- as a process of its own


@pytest.mark.slow
def test_an_unknown_key_in_a_fresh_process(tmp_path):
    """From another directory, without a configuration file: quickstart is found beside the job."""
    done = subprocess.run(
        [sys.executable, str(TRAIN), "train.epoch=1"], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 2
    assert "unknown key train.epoch. Did you mean train.epochs?" in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- wrong input


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["configs/nope.yaml"], "configs/nope.yaml: cannot be read: there is no such file"),
        (["seed=-1"], "seed = -1"),
        (["assigner.name=mutual"], "allowed are max_iou, center_sampling, atss"),
        (["train.epochs=1", "epochs"], "an override is written key=value"),
    ],
    ids=["missing file", "bad value", "unknown assigner", "not an override"],
)
def test_wrong_configuration(tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    answer = call(*args)
    assert answer.status == 2
    assert said in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["training", "dry run"])
def test_missing_data_leave_no_run(tmp_path, dry):
    config = write(tmp_path, data__generate=None)
    before = snapshot(tmp_path)
    answer = call(config, *dry)
    assert answer.status == 2
    assert f"No data set at {tmp_path / 'shapes'}" in answer.err
    assert "`python jobs/prepare.py coco" in answer.err
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "runs").exists()


def test_more_workers_than_the_machine_has(tmp_path):
    config = write(tmp_path)
    args = ["cluster.workers=2", "cluster.cpus_per_worker=999", "cluster.gpu=false"]
    answer = call(config, *args, "--dry-run")
    assert answer.status == 2
    assert "2 workers x 999 CPUs = 1998 CPUs" in answer.err
    assert not (tmp_path / "runs").exists()


def test_a_batch_that_cannot_be_split(tmp_path):
    answer = call(write(tmp_path), "train.accumulate=4")
    assert answer.status == 2
    assert "nearest: 4" in answer.err
    assert not (tmp_path / "runs").exists()


def test_an_unknown_split(tmp_path):
    answer = call(write(tmp_path), "data.val_split=test")
    assert answer.status == 2
    assert "has no split 'test'. It has: train, val." in answer.err
    assert not (tmp_path / "runs").exists()


def test_interrupted(tmp_path, monkeypatch):
    def interrupt(experiment):
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster_train, "run", interrupt)
    answer = call(write(tmp_path))
    assert answer.status == 130
    assert "the same command continues" in answer.err


# --- dry run


@pytest.mark.slow
def test_a_dry_run_with_overrides_alone_uses_quickstart_and_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ["data.uri=shapes", "data.generate.train=4", "data.generate.val=2", "data.generate.size=64"]
    resize = ["data.transform.resize.height=64", "data.transform.resize.width=64"]
    model = ["model.channels=32", "train.batch_size=2", "cluster.workers=0", "tracking.enabled=false"]
    answer = call(*data, *resize, "--dry-run", *model)
    assert answer.status == 0, answer.err
    assert re.search(r"^name: quickstart$", answer.out, re.MULTILINE)
    assert "images [2, 3, 64, 64] uint8" in answer.out
    assert answer.out.endswith("dry run: everything works; nothing was kept\n")
    assert re.findall(r"^ *(\w+): auto$", answer.out, re.MULTILINE) == ["uri"], "only the store is found at the start"
    assert [p.name for p in tmp_path.iterdir()] == ["shapes"], "only the data set that quickstart generates"


# --- whole trainings


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a training that ended, its configuration and its answer."""
    directory = tmp_path_factory.mktemp("trained")
    config = write(directory, train__checkpoint_every_steps=2, train__keep_best=9)
    return directory, config, call(config)


def value(out, key):
    return re.search(rf"^{re.escape(key)} +(.*)$", out, re.MULTILINE)[1]


@pytest.mark.slow
def test_a_training_ends_with_a_table(trained):
    directory, _, answer = trained
    assert answer.status == 0, answer.err
    table = answer.out.split("-" * 60)[1]
    assert 0 <= float(value(table, "val/AP")) <= 1
    assert int(value(table, "best epoch")) in (1, 2)
    checkpoint = Path(value(table, "best checkpoint"))
    assert checkpoint.is_relative_to(directory / "runs" / "small")
    assert {"model", "ema"} <= read_checkpoint(checkpoint, "best").keys()
    assert "MLflow" not in table, "tracking is off"
    assert re.search(r"epoch 2/2  step 6/6  loss \d", answer.out)
    assert (directory / "runs" / "small" / "run.json").is_file()


@pytest.mark.slow
def test_a_checkpoint_is_only_scored_by_its_own_weights(trained):
    """Three steps an epoch; the one after step 4 was never evaluated, and must not pass for the best."""
    directory, _, _ = trained
    committed = CheckpointStore(str(directory / "runs" / "small")).committed()
    assert {info.step: "val/AP" in info.metrics for info in committed} == {3: True, 4: False, 6: True}


def test_a_finished_run_is_not_trained_again(trained):
    directory, config, first = trained
    before = snapshot(directory)
    again = call(config)
    assert again.status == 0
    assert "is finished, nothing to train" in again.out
    assert "epoch 1/2" not in again.out
    assert again.out.split("-" * 60)[1] == first.out.split("-" * 60)[1], "the same table"
    assert snapshot(directory) == before


def test_the_same_name_with_another_sigma_is_refused(trained):
    directory, config, _ = trained
    before = snapshot(directory)
    answer = call(config, "assigner.sigma=3")
    assert answer.status == 2
    assert "assigner.sigma: 2.0 there, 3.0 asked for" in answer.err
    assert "name=small-2" in answer.err
    assert snapshot(directory) == before


@pytest.mark.slow
def test_what_it_reached_can_start_another_training(trained):
    """`model.weights` takes the path that the table prints."""
    directory, config, first = trained
    weights = value(first.out, "best checkpoint")
    answer = call(config, "name=second", f"model.weights={weights}", "train.epochs=1")
    assert answer.status == 0, answer.err
    assert f"weights: checkpoint {weights}" in answer.out
    assert (directory / "runs" / "second" / "checkpoints").is_dir()
