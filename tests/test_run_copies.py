"""A run directory that was copied: two copies that go on are two runs; one that was moved is the same."""

import logging
import shutil
from pathlib import Path

import pytest

from mgdet.errors import ConfigError
from mgdet.lease import OWNER, Ownership, owned
from mgdet.records import seal, unseal
from mgdet.runs import launch
from mgdet.runs.record import Record, open_run, original_of, read_record, save_run, set_apart, write_record
from mgdet.storage import Location, locate, place_in_store_of
from mgdet.tracking import Mlflow, NewRun, RunHandle
from tests import test_copies
from tests.small import small_experiment

KEY = "learned"
Memory = test_copies.Memory
COPY_OF = "mgdet.copy_of"


@pytest.fixture(autouse=True)
def _anew():
    test_copies.SENT.clear()


def begin(directory: Path, run_id: str = "0a") -> Location:
    file = locate(directory / "run.json")
    write_record(file, KEY, Record({"name": "r"}, {"mlflow": run_id}, place=str(directory)))
    return file


def original(file: Location) -> str | None:
    """What is found of the run in the directory of `file` by its owner."""
    with owned(file.parent / OWNER, "the run") as ownership:
        record = read_record(file, KEY)
        assert record is not None
        return original_of(record, file, KEY, ownership)


