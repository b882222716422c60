"""`mgdet status` names every run and sweep under a storage, its state and what needs a person, whatever is damaged."""

import itertools
import json
import os
import subprocess
import sys
import time

import pytest
from pyarrow import fs

from mgdet import storage
from mgdet.cli.main import main
from mgdet.errors import ConfigError
from mgdet.lease import OWNER, Owner, claims, owned
from mgdet.records import seal
from mgdet.runs.launch import train_in_process
from mgdet.runs.status import CLOCKS_S, DEAD_AFTER_S, lines, status_of
from mgdet.storage import locate
from mgdet.sweep.trials import EpochMetrics, Trial
from mgdet.training.checkpoint import CheckpointInfo
from tests.small import small_experiment


def make_run(place, epochs=4, checkpoints=()):
    """A run with records as `save_run` and `CheckpointStore` write them; each checkpoint is (epoch, AP)."""
    (place / "checkpoints").mkdir()
    record = {"learned": {"train.epochs": epochs}, "run_ids": {}, "data": {}, "made_by": {}}
    (place / "run.json").write(seal(record))
    for epoch, ap in checkpoints:
        name = f"step-{10 * epoch:08d}"
        metrics = {} if ap is None else {"val/AP": ap}
        info = CheckpointInfo(file=f"{name}.pt", step=10 * epoch, epoch=epoch, size=1, sha256="0" * 64, metrics=metrics)
        (place / "checkpoints" / f"{name}.json").write(seal(info.model_dump()))


def make_sweep(place, trials, metric):
    """A sweep whose trials are (state, value of the metric)."""
    place.mkdir()
    (place / "sweep.json").write(seal({"definition": {"metric": metric}, "run_ids": {}, "data": {}, "made_by": {}}))
    for number, (state, value) in enumerate(trials):
        name = f"{place.name}-{number:03d}"
        (place / name).mkdir()
        found = [] if value is None else [EpochMetrics(epoch=1, metrics={next(iter(metric)): value}, time=1.0)]
        trial = Trial(
            number=number, name=name, params={}, settings={}, epochs=2, state=state, evaluations=found, reason="why"
        )
        (place / name / "trial.json").write(seal(trial.model_dump(mode="json")))


def own(place, beat=0, **changes):
    """The file of an owner on another machine."""
    owner = Owner(host="far", machine="another", pid=1, started=1, began=0.0, token="x", beat=beat)
    (place / OWNER).write(seal(owner.model_copy(update=changes).model_dump()))


@pytest.fixture(autouse=True)
def _watched_briefly(monkeypatch):
    monkeypatch.setattr("mgdet.runs.status.WATCH_S", 0.01)


@pytest.fixture(params=["local", "object store"])
def runs(request, tmp_path, monkeypatch):
    if request.param == "local":
        return locate(tmp_path)
    store = fs._MockFileSystem()
    monkeypatch.setattr(storage, "_open", lambda uri: (store, uri.removeprefix("store://")))
    place = locate("store://bucket/runs")
    place.mkdir()
    return place


def test_every_state(runs):
    make_run(runs / "a-finished", checkpoints=[(3, 0.5), (4, 0.4)])
    make_run(runs / "b-stopped", checkpoints=[(1, None)])
    make_run(runs / "c-alive", checkpoints=[(2, 0.25)])
    own(runs / "c-alive")
    make_run(runs / "d-new")
    make_sweep(
        runs / "e-sweep", [("finished", 0.3), ("stopped", 0.9), ("failed", 0.95), ("running", 0.99)], {"m": "max"}
    )
    make_sweep(runs / "f-least", [("finished", 0.3), ("finished", 0.2)], {"m": "min"})
    (runs / "data").mkdir()
    found = {each.name: each for each in status_of(str(runs), now=(runs / "c-alive").modified()[OWNER] + 1)}
    assert {name: each.state for name, each in found.items()} == {
        "a-finished": "finished",
        "b-stopped": "stopped",
        "c-alive": "running",
        "d-new": "stopped",
        "e-sweep": "stopped",
        "f-least": "finished",
    }
    shown = {n: (s.done, s.of, s.step, s.best, s.best_of) for n, s in found.items()}
    assert shown["a-finished"] == (4, 4, 40, 0.5, "step-00000030")
    assert shown["b-stopped"] == (1, 4, 10, None, "")
    assert shown["e-sweep"] == (3, 4, None, 0.3, "e-sweep-000"), "one that ran to its end stands before the others"
    assert shown["f-least"] == (2, 2, None, 0.2, "f-least-001")
    needs = {name for name, each in found.items() if each.problems}
    assert needs == {"b-stopped", "d-new", "e-sweep"}
    assert "e-sweep-002 (why)" in found["e-sweep"].problems[0]
    assert "process 1 on 'far'" in found["c-alive"].owner
    late = (runs / "c-alive").modified()[OWNER] + DEAD_AFTER_S + CLOCKS_S + 1
    (dead,) = (each for each in status_of(str(runs), now=late) if each.name == "c-alive")
    assert (dead.state, dead.problems) == ("died", ["its process is gone: the same command goes on"])
    text = "\n".join(lines(list(found.values()), now=late))
    assert "4 of 4 epochs" in text
    assert "3 of 4 trials" in text
    assert "  b-stopped: it was stopped before its end: the same command goes on" in text


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_an_hour_off_kills_nobody(runs, monkeypatch, hours):
    """An owner on another machine counts as dead only if it does not show itself while it is watched."""
    place = runs / "a"
    make_run(place)
    own(place)
    now, beats = place.modified()[OWNER] + hours * 3600, itertools.count(1)
    monkeypatch.setattr("mgdet.runs.status.time.sleep", lambda seconds: own(place, beat=next(beats)))
    for where in (runs, place):
        assert status_of(str(where), now=now)[0].state == "running"
    monkeypatch.setattr("mgdet.runs.status.time.sleep", lambda seconds: None)
    assert status_of(str(runs), now=now)[0].state == "died"


