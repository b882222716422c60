"""Locations: what `/` gives on each kind of store, and what is promised of writing."""

import errno
import pickle

import pytest
from pyarrow import fs

from mgdet import storage
from mgdet.storage import Location, child_uri, local_path, locate

S3 = "s3://bucket/runs?region=eu-west-1&endpoint_override=localhost:9000&scheme=http"


@pytest.mark.parametrize(
    ("uri", "child"),
    [
        ("runs", "runs/x"),
        ("/", "/x"),
        ("/a//", "/a/x"),
        ("what?", "what?/x"),  # a local name may hold a question mark
        ("s3://bucket", "s3://bucket/x"),
        ("s3://bucket/runs/", "s3://bucket/runs/x"),
        ("s3://bucket?region=eu", "s3://bucket/x?region=eu"),
        ("s3://bucket/runs/?region=eu&scheme=http", "s3://bucket/runs/x?region=eu&scheme=http"),
        ("file:///", "file:///x"),
    ],
)
def test_child_uri(uri, child):
    assert child_uri(uri, "x") == child


def test_parameters_of_a_uri_stay_at_its_end():
    root = locate(S3)
    file = root / "mine" / "run.json"
    assert (file.path, file.name, file.is_local) == ("bucket/runs/mine/run.json", "run.json", False)
    assert str(file) == S3.replace("/runs", "/runs/mine/run.json")
    assert locate(str(file)) == file, "what a message shows can be given again"
    assert file.parent.parent == root
    assert file.with_name("config.yaml") == root / "mine" / "config.yaml"
    assert file.filesystem.region == "eu-west-1"


def test_special_characters_of_a_name_survive_in_a_uri():
    file = locate(S3) / "50% a?b#c.pt"
    assert file.path == "bucket/runs/50% a?b#c.pt"
    assert locate(str(file)) == file


def test_a_local_location_is_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(locate("runs/")) == f"{tmp_path}/runs"
    assert locate(f"file://{tmp_path}/runs") == locate("runs")
    assert locate("runs").is_local
    assert (locate("/") / "x").path == "/x"
    assert locate("/x").parent == locate("/")


def test_local_path(tmp_path):
    assert local_path(str(tmp_path)) == tmp_path
    assert local_path(f"file://{tmp_path}") == tmp_path
    assert local_path(S3) is None
    assert local_path("gs://nobody-asks-for-this/x") is None


def test_files(tmp_path):
    root = locate(tmp_path / "new" / "directory")
    assert root.children() == {}
    assert root.is_empty()
    assert not root.exists()
    root.mkdir()
    assert root.is_directory()
    assert root.is_empty()
    file = root / "x.bin"
    file.write(b"abc")
    assert (file.read_bytes(), file.is_file(), file.is_empty()) == (b"abc", True, False)
    (root / "below").mkdir()
    assert root.children() == {"x.bin": 3, "below": None}
    with file.open_input() as stream:
        stream.seek(1)
        assert stream.read() == b"bc"
    file.delete()
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    root.clear()
    assert root.is_empty()
    assert root.exists()


class FullDisk:
    """A file that takes one byte."""

    def __init__(self, path):
        self.file = open(path, "wb")  # noqa: SIM115  # closed by __exit__

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[:1])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["trace.json.gz", "a.bz2", "a.zst", "a.lz4"])
def test_bytes_stay_what_they_are_whatever_the_name_says(name, tmp_path):
    locate(tmp_path / name).replace(b"plain")
    assert (tmp_path / name).read_bytes() == b"plain"
    assert locate(tmp_path / name).read_bytes() == b"plain"


def test_replace_shows_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    file = locate(tmp_path) / "run.json"
    file.replace(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Location, "open_output", lambda self: FullDisk(self.path))
        with pytest.raises(OSError, match="No space left"):
            file.replace(b"new")
    assert (file.read_bytes(), locate(tmp_path).children()) == (b"old", {"run.json": 3}), "no part of it stays behind"
    file.replace(b"newer")
    assert (file.read_bytes(), locate(tmp_path).children()) == (b"newer", {"run.json": 5})


def test_an_object_is_replaced_without_a_temporary_one(monkeypatch):
    store = fs._MockFileSystem()
    monkeypatch.setattr(storage, "_open", lambda uri: (store, uri.removeprefix("store://")))
    root = locate("store://bucket/x")
    root.mkdir()
    (root / "a").replace(b"1")
    (root / "a").replace(b"22")
    assert root.children() == {"a": 2}
    assert (root / "a").read_bytes() == b"22"


def test_a_location_goes_to_another_process(tmp_path):
    for place in (locate(tmp_path), locate(S3)):
        assert pickle.loads(pickle.dumps(place)) == place


def test_a_name_does_not_decide_the_content(tmp_path):
    """pyarrow compresses files called `.gz` unless it is told not to."""
    file = locate(tmp_path) / "trace.json.gz"
    file.write(b"as it is")
    assert (tmp_path / "trace.json.gz").read_bytes() == file.read_bytes() == b"as it is"
