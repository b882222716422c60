"""Secrets stay where they were given, and files from outside cannot run code."""

import base64
import contextlib
import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml

from mgdet.config import load, validate
from mgdet.data import read_manifest
from mgdet.errors import ConfigError, DataError, MgdetError
from mgdet.models import initialise
from mgdet.runs.record import open_run, save_run
from mgdet.storage import locate
from mgdet.sweep.config import load_sweep
from mgdet.sweep.record import open_sweep
from mgdet.sweep.trials import TrialStore
from mgdet.text import has_password, redacted
from mgdet.training.nonfinite import load_capture
from tests.forked import run_job
from tests.small import small_experiment
from tests.tracking_servers import Server
from tests.trained_runs import call, import_job

ROOT = Path(__file__).resolve().parents[1]
PASSWORD = "PLANTED-hunter2"  # every secret below begins with PLANTED


# --- what is taken out of a text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:PLANTED@host:5000/a", "http://host:5000/a"),
        ("http://me:PLA@NTED@host", "http://host"),
        ("http://me:PLA/NTED@host/a", "http://host/a"),
        ("http://PLANTED@host", "http://host"),
        ("s3://KEY:PLANTED@bucket/runs?region=eu", "s3://bucket/runs?region=eu"),
        ("postgresql://host/db?user=me&password=PLANTED&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("abfs://box@account/a?client_secret=PLANTED", "abfs://box@account/a?client_secret=***"),
        ("https://host/a?sv=1&sig=PLANTED%3D", "https://host/a?sv=1&sig=***"),
        ("API request to http://me:PLANTED@host/api failed: a@b", "API request to http://host/api failed: a@b"),
        ("'http://a:PLANTED@b', 'http://c:PLANTED@d'", "'http://b', 'http://d'"),
    ],
)
def test_what_is_secret_is_taken_out(text, shown):
    assert redacted(text) == shown
    assert str(MgdetError(f"error: {text} is wrong")) == f"error: {shown} is wrong"


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/a@b:c/mlflow.db",
        "abfs://container@account.dfs.core.windows.net/runs",
        "http://127.0.0.1:5000/#/experiments/1/runs/2",
        "s3://bucket/runs?region=eu&endpoint_override=h:9000",
        "assigner.sigma=3 sends mail to a@b.org",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text
    assert not has_password(text)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:PLANTED@bucket/runs",
        "abfs://account:PLANTED@container.x/y",
        "abfs://box@account/a?client_secret=PLANTED",
        "hdfs://me:PLANTED@host/runs",
    ],
)
def test_a_location_with_a_password_is_refused(tmp_path, uri):
    """pyarrow would take some of these; but locations stand in run.json, in logs and in MLflow."""
    for key in ("storage", "data__uri"):
        with pytest.raises(ConfigError, match=r"must not hold a password.*environment") as error:
            small_experiment(tmp_path, **{key: uri})
        assert "PLANTED" not in str(error.value)
    with pytest.raises(DataError, match="must not hold a password") as error:
        locate(uri)
    assert "PLANTED" not in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["tracking.urk=URI"],
        ["tracking=URI"],
        ["tracking.uri=[URI]"],
        ["tracking.uri=[URI"],
        ["tracking.uri:URI"],
        ["tracking.uri=URI", "tracking.uri.x=1"],
        ["tracking.uri=URI", "tracking.uri=http://me:PLANTED" + 200 * "x" + "@h"],
        ["tracking.request_timeout_s=http://me:PLANTED" + 200 * "x" + "@host"],
        ["storage=s3://K:PLANTED@bucket/runs"],
        ["seed=URI"],
    ],
    ids=lambda o: o[-1][:24],
)
@pytest.mark.parametrize("how", ["override", "file", "sweep"])
def test_mistakes_beside_a_password(tmp_path, overrides, how):
    config = tmp_path / "c.yaml"
    config.write_text(small_experiment(tmp_path).to_yaml())
    overrides = [o.replace("URI", f"http://me:{PASSWORD}@host:5000") for o in overrides]
    try:
        if how == "override":
            said = load(config, overrides).to_yaml()
        elif how == "file":
            lines = "".join(f"x{n}: {o.partition('=')[2]}\n" for n, o in enumerate(overrides))
            config.write_text(f"name: x\n{lines}")
            said = load(config).to_yaml()
        else:
            sweep = {"name": "s", "base": "c.yaml", "space": {"assigner.sigma": {"uniform": [1, 4]}}, "trials": 2}
            (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
            said = next(load_sweep(tmp_path / "s.yaml", overrides).corners())[1].to_yaml()
    except ConfigError as error:
        said = str(error) + repr(error)
    assert "PLANTED" not in said


def test_an_excerpt_of_a_broken_file_is_not_shown(tmp_path):
    """YAML's own excerpt may begin within a password, where nothing tells that it is one."""
    path = tmp_path / "c.yaml"
    path.write_text(f"name: x\ntracking: {{uri: 'http://me:{PASSWORD}{'y' * 60}@host', x: ]}}\n")
    with pytest.raises(ConfigError, match=r"not valid YAML: .*line 2, column ") as error:
        load(path)
    assert "PLANTED" not in str(error.value)
    assert "yyy" not in str(error.value)


@pytest.mark.parametrize(
    ("job", "arguments"),
    [
        ("train", ["c.yaml", "storage=URI"]),
        ("train", ["c.yaml", "data.uri=URI", "--dry-run"]),
        ("train", ["c.yaml", "model.weights=URI", "--dry-run"]),
        ("evaluate", ["URI"]),
        ("predict", ["URI", "photo.png", "--out", "found"]),
        ("prepare", ["shapes", "--out", "URI"]),
        ("replay", ["URI"]),
        ("reproduce", ["URI"]),
        ("tune", ["s.yaml", "storage=URI"]),
    ],
    ids=lambda a: a if isinstance(a, str) else next(p for p in a if "URI" in p),
)
def test_jobs_refuse_a_location_with_a_password_and_do_not_repeat_it(tmp_path, monkeypatch, job, arguments):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(small_experiment(tmp_path).to_yaml())
    Path("s.yaml").write_text("{name: s, base: c.yaml, trials: 2, space: {assigner.sigma: {uniform: [1, 4]}}}")
    answer = call(import_job(job), *(a.replace("URI", "s3://KEY:PLANTED@bucket/x") for a in arguments))
    assert answer.status == 2
    assert "must not hold a password" in answer.err or "model.weights='s3://bucket/x': not a file" in answer.err
    assert "PLANTED" not in answer.out + answer.err


# --- a whole run


class Place:
    """A directory in which jobs run as processes, with secrets in their environment; all that they say is kept."""

    def __init__(self, directory):
        self.directory = directory
        self.said = b""
        for name in ("home", "tmp"):
            (directory / name).mkdir()
        self.secrets = {
            "AWS_ACCESS_KEY_ID": "PLANTED-aws-id",
            "AWS_SECRET_ACCESS_KEY": "PLANTED-aws",
            "MLFLOW_TRACKING_PASSWORD": "PLANTED-mlflow",
            "MLFLOW_TRACKING_TOKEN": "PLANTED-bearer",
            "RAY_AUTH_TOKEN": "PLANTED-ray-" + 20 * "0",
        }
        self.environment = (
            os.environ
            | self.secrets
            | {
                "MLFLOW_TRACKING_USERNAME": "me",
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
                "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
                "HOME": str(directory / "home"),
                "TMPDIR": str(directory / "tmp"),
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                "OMP_NUM_THREADS": "1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        )

    def job(self, name, *arguments, status=0, says=""):
        log = self.directory.with_name("said.txt")
        done = run_job(name, arguments, log, directory=self.directory, environment=self.environment)
        assert done.returncode == status, done.output
        assert says in done.output, done.output
        self.said += done.output.encode()

    def leaks(self, *trees):
        """Where something planted is found: as it is, or as HTTP's header of user and password."""
        needles = [b"PLANTED", base64.b64encode(f"me:{PASSWORD}".encode())]
        found = ["what the jobs said"] if any(n in self.said for n in needles) else []
        for tree in (self.directory, *trees):
            for path in tree.rglob("*"):
                if path.is_file() and any(n in path.read_bytes() for n in needles):
                    found.append(str(path))
        return found


@pytest.fixture
def place(tmp_path):
    (tmp_path / "work").mkdir()
    return Place(tmp_path / "work")


def config(place, **changes):
    """Given as a file without the secret: that a user's own file holds it would be no leak."""
    path = place.directory / "small.yaml"
    path.write_text(small_experiment(place.directory, tracking={}, train__epochs=1, **changes).to_yaml())
    return path


@pytest.mark.slow
def test_no_planted_secret_is_found_after_a_run(place, tmp_path):
    """With an MLflow server, then with one that is down; training, evaluation and prediction, and many errors."""
    served = tmp_path / "served"
    served.mkdir()
    server = Server(served)
    server.start()
    try:
        path = config(place)
        uri = f"tracking.uri=http://me:{PASSWORD}@127.0.0.1:{server.port}"
        place.job("train", path, uri, says=f"http://127.0.0.1:{server.port}/#/experiments/")
        place.job("train", path, uri, says="is finished, nothing to train")
        place.job("train", path, uri, "assigner.sigma=3", status=2, says="exists with another configuration")
        place.job("train", path, uri, "name=dry", "--dry-run", says="everything works")
        # one huge step, and the next one is not finite
        place.job(
            "train", path, uri, "name=nan", "train.optimizer.lr=1e30", status=2, says="the gradient is not finite"
        )
        capture = next((place.directory / "runs" / "nan" / "nonfinite").glob("*.pt"))
        place.job("replay", capture, says="first layer not finite")
    finally:
        server.kill()
    place.environment["MLFLOW_TRACKING_URI"] = uri.partition("=")[2]
    place.job("train", path, "name=down", says="cannot be used")
    del place.environment["MLFLOW_TRACKING_URI"]
    place.job("train", path, "name=here", says="mlflow ui --backend-store-uri")
    unreachable = "s3://bucket/runs?endpoint_override=127.0.0.1:9&scheme=http&region=eu-central-1"
    place.job("train", path, uri, f"storage={unreachable}", status=2, says="cannot be used")
    (place.directory / "taken").write_text("a file")
    place.job("train", path, uri, "storage=taken", status=2, says="cannot be used")
    place.job("evaluate", "runs/small", "--json", "metrics.json", says="val/AP")
    photo = place.directory / "photo.png"
    write_picture(photo)
    place.job("predict", "runs/small", photo, "--out", "found", says="detections in 1 images")
    (place.directory / "sweep.yaml").write_text(
        yaml.safe_dump({"name": "s", "base": path.name, "space": {"assigner.sigma": {"uniform": [4, 1]}}, "trials": 2})
    )
    place.job("tune", "sweep.yaml", uri, status=2, says="assigner.sigma")
    assert place.leaks(served) == []
    assert (place.directory / "mlflow.db").exists()
    assert list((served / "artifacts").rglob("config.yaml"))
    for name, secret in place.secrets.items():  # so the search above can fail
        (place.directory / "planted").write_text(f"{name}={secret}")
        assert place.leaks(served) == [str(place.directory / "planted")]


def write_picture(path):
    from PIL import Image

    Image.new("RGB", (64, 64), (90, 120, 60)).save(path)


# --- files from outside


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path):
    """Must not come into being."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def yaml_code(canary):
    return f"!!python/object/apply:os.system ['touch {canary}']"


def harmful_pickle(path, canary, how):
    """A file that makes the canary if it is read carelessly; it is, once, to see that."""
    content = {"model": Harmful(canary), "ema": None, "batches": [Harmful(canary)], "config": "name: x"}
    if how == "torch":
        torch.save(content, path)
    elif how == "torch, old format":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content))
    if how == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert canary.exists(), "the file is harmless"
    canary.unlink()
    return path


@pytest.mark.parametrize("how", ["torch", "torch, old format", "pickle"])
@pytest.mark.parametrize("job", ["evaluate", "predict", "replay", "train"])
def test_a_pickle_is_not_executed(tmp_path, canary, job, how):
    path = harmful_pickle(tmp_path / "step-00000003.pt", canary, how)
    if job == "evaluate":
        answer = call(import_job("evaluate"), path)
    elif job == "predict":
        write_picture(tmp_path / "a.png")
        answer = call(import_job("predict"), path, tmp_path / "a.png", "--out", tmp_path / "out")
    elif job == "replay":
        answer = call(import_job("replay"), path)
    else:
        (tmp_path / "c.yaml").write_text(small_experiment(tmp_path).to_yaml())
        answer = call(import_job("train"), tmp_path / "c.yaml", f"model.weights={path}")
    torch.use_deterministic_algorithms(False)
    assert answer.status == 2
    assert "safely" in answer.err


@pytest.mark.slow
def test_a_pickle_among_the_checkpoints_of_a_run_is_not_executed(tmp_path, canary):
    """With a record and the right checksum, which whoever can write to the storage can make as well."""
    small = small_experiment(tmp_path)
    save_run(small, small, {})
    checkpoints = Path(small.run_uri) / "checkpoints"
    checkpoints.mkdir()
    data = harmful_pickle(checkpoints / "step-00000001.pt", canary, "torch").read_bytes()
    info = {"file": "step-00000001.pt", "step": 1, "epoch": 0, "size": len(data), "metrics": {}}
    (checkpoints / "step-00000001.json").write_text(json.dumps({**info, "sha256": hashlib.sha256(data).hexdigest()}))
    (tmp_path / "c.yaml").write_text(small.to_yaml())
    answer = call(import_job("train"), tmp_path / "c.yaml")
    torch.use_deterministic_algorithms(False)
    assert answer.status == 0
    assert "step-00000001.pt: not a file that can be read safely" in answer.out
    assert "epoch 1/2" in answer.out, "trained from the first step"


def test_code_in_yaml_would_run_if_it_were_read_carelessly(tmp_path):
    yaml.unsafe_load(yaml_code(tmp_path / "trace"))
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("where", ["config", "base", "override", "sweep", "base of a sweep", "override of a sweep"])
def test_code_in_yaml_is_not_executed(tmp_path, canary, where):
    code = yaml_code(canary)
    good = small_experiment(tmp_path).to_yaml()
    bad = f"{good}\nseed: {code}\n".replace("seed: 0\n", "", 1)
    sweep = "name: s\nbase: {}\ntrials: 2\nspace: {{assigner.sigma: {{uniform: [1, 4]}}}}\n"
    (tmp_path / "good.yaml").write_text(good)
    (tmp_path / "bad.yaml").write_text(bad)
    (tmp_path / "above.yaml").write_text("base: bad.yaml\nname: y\n")
    (tmp_path / "good sweep.yaml").write_text(sweep.format("good.yaml"))
    (tmp_path / "bad sweep.yaml").write_text(sweep.format("good.yaml") + f"max_failures: {code}\n")
    (tmp_path / "above sweep.yaml").write_text(sweep.format("bad.yaml"))
    job, *arguments = {
        "config": ("train", "bad.yaml"),
        "base": ("train", "above.yaml"),
        "override": ("train", "good.yaml", f"seed={code}"),
        "sweep": ("tune", "bad sweep.yaml", "--check"),
        "base of a sweep": ("tune", "above sweep.yaml", "--check"),
        "override of a sweep": ("tune", "good sweep.yaml", "--check", f"trials={code}"),
    }[where]
    answer = call(import_job(job), tmp_path / arguments[0], *arguments[1:])
    assert answer.status == 2
    assert "could not determine a constructor for the tag" in answer.err
    assert "python/object/apply" in answer.err


def test_code_in_the_configuration_of_a_checkpoint_is_not_executed(tmp_path, canary):
    torch.save({"model": {}, "config": f"name: {yaml_code(canary)}"}, tmp_path / "c.pt")
    answer = call(import_job("evaluate"), tmp_path / "c.pt")
    assert answer.status == 2
    assert "holds no configuration" in answer.err


def test_code_in_the_configuration_of_a_capture_is_not_executed(tmp_path, canary):
    torch.save({"model": {}, "config": yaml_code(canary), "batches": []}, tmp_path / "c.pt")
    with contextlib.suppress(MgdetError, ValueError):
        validate(load_capture(str(tmp_path / "c.pt"))["config"], "c")


@pytest.mark.parametrize("content", ["pickle", "yaml", "xml"])
@pytest.mark.parametrize("record", ["run.json", "dataset.json", "sweep.json", "trial.json"])
def test_records_are_json_and_nothing_else(tmp_path, canary, record, content):
    data = {
        "pickle": pickle.dumps(Harmful(canary)),
        "yaml": yaml_code(canary).encode(),
        "xml": b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><a>&b;</a>',
    }[content]
    small = small_experiment(tmp_path)
    (tmp_path / "c.yaml").write_text(small.to_yaml())
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump(
            {"name": "s", "base": "c.yaml", "space": {"seed": {"grid": [0, 1]}}, "scheduler": {"name": "none"}}
        )
    )
    sweep = load_sweep(tmp_path / "s.yaml")
    uri = str(tmp_path / "runs" / "s")
    directory, read = {
        "run.json": (Path(small.run_uri), lambda: open_run(small)),
        "dataset.json": (tmp_path / "data", lambda: read_manifest(str(tmp_path / "data"))),
        "sweep.json": (Path(uri), lambda: open_sweep(sweep, uri)),
        "trial.json": (Path(uri) / "s-000", lambda: TrialStore(uri, "s")),
    }[record]
    directory.mkdir(parents=True)
    (directory / record).write_bytes(data)
    with pytest.raises((ConfigError, DataError), match=record):
        read()


BOMB = "<!DOCTYPE a [<!ENTITY a0 'ha'>" + "".join(
    f"<!ENTITY a{n} '{10 * f'&a{n - 1};'}'>" for n in range(1, 10)
) + "]><annotation><filename>&a9;</filename></annotation>"  # fmt: skip


@pytest.mark.parametrize("content", ["pickle", "yaml", "entity expansion", "external entity", "deep nesting"])
def test_annotations_are_json_and_nothing_else(tmp_path, canary, content):
    """Of COCO's format. A file of another kind is refused before any entity is looked at."""
    secret = tmp_path / "secret.txt"
    secret.write_text("PLANTED")
    data = {
        "pickle": pickle.dumps(Harmful(canary)),
        "yaml": yaml_code(canary).encode(),
        "entity expansion": BOMB.encode(),
        "external entity": f'<!DOCTYPE a [<!ENTITY b SYSTEM "file://{secret}">]><a>&b;</a>'.encode(),
        "deep nesting": 200_000 * b"[",
    }[content]
    (tmp_path / "train.json").write_bytes(data)
    (tmp_path / "images").mkdir()
    arguments = ["--split", "train", tmp_path / "train.json", tmp_path / "images", "--out", tmp_path / "out"]
    answer = call(import_job("prepare"), "coco", *arguments)
    assert answer.status == 2
    assert "is not JSON" in answer.err
    assert "PLANTED" not in answer.err + answer.out
    assert not (tmp_path / "out").exists()


def test_weights_from_outside_are_tensors_and_nothing_else(tmp_path, canary):
    harmful_pickle(tmp_path / "w.pt", canary, "torch")
    experiment = small_experiment(tmp_path, model__weights=str(tmp_path / "w.pt"))
    with pytest.raises(MgdetError, match="read safely"):
        initialise(experiment.model.build(3), experiment.model)
