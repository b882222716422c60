"""Paths of users: what is no regular file is refused instead of waited for, and a path that leads nowhere is named."""

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mgdet import files
from mgdet.cli.main import main
from mgdet.config import load
from mgdet.data import ShapesConfig, ShardedDataset, generate_shapes
from mgdet.errors import CheckpointError, ConfigError, DataError, MgdetError
from mgdet.inference.output import JsonFile
from mgdet.models import initialise
from mgdet.runs.launch import absolute
from mgdet.runs.record import log_directory
from mgdet.runs.stop import StopRequest
from mgdet.safe_load import load_tensors
from mgdet.storage import locate
from mgdet.tracking import Mlflow, NewRun
from mgdet.tracking.journal import Journal
from tests.small import small_experiment


@pytest.fixture(autouse=True)
def no_waiting():
    """Ends a test that waits for a pipe, which nobody ever writes into."""

    def give_up(*_):
        raise AssertionError("still waiting")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["named pipe", "socket", "device", "directory", "link to a pipe"])
def special(request, tmp_path):
    """Something that is no regular file, and how it is called."""
    path = tmp_path / "special"
    match request.param:
        case "named pipe":
            os.mkfifo(path)
        case "socket":
            with contextlib.chdir(tmp_path), socket.socket(socket.AF_UNIX) as bound:
                bound.bind("special")
        case "device":
            path = Path("/dev/zero")
        case "directory":
            path.mkdir()
        case _:
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to("pipe")
            return path, "named pipe"
    return path, request.param


def test_only_regular_files_are_read(special):
    path, kind = special
    for read in (files.read_regular, files.require_regular, files.may_be_written):
        with pytest.raises(OSError, match=f"it is a {kind}, not a regular file"):
            read(path)
    for at in (locate(path).read_bytes, locate(path).open_input, locate(path).open_output):
        with pytest.raises(OSError, match=f"it is a {kind}"):
            at()
    with pytest.raises(OSError, match=f"it is a {kind}"):
        locate(path).replace(b"")
    assert path.exists(), "it was not replaced either"
    with pytest.raises(CheckpointError, match=f"it is a {kind}"):
        load_tensors(path, "x")


def test_regular_files_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    assert files.read_regular(tmp_path / "b") == files.read_regular(str(tmp_path / "a"), 3) == b"abc"
    with pytest.raises(OSError, match="more than 2 bytes"):
        files.read_regular(tmp_path / "a", 2)
    assert files.require_regular("/proc/self/status").st_size == 0
    files.may_be_written(tmp_path / "new")
    with pytest.raises(FileNotFoundError):
        files.read_regular(tmp_path / "new")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "a/\ud800"])
def test_names_that_no_file_can_have(name):
    for read in (files.read_regular, files.may_be_written, lambda path: locate(path).read_bytes()):
        with pytest.raises((OSError, MgdetError)):
            read(name)


def places(special, beside):
    """What each command is asked to read or write, with `special` in each place and good files `beside` it."""
    train, val = beside / "train.json", beside / "val.png"
    coco = ["prepare", "coco", "--out", beside / "out", "--split", "train"]
    return {
        "configuration": ["train", special],
        "sweep": ["tune", special, "--check"],
        "checkpoint": ["evaluate", special],
        "checkpoint of a prediction": ["predict", special, val, "--out", beside / "out"],
        "capture": ["replay", special],
        "annotations": [*coco, special, beside],
        "images": [*coco, train, special],
        "storage": ["train", beside / "c.yaml", f"storage={special}"],
        "data": ["train", beside / "c.yaml", f"data.uri={special}", "data.generate=null"],
        "initial weights": ["train", beside / "c.yaml", f"model.weights={special}"],
        "target": ["prepare", "shapes", "--out", special],
    }


@pytest.mark.parametrize("place", places("x", Path()))
def test_a_pipe_in_the_place_of_each_file_is_an_error(tmp_path, capsys, place):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "c.yaml").write_text(small_experiment(tmp_path).to_yaml())
    (tmp_path / "train.json").write_text("{}")
    status = main([str(argument) for argument in places(pipe, tmp_path)[place]])
    torch.use_deterministic_algorithms(False)
    err = capsys.readouterr().err
    assert status == 2, err
    assert str(pipe) in err or place == "images"