def test_damaged_records_are_named_and_end_nothing(runs):
    make_run(runs / "a", checkpoints=[(1, 0.1), (2, 0.2)])
    (runs / "a" / "checkpoints" / "step-00000020.json").write(b"{")
    make_run(runs / "b", checkpoints=[(1, 0.1)])
    (runs / "b" / "run.json").write(seal({"learned": {}}).replace(b"learned", b"burned_"))
    make_run(runs / "c", checkpoints=[(1, 0.1)])
    (runs / "c" / "run.json").delete()
    make_sweep(runs / "d", [("finished", 0.3), ("finished", 0.4)], {"m": "max"})
    (runs / "d" / "d-001" / "trial.json").write(b"\xff")
    make_run(runs / "e", checkpoints=[(4, 0.1)])
    (runs / "e" / OWNER).write(b"?")
    for record in (b"[]", b'{"learned": 3}', b'{"learned": {"train.epochs": "x"}}', b"null", b"1e999"):
        make_run(runs / "f")
        (runs / "f" / "run.json").write(record)
        status_of(str(runs / "f"))
    found = {each.name: each for each in status_of(str(runs))}
    assert "step-00000020.json cannot be read" in found["a"].problems[0]
    assert (found["a"].state, found["a"].done, found["a"].best) == ("damaged", 1, 0.1)
    assert "run.json cannot be read" in found["b"].problems[0]
    assert (found["b"].state, found["b"].of) == ("damaged", None)
    assert "run.json is missing" in found["c"].problems[0]
    assert "trial.json cannot be read" in found["d"].problems[0]
    assert found["d"].best_of == "d-000"
    assert found["e"].state == "running", "somebody is writing the owner's file at this moment"


@pytest.mark.slow
def test_a_training_as_it_goes_on(tmp_path, capsys):
    e = small_experiment(tmp_path, train__epochs=1)
    train_in_process(e)
    (run,) = status_of(e.storage)
    assert (run.name, run.kind, run.state, run.done, run.of, run.step, run.problems) == (
        *("small", "run", "finished", 1, 1, 3),
        [],
    )
    assert run == status_of(e.run_uri)[0], "also by its own directory"
    with owned(locate(e.run_uri) / OWNER, "the run"):
        assert status_of(e.storage)[0].state == "running"
        assert str(os.getpid()) in status_of(e.storage)[0].owner
    assert main(["status", e.storage, "--json", "--strict"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["state"], shown["best"]) == ("small", "finished", run.best)
    (tmp_path / "runs/small/checkpoints/step-00000003.json").write_text("{")
    assert main(["status", e.storage, "--strict"]) == 1
    assert "needs a person" in capsys.readouterr().out


def test_a_storage_that_is_not_there(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no such directory"):
        status_of(str(tmp_path / "nowhere"))
    assert main(["status", str(tmp_path)]) == 0
    assert "no run and no sweep" in capsys.readouterr().out


def test_an_owner_here_whose_process_is_gone(tmp_path):
    make_run(locate(tmp_path) / "a")
    with owned(locate(tmp_path) / "a" / OWNER, "the run"):
        (data,) = claims(locate(tmp_path) / "a" / OWNER).values()
    owner = Owner.model_validate({k: v for k, v in json.loads(data).items() if k not in ("sealed", "checksum")})
    gone = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout
    (tmp_path / "a" / OWNER).write_bytes(seal(owner.model_copy(update={"pid": int(gone)}).model_dump()))
    assert status_of(str(tmp_path), now=time.time())[0].state == "died"


def test_nothing_heavy_is_imported():
    code = "import sys, mgdet.runs.status; print({'torch', 'ray', 'optuna', 'mlflow'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
