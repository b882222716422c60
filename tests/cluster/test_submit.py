"""Jobs submitted to a running cluster, as `ray job submit` does it: only the working directory goes along."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cluster.clusters import Head
from tests.tracking_servers import wait_for

ROOT = Path(__file__).parents[2]
LIMIT = 3 << 20  # bytes that an upload may have, of which the sources of mgdet are two thirds


@pytest.fixture
def upload(tmp_path):
    """A working directory like a clone, whose `mgdet` says where it was imported from."""
    directory = tmp_path / "clone"
    directory.mkdir()
    for name in (*("mgdet", "jobs", "configs"), *("pyproject.toml", ".rayignore", "README.md")):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, directory / name)
    (directory / "runs").mkdir()
    (directory / "runs" / "large.pt").write_bytes(os.urandom(4 << 20))  # what a clone has after a training
    with open(directory / "mgdet" / "__init__.py", "a") as file:
        file.write("\nprint('mgdet of', __file__, flush=True)\n")
    return directory


def settings(tmp_path, epochs):
    shapes = "data.generate={train: 24, val: 6, size: 64, seed: 0}"
    return [
        *("python", "jobs/train.py", "configs/quickstart.yaml", shapes, f"train.epochs={epochs}"),
        *(f"data.uri={tmp_path}/shapes", f"storage={tmp_path}/runs", "train.evaluate_every=1"),
        *("data.transform.resize={name: fixed, height: 64, width: 64}", "train.checkpoint_every_steps=2"),
        *("cluster.workers=1", "cluster.cpus_per_worker=1", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"),
    ]


def submit(head, name, upload, *command):
    """Exit status of `ray job submit`, and all that the job wrote: what the command shows of it may lack lines."""
    done = head.job("submit", "--submission-id", name, "--working-dir", upload, "--", *command)
    return done.returncode, head.client.get_job_logs(name)


def assert_only_the_upload_is_used(written, head):
    """Driver and workers have imported the uploaded package; what workers print stands in the files of the session."""
    files = [path.read_text() for path in head.log.parent.rglob("logs/worker-*.out")]
    workers = [text for text in files if ":actor_name:RayTrainWorker" in text]
    assert workers
    for text in (written, *workers):
        places = {line.split("mgdet of ")[1] for line in text.splitlines() if "mgdet of " in line}
        assert places
        assert all("working_dir_files" in p for p in places), places


@pytest.mark.slow
def test_a_submitted_job(tmp_path, upload):
    """It says what is wrong, can be stopped, and goes on to its end with the uploaded package on driver and workers."""
    head = Head().wait()
    try:
        status, written = submit(head, "wrong", upload, "python", "jobs/train.py", "train.epoch=1")
        assert status != 0
        assert "unknown key train.epoch. Did you mean train.epochs?" in written

        train = [*settings(tmp_path, 10), "train.evaluate_every=10"]
        submitted = head.job("submit", "--no-wait", "--submission-id", "first", "--working-dir", upload, "--", *train)
        assert submitted.returncode == 0, submitted.stderr
        checkpoints = tmp_path / "runs" / "quickstart" / "checkpoints"
        wait_for(lambda: len(list(checkpoints.glob("*.json"))) >= 2, 600)
        head.stop("first")
        assert "the same command goes on" in head.client.get_job_logs("first")

        status, written = submit(head, "again", upload, *train)
        assert status == 0, written
        assert "resuming at epoch" in written
        assert "RayTrainWorker" not in written  # the driver speaks
        assert "val/AP " in written
        assert_only_the_upload_is_used(written, head)
        unpacked = [p for p in head.log.parent.rglob("working_dir_files/_ray_pkg_*") if p.is_dir()]
        assert unpacked
        for package in unpacked:
            uploaded = [f for f in package.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
            assert sum(f.stat().st_size for f in uploaded) < LIMIT  # without what was compiled there
    finally:
        head.kill()


@pytest.mark.exhaustive
def test_submitted_evaluation_and_prediction(tmp_path, upload):
    """Of a run that was submitted too."""
    head = Head().wait()
    try:
        status, written = submit(head, "train", upload, *settings(tmp_path, 1))
        assert status == 0, written
        assert_only_the_upload_is_used(written, head)
        run = f"{tmp_path}/runs/quickstart"
        status, written = submit(head, "evaluate", upload, "python", "jobs/evaluate.py", run)
        assert status == 0, written
        assert "val/AP " in written
        photo = tmp_path / "photo.png"
        Image.new("RGB", (64, 64)).save(photo)
        found = f"{tmp_path}/found"
        status, written = submit(head, "predict", upload, "python", "jobs/predict.py", run, photo, "--out", found)
        assert status == 0, written
        assert "detections in 1 images" in written
        assert (tmp_path / "found" / "detections.json").exists()
    finally:
        head.kill()


@pytest.mark.exhaustive
def test_a_submitted_sweep(tmp_path, upload):
    """Its trials run and its winner is named, with the uploaded package."""
    _, _, _, *overrides = settings(tmp_path, 1)
    head = Head().wait()
    try:
        small = (
            "trials=2",
            "scheduler={name: none}",
            "train.precision=fp32",
            "model.weights=none",
            *(o for o in overrides if o != "cluster.workers=1"),
        )
        sweep = ("python", "jobs/tune.py", "configs/sweeps/quick.yaml", *small)
        status, written = submit(head, "sweep", upload, *sweep)
        assert status == 0, written
        assert "train the winner" in written
        assert len(list((tmp_path / "runs").rglob("trial.json"))) == 2
        places = {line.split("mgdet of ")[1] for line in written.splitlines() if "mgdet of " in line}
        assert places
        assert all("working_dir_files" in p for p in places), places
    finally:
        head.kill()
