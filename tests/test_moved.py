"""A project that was moved goes on: paths into it are compared as they are seen from the run."""

from pathlib import Path

import pytest
import torch

from mgdet.errors import CheckpointError, ConfigError, Interrupted
from mgdet.records import plain
from mgdet.runs.launch import prepare
from mgdet.runs.record import begun_with, moved_along, open_run, save_run
from mgdet.storage import seen_from
from mgdet.tracking import NullTracker
from mgdet.training.checkpoint import CheckpointStore
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from tests.small import small_experiment

CPU = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("directory", "uri", "seen"),
    [
        ("/p/runs/r", "/p/w.pt", "../../w.pt"),
        ("/p/runs/r", "/shared/w.pt", "../../../shared/w.pt"),
        ("/p/runs/r", "imagenet", "imagenet"),
        ("/p/runs/r", "w.pt", "w.pt"),
        ("/p/runs/r", "s3://b/w.pt", "s3://b/w.pt"),
        ("s3://b/p/runs/r", "s3://b/p/shapes", "../../shapes"),
        ("s3://b/p/runs/r?region=x", "s3://b/p/shapes?region=x", "../../shapes"),
        ("s3://b/p/runs/r?region=x", "s3://b/p/shapes?region=y", "s3://b/p/shapes?region=y"),
        ("s3://b/p/runs/r", "gs://b/p/shapes", "gs://b/p/shapes"),
        ("s3://b/p/runs/r", "/p/shapes", "/p/shapes"),
        ("", "/p/shapes", "/p/shapes"),
    ],
)
def test_a_place_as_it_is_seen_from_a_directory(directory, uri, seen):
    assert seen_from(directory, uri) == seen


def test_only_what_moved_along_is_taken_for_the_same():
    there = {"w": "/old/w.pt", "d": ["/old/a", "/shared/b"], "s": {"storage": "/old/runs"}, "n": 1, "x": "imagenet"}
    now = {"w": "/new/w.pt", "d": ["/new/a", "/shared/b"], "s": {"storage": "/new/runs"}, "n": 2, "x": "/new/x.pt"}
    found = moved_along(now, there, "/new/runs/r", "/old/runs/r")
    assert found == {**there, "n": 2, "x": "/new/x.pt"}
    assert moved_along(now, there, "/new/deeper/runs/r", "/old/runs/r")["w"] == "/new/w.pt"
    assert moved_along(now, there, "/new/runs/r", "") == now, "a record of an earlier version"


def begun(directory: Path, **changes):
    """An experiment that starts from a file in its project."""
    directory.mkdir()
    e = small_experiment(directory, model__weights=str(directory / "start.pt"), **changes)
    detector = e.model.build(2)
    torch.save(detector.state_dict(), directory / "start.pt")
    return e


def test_weights_in_the_project_do_not_keep_it_from_being_moved(tmp_path):
    e = begun(tmp_path / "old")
    save_run(e, e, {})
    CheckpointStore(e.run_uri).save({"model": {}}, step=1, epoch=0, metrics={})
    (tmp_path / "old").rename(tmp_path / "new")
    moved = small_experiment(tmp_path / "new", model__weights=str(tmp_path / "new" / "start.pt"))
    assert open_run(moved) is not None
    other = small_experiment(tmp_path / "new", model__weights=str(tmp_path / "new" / "other.pt"))
    with pytest.raises(ConfigError, match=rf"model.weights: '{tmp_path}/old/start.pt' there"):
        open_run(other)


@pytest.mark.slow
def test_a_run_that_goes_on_needs_no_weights_to_begin_with(tmp_path):
    """Neither a file, which may be gone, nor a download."""
    e = begun(tmp_path / "p", train__epochs=2)
    resolved = prepare(e, 1, 0)[0]
    worker = Worker(resolved, CPU, NullTracker(), stop_asked=iter([True]).__next__)
    with pytest.raises(Interrupted, match="stopped on request"):
        worker.run()
    assert begun_with(e) is not None
    Path(e.model.weights).unlink()
    Worker(prepare(e, 1, 0)[0], CPU, NullTracker()).run()
    with pytest.raises(CheckpointError, match=r"not a file"):
        prepare(small_experiment(tmp_path, model__weights=str(tmp_path / "nowhere.pt")), 1, 0)


def test_a_lost_record_knows_the_place_by_its_checkpoint(tmp_path):
    e = begun(tmp_path / "old")
    state = {"model": {}, "config": e.to_yaml()}
    CheckpointStore(e.run_uri).save(state, step=1, epoch=0, metrics={})
    (tmp_path / "old").rename(tmp_path / "new")
    moved = small_experiment(tmp_path / "new", model__weights=str(tmp_path / "new" / "start.pt"))
    record = open_run(moved)
    assert record is not None
    assert record.identity.keys() == plain(moved.identity()).keys()