def test_a_copy_is_another_run_while_the_original_is_there(tmp_path):
    file = begin(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert original(file) is None
    assert original(locate(tmp_path / "b/run.json")) == str(tmp_path / "a")
    (tmp_path / "a").chmod(0)
    try:
        if not Path(file.path).is_file():  # root sees through it
            assert original(locate(tmp_path / "b/run.json")) == str(tmp_path / "a"), "it is there, though not for us"
    except PermissionError:
        assert original(locate(tmp_path / "b/run.json")) == str(tmp_path / "a")
    finally:
        (tmp_path / "a").chmod(0o755)


@pytest.mark.parametrize("before", ["gone", "the run alone", "another run", "a damaged record", "a file"])
def test_what_was_moved_is_the_same_run(tmp_path, before):
    begin(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    if before == "the run alone":
        (tmp_path / "a").mkdir()
    elif before == "another run":
        begin(tmp_path / "a", "0b")
    elif before == "a damaged record":
        (tmp_path / "a").mkdir()
        (tmp_path / "a/run.json").write_bytes(b"?")
    elif before == "a file":
        (tmp_path / "a").touch()
    assert original(locate(tmp_path / "b/run.json")) is None


def test_one_directory_under_two_names_is_no_copy(tmp_path):
    begin(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert original(locate(tmp_path / "link/run.json")) is None


def test_records_of_earlier_versions_go_on(tmp_path):
    file = begin(tmp_path / "a")
    content = unseal(file.read_bytes())
    del content["place"]
    file.write(seal(content))
    (tmp_path / "a").rename(tmp_path / "b")
    assert original(locate(tmp_path / "b/run.json")) is None


@pytest.mark.parametrize(
    "place", ["s3://elsewhere/r", "relative", "store:///x/r", "gs://x/\x00", "/x\x00", "/\ud800", "/" + 5000 * "x"]
)
def test_another_store_is_never_asked(tmp_path, monkeypatch, place):
    """A record is data from outside: somebody may have written an address into it."""
    file = begin(tmp_path / "a")
    file.write(seal({**unseal(file.read_bytes()), "place": place}))
    monkeypatch.setattr("mgdet.storage._open", lambda uri: pytest.fail("opened"))
    assert original(file) == place


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("s3://b/runs/r?region=x&endpoint_override=h", "b/runs/r"),
        ("s3://b/runs/a%20b?region=x&endpoint_override=h", "b/runs/a b"),
        ("s3://other/r?region=x&endpoint_override=h", "other/r"),
        ("s3://b/runs/r?region=x&endpoint_override=evil", None),
        ("s3://b/runs/r", None),
        ("gs://b/runs/r?region=x&endpoint_override=h", None),
        ("/runs/r", None),
    ],
)
def test_the_path_in_a_store(place, path):
    here = Location(None, "b/copies/r", "s3://b/copies/r?region=x&endpoint_override=h")
    assert place_in_store_of(here, place) == path


def test_a_copy_has_no_runs_in_trackers_and_says_whose_it_is(tmp_path, caplog):
    begin(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    file = locate(tmp_path / "b/run.json")
    record, tags = set_apart(read_record(file, KEY), file, KEY, Ownership(file.parent / OWNER, "the run", "t"))
    assert (record.run_ids, record.place, tags) == ({}, "", {COPY_OF: str(tmp_path / "a")})
    assert f"{tmp_path}/b is a copy of {tmp_path}/a: it gets a run of its own" in caplog.text
    assert set_apart(None, file, KEY, Ownership(file, "", "")) == (None, {})


def test_both_copies_of_a_run_go_on_apart(tmp_path, caplog):
    """The copy, in another storage, is sent as a run of its own with the whole history; the original goes on in its."""
    caplog.set_level(logging.WARNING)
    a = small_experiment(tmp_path).model_copy(update={"tracking": Memory()})
    b = a.model_copy(update={"storage": str(tmp_path / "copies")})
    seen = []

    def execute(experiment, handle, owner):
        step = len(seen) + 1
        seen.append((experiment.run_uri, handle.run_id))
        tracker = launch.worker_tracker(experiment, handle, owner)
        tracker.log({"loss": float(step)}, step)
        tracker.close()
        raise KeyboardInterrupt

    def start(e):
        resolved, reasons = launch.prepare(e, 1, 0)
        with pytest.raises(KeyboardInterrupt):
            launch.launch(e, resolved, reasons, execute)

    start(a)
    shutil.copytree(a.storage, b.storage)
    for e in (b, a, b, a):
        start(e)
    assert seen == [(e.run_uri, "run-0" if e is a else "run-1") for e in (a, b, a, b, a)]
    assert [(s, v) for _, s, v in test_copies.SENT["run-0"]] == [(1, 1.0), (3, 3.0), (5, 5.0)]
    assert [(s, v) for _, s, v in test_copies.SENT["run-1"]] == [(1, 1.0), (2, 2.0), (4, 4.0)]
    assert caplog.text.count("is a copy of") == 1


def test_a_copy_under_another_name_is_told_that_a_run_keeps_its_name(tmp_path):
    a, b = (small_experiment(tmp_path, name=name) for name in ("a", "b"))
    save_run(a, a, {})
    shutil.copytree(a.run_uri, b.run_uri)
    (Path(b.run_uri) / "checkpoints").mkdir()
    from mgdet.training.checkpoint import CheckpointStore

    CheckpointStore(b.run_uri).save({"model": {}}, step=1, epoch=0, metrics={})
    with pytest.raises(ConfigError, match="copied or renamed: it is the run 'a', and a run keeps its name"):
        open_run(b)


@pytest.mark.slow
def test_mlflow_knows_the_place_that_went_on_last(tmp_path, caplog):
    """A copy goes on where the original cannot be seen, on another machine say: then the original gets another run."""
    tracking = Mlflow(uri=f"sqlite:///{tmp_path}/mlflow.db", call_timeout_s=3600)

    def start(place: str, begun_at: str, run_id: str | None) -> RunHandle:
        handle = tracking.start(NewRun("r", run_id=run_id, place=place, begun_at=begun_at))
        assert handle is not None
        return handle

    first = start("/a/r", "", None)
    assert start("/a/r", "/a/r", first.run_id).run_id == first.run_id
    assert start("/moved/r", "/a/r", first.run_id).run_id == first.run_id
    assert start("/moved/r", "/a/r", first.run_id).run_id == first.run_id, "killed before its record was written"
    other = start("/a/r", "/a/r", first.run_id)
    assert other.run_id != first.run_id
    client = tracking._client(first.store)
    assert client.get_run(other.run_id).data.tags[COPY_OF] == "/moved/r"
    assert client.get_run(other.run_id).data.tags["mgdet.place"] == "/a/r"
    assert "/moved/r, a copy of /a/r, has gone on with run" in caplog.text