def test_a_pipe_among_images_is_a_missing_image(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.jpg")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "pipe.jpg"}, {"id": 2, "file_name": "a.png"}],
        "annotations": [{"id": 1, "image_id": 2, "category_id": 1, "bbox": [1, 2, 30, 40]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    arguments = ["prepare", "coco", "--split", "train", tmp_path / "a.json", tmp_path, "--out", tmp_path / "out"]
    assert main([str(argument) for argument in arguments]) == 2
    assert "pipe.jpg" in capsys.readouterr().err


def test_a_pipe_in_the_place_of_a_shard(tmp_path):
    generate_shapes(tmp_path / "d", ShapesConfig(train=2, val=2, size=48))
    shard = tmp_path / "d" / "train" / "part-00000.parquet"
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(DataError, match="it is a named pipe"):
        ShardedDataset(str(tmp_path / "d"), "train")


def test_pipes_beside_a_run(tmp_path):
    os.mkfifo(tmp_path / "mlflow.db.lock")
    assert Mlflow(uri=f"sqlite:///{tmp_path}/mlflow.db").start(NewRun("x")) is None, "no MLflow is no reason to wait"
    with pytest.raises(MgdetError, match="is a named pipe"):
        JsonFile(str(tmp_path / "mlflow.db.lock"))


def test_a_pipe_in_the_place_of_the_journal(tmp_path, caplog):
    """Neither reading nor writing waits for somebody at its other end."""
    os.mkfifo(tmp_path / "metrics.jsonl")
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"train/loss": 1.0}, step=1, time=1.0)
    assert (list(journal.points()), journal.lost) == ([], 1)
    assert "it is a named pipe, not a regular file" in caplog.text


def test_a_directory_in_the_place_of_a_request_stops_nothing(tmp_path):
    (tmp_path / "stop").mkdir()
    assert not StopRequest(str(tmp_path)).exists()


@pytest.mark.parametrize("workers", ["0", "-1", "1000000000"])
def test_numbers_of_threads_that_cannot_be_started(tmp_path, capsys, workers):
    arguments = ["--split", "train", "a.json", ".", "--out", str(tmp_path / "out"), "--workers", workers]
    assert main(["prepare", "coco", *arguments]) == 2
    assert f"cannot be {workers} decoding threads; allowed are 1 to" in capsys.readouterr().err


# --- paths that lead nowhere


@pytest.fixture
def circle(tmp_path):
    (tmp_path / "circle").symlink_to("other")
    (tmp_path / "other").symlink_to("circle")
    return tmp_path / "circle"


@pytest.mark.parametrize("below", ["", "/below"])
@pytest.mark.parametrize("place", places("x", Path()))
def test_links_in_a_circle_in_the_place_of_each_file_are_an_error(tmp_path, capsys, circle, place, below):
    (tmp_path / "c.yaml").write_text(small_experiment(tmp_path).to_yaml())
    (tmp_path / "train.json").write_text("{}")
    status = main([str(argument) for argument in places(f"{circle}{below}", tmp_path)[place]])
    torch.use_deterministic_algorithms(False)
    err = capsys.readouterr().err
    assert status == 2, err
    assert "circle" in err or place == "images"


@pytest.mark.parametrize("place", ["~nobody-has-this-name/x", "a\0b"])
def test_a_path_that_leads_nowhere(tmp_path, place):
    with pytest.raises(OSError, match="leads nowhere"):
        files.absolute(place)
    if "\0" not in place:
        with pytest.raises(ConfigError, match=r"storage = '~nobody.*leads nowhere.*set HOME"):
            absolute(small_experiment(tmp_path, storage=place))
        with pytest.raises(MgdetError, match="leads nowhere"):
            locate(place)
        assert Mlflow(uri=f"sqlite:///{place}\0.db").start(NewRun("x")) is None


# --- users without a home directory


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A user whom the system does not know, as in many containers, and no HOME."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))


S3 = "s3://bucket/runs?region=eu-central-1"


def test_without_a_home_directory_the_journal_of_a_remote_run_has_a_place(homeless, tmp_path):
    place = log_directory(small_experiment(tmp_path, storage=S3))
    assert place.is_relative_to(tmp_path)
    assert (tmp_path / f"mgdet-{os.getuid()}").stat().st_mode & 0o077 == 0, "nobody else reads it, or puts a link there"


def test_a_home_directory_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    assert files.cache_directory() == tmp_path / f"mgdet-{os.getuid()}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert files.cache_directory() == tmp_path / "cache" / "mgdet"


def test_a_directory_of_somebody_else_is_not_taken(homeless, tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"mgdet-{os.getuid()}").symlink_to("theirs")
    with pytest.raises(MgdetError, match=r"no home directory.*belongs to another user.*Set HOME"):
        files.cache_directory()


def test_without_a_home_directory_weights_are_an_error_with_a_remedy(homeless, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    experiment = small_experiment(tmp_path, model__weights="imagenet")
    with pytest.raises(CheckpointError, match="TORCH_HOME"):
        initialise(experiment.model.build(3), experiment.model)
    assert not (tmp_path / "~").exists(), "no directory of that name"


UNKNOWN_USER = """
import pwd, sys
def unknown(_):
    raise KeyError("getpwuid(): uid not found")
pwd.getpwuid = unknown
from mgdet.cli.main import main
sys.exit(main(["train", "c.yaml"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/proc/nothing/can/be/written/here"])
def test_a_user_without_name_and_home_trains(tmp_path, home):
    (tmp_path / "c.yaml").write_text(small_experiment(tmp_path, tracking__enabled=True, train__epochs=1).to_yaml())
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", UNKNOWN_USER],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=env | ({"HOME": home} if home else {}),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "see it in MLflow" in done.stdout
    assert not (tmp_path / "~").exists(), "no directory of that name"


def test_a_configuration_beside_odd_names(tmp_path):
    for name in ("x" * 5000, "a\0b", "", ".", "\ud800", "~nobody-has-this-name/x"):
        with pytest.raises(ConfigError):
            load(name)
        with pytest.raises(ConfigError):
            load({"base": name, "name": "x"})
