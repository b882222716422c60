"""Annotations in files that all processes of a machine map."""

import fcntl
import os
import pickle
import time

import numpy as np
import pytest

from mgdet.data import ShapesConfig, ShardedDataset, generate_shapes, mapped
from mgdet.data.mapped import shared

ARRAYS = {"a": np.arange(6.0).reshape(3, 2), "b": np.array([True, False]), "empty": np.zeros((0, 4))}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mgdet" / "arrays"


def made(calls):
    def make():
        calls.append(1)
        return {name: array.copy() for name, array in ARRAYS.items()}

    return make


def equal(flat):
    assert set(flat) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert np.array_equal(flat[name], array)
        assert flat[name].dtype == array.dtype


def directories(cache):
    return [place for place in cache.iterdir() if place.is_dir()]


def test_they_are_made_once_and_mapped(cache):
    calls = []
    for _ in range(3):
        flat = shared("one", made(calls))
        equal(flat)
        assert isinstance(flat["a"], np.memmap)
    assert calls == [1]
    equal(shared("another", made(calls)))
    assert len(calls) == len(directories(cache)) == 2


def test_another_process_gets_the_files_and_no_copy(cache):
    flat = shared("one", lambda: {"a": np.zeros(1_000_000)})
    sent = pickle.dumps(flat)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent)["a"], flat["a"])
    in_memory = mapped.Flat({"a": np.arange(5)})
    assert np.array_equal(pickle.loads(pickle.dumps(in_memory))["a"], np.arange(5))


def test_who_writes_changes_nobody_elses(cache):
    mine, theirs = shared("one", made([])), shared("one", made([]))
    mine["a"][0, 0] = 99
    assert theirs["a"][0, 0] == 0
    equal(shared("one", made([])))


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / "a.npy").write_bytes((place / "a.npy").read_bytes()[:-1]),
        lambda place: (place / "a.npy").write_bytes(
            (place / "a.npy").read_bytes().replace(b"\x00\x00\xf0?", b"\x00\x01\xf0?")
        ),
        lambda place: (place / "b.npy").unlink(),
        lambda place: (place / "arrays.json").write_text("{}"),
        lambda place: (place / "arrays.json").write_text("no JSON"),
        lambda place: (place / "arrays.json").unlink(),
    ],
)
def test_what_is_damaged_is_made_anew(cache, damage):
    calls = []
    shared("one", made(calls))
    (place,) = directories(cache)
    damage(place)
    equal(shared("one", made(calls)))
    equal(shared("one", made(calls)))
    assert len(calls) == 2


def test_without_a_place_they_are_in_memory(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()

    def nowhere():
        raise OSError("no place")

    monkeypatch.setattr(mapped, "cache_directory", nowhere)
    equal(shared("one", made([])))
    monkeypatch.setattr(mapped, "cache_directory", lambda: tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped.np, "save", full)
    equal(shared("one", made([])))
    assert "annotations are kept in the memory of each process: [Errno 28]" in caplog.text
    assert directories(tmp_path / "arrays") == []


def test_an_error_of_making_them_is_raised_as_it_is(cache):
    calls = []

    def broken():
        calls.append(1)
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        shared("one", broken)
    assert calls == [1]
    assert directories(cache) == []


def test_nobody_waits_for_ever(cache, monkeypatch):
    shared("another", made([]))
    monkeypatch.setattr(mapped, "_WAIT_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(mapped, "_opened", lambda place: None)
        lock = next(iter(cache.glob("*.lock"))).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        equal(shared("another", made([])))
        lock.close()
    equal(shared("another", made([])))


def test_what_nobody_opened_for_long_is_removed(cache):
    for name in ("old", "new"):
        shared(name, made([]))
    old = next(place for place in directories(cache) if (place / "arrays.json").stat().st_mtime)
    long_ago = time.time() - mapped.UNUSED_S - 60
    os.utime(old / "arrays.json", (long_ago, long_ago))
    shared("third", made([]))
    assert old not in directories(cache)
    assert len(directories(cache)) == 2


def test_a_data_set_is_the_same_with_mapped_annotations(cache, tmp_path, monkeypatch):
    uri = str(tmp_path / "shapes")
    generate_shapes(uri, ShapesConfig(train=7, val=2, size=48))
    plain = ShardedDataset(uri, "train")
    assert not cache.exists()
    monkeypatch.setattr(mapped, "LEAST_BYTES", 0)
    for _ in range(2):
        large = ShardedDataset(uri, "train")
        assert isinstance(large.annotation(0).boxes, np.ndarray)
        assert large._flat.place is not None
        for other in (large, pickle.loads(pickle.dumps(large)), pickle.loads(pickle.dumps(plain))):
            assert len(other) == 7
            for row in range(7):
                assert other.file_name(row) == plain.file_name(row)
                assert other.read_image(row) == plain.read_image(row)
                for mine, theirs in zip(other.annotation(row), plain.annotation(row), strict=True):
                    assert np.array_equal(mine, theirs)
    assert len(pickle.dumps(large)) < len(pickle.dumps(plain)) + 500
    assert len(directories(cache)) == 1
    generate_shapes(uri, ShapesConfig(train=7, val=2, size=48, seed=1), overwrite=True)
    monkeypatch.setattr(mapped, "LEAST_BYTES", 1 << 60)
    plain = ShardedDataset(uri, "train")
    monkeypatch.setattr(mapped, "LEAST_BYTES", 0)
    assert np.array_equal(ShardedDataset(uri, "train").ground_truth().boxes, plain.ground_truth().boxes)
