"""What every tracker gets from its base, shown with the one that docs/architecture.md adds, as a plugin."""

import logging
import sqlite3
from contextlib import closing

import pytest
import torch

from mgdet.config import load
from mgdet.errors import ConfigError
from mgdet.plugins import load_plugins
from mgdet.runs.launch import train_in_process
from mgdet.runs.record import open_run
from mgdet.tracking import CloseReport, NewRun, NoTracking, StoreTracking, TrackingConfig
from tests.small import small_experiment
from tests.test_docs import example
from tests.test_plugins import as_before  # noqa: F401  # a fixture for all tests here


@pytest.fixture
def store(tmp_path):
    """The tracker of the worked example under another name (mgdet may have it), with a file of its own."""
    code = example("a tracker").code
    assert '["sqlite"] = "sqlite"' in code
    (tmp_path / "my_sqlite.py").write_text(code.replace('["sqlite"] = "sqlite"', '["tables"] = "tables"'))
    load_plugins(["my_sqlite"], (tmp_path,))
    quick = {"send_every_s": 0.05, "retry_after_s": [0.1], "path": str(tmp_path / "a.db")}
    tree = {"name": "x", "data": {"uri": "d"}, "plugins": ["my_sqlite"], "tracking": {"name": "tables", **quick}}
    tracking = load(tree).tracking
    assert isinstance(tracking, StoreTracking)
    return tracking


def rows(store, query, *values):
    with closing(sqlite3.connect(store.path)) as db:
        return db.execute(query, values).fetchall()


def test_what_is_logged_stands_once_with_its_first_value(store, tmp_path):
    handle = store.start(NewRun("r", config_yaml="a: 1\n", tags={"t": "1"}))
    for first, sign in ((1, 1), (6, -1)):
        tracker = store(handle, tmp_path / "run")
        for step in range(first, first + 10):
            tracker.log({"loss": sign * step, "nan": float("nan")}, step)
        tracker.artifact(f"from {first}", "tables/a.txt")
        report = tracker.close()
    assert report == CloseReport(sent=10)
    assert store.start(NewRun("r", run_id=handle.run_id)).run_id == handle.run_id
    found = rows(store, "select step, value from metrics where run = ? and name = 'loss' order by step", handle.run_id)
    assert found == [*((s, s) for s in range(1, 11)), *((s, -s) for s in range(11, 16))]
    assert rows(store, "select distinct value from metrics where name = 'nan'") == [(None,)]
    assert rows(store, "select name, data from artifacts") == [("tables/a.txt", b"from 6")]
    assert rows(store, "select name, value from tags") == [("t", "1")]


def test_a_sweep_finds_ends_and_tags_the_runs_of_its_trials(store, tmp_path):
    parent = store.start(NewRun("s", searched=("assigner.k",)))
    first, second = (store.start(NewRun(f"s-{i}", parent_run_id=parent.run_id)) for i in range(2))
    assert store.start(NewRun("s-0", parent_run_id=parent.run_id)) == first, "the driver died before it noted the id"
    store(None, tmp_path / "s-0").log({"loss": 1.0}, 1)  # by a process that was killed
    store.close_child(parent.sibling(first.run_id), "KILLED", {"mgdet.reason": "slow"}, tmp_path / "s-0")
    found = {child.name: (child.run_id, child.running) for child in store.children(parent)}
    assert found == {"s-0": (first.run_id, False), "s-1": (second.run_id, True)}
    assert rows(store, "select run, step from metrics") == [(first.run_id, 1)]
    assert rows(store, "select run, value from tags") == [(first.run_id, "slow")]
    assert rows(store, "select status from runs where id = ?", first.run_id) == [("KILLED",)]


def test_a_store_that_is_away_costs_warnings_and_is_sent_the_rest_later(store, tmp_path, caplog):
    (tmp_path / "away").mkdir()
    away = store.model_copy(update={"path": str(tmp_path / "away")})  # a directory
    assert away.start(NewRun("r")) is None
    handle = store.start(NewRun("r"))
    moved = type(handle)(handle.run_id, str(tmp_path / "away"))
    tracker = away(moved, tmp_path / "run")
    tracker.log({"loss": 1.0}, 1)
    tracker.artifact("text", "a.txt")
    assert tracker.close() == CloseReport(unsent=1, unsent_file=tmp_path / "run/metrics.jsonl", unsent_artifacts=1)
    away.end(moved, "FAILED")
    away.tag(moved, {"a": "b"})
    assert away.children(moved) == []
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [" ".join(text.split(" (")[0].split()[:5]) for text in said] == [
        "SQLite cannot be used",
        "SQLite does not take metrics",
        "SQLite did not get 1",
        f"SQLite run {handle.run_id} could not",
        f"SQLite run {handle.run_id} could not",
        "SQLite does not tell the",
    ]
    assert store(handle, tmp_path / "run").close() == CloseReport(sent=1)
    assert rows(store, "select name from artifacts") == [("a.txt",)]


@pytest.mark.slow
def test_a_training_may_change_its_tracker_and_each_gets_the_whole_history(store, tmp_path):
    """First none, then the example's, then none, then the example's again: one run there."""
    e = small_experiment(tmp_path, plugins=["my_sqlite"], train__epochs=2, train__evaluate_every=1)
    quiet = e.model_copy(update={"tracking": NoTracking()})
    tracked = e.model_copy(update={"tracking": store})
    try:
        assert train_in_process(quiet)[1] is None
        assert open_run(quiet).run_ids == {}
        _, handle = train_in_process(tracked)
        train_in_process(quiet)
        assert open_run(quiet).run_ids == {"tables": handle.run_id}
        assert train_in_process(tracked)[1].run_id == handle.run_id
    finally:
        torch.use_deterministic_algorithms(False)
    assert rows(store, "select id, status from runs") == [(handle.run_id, "FINISHED")]
    steps = [step for (step,) in rows(store, "select step from metrics where name = 'val/AP' order by step")]
    assert len(steps) == 2


def test_a_misspelt_key_and_an_unknown_tracker_are_refused(store):
    tree = {"name": "x", "data": {"uri": "d"}, "plugins": ["my_sqlite"]}
    with pytest.raises(ConfigError, match=r"unknown key tracking\.pth\. Did you mean tracking\.path\?"):
        load(tree, ["tracking.name=tables", "tracking.pth=a.db"])
    with pytest.raises(ConfigError, match=r"tracking\.name = 'wandb': allowed are mlflow, none, .*tables"):
        load(tree, ["tracking.name=wandb"])
    assert load(tree, ["tracking.enabled=false"]).tracking.start(NewRun("r")) is None
    assert isinstance(load(tree, ["tracking.name=none"]).tracking, NoTracking)
    assert TrackingConfig.__metadata__[0].base.__name__ == "Tracking"
