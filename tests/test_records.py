"""Records are data from outside: what was changed is not believed, and nothing outside their directory is touched."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgdet.errors import CheckpointError, ConfigError
from mgdet.records import RecordError, plain, seal, unseal
from mgdet.runs.record import Record, open_run, read_record, save_run, summarise, write_record
from mgdet.storage import locate
from mgdet.sweep.config import load_sweep
from mgdet.sweep.trials import TrialStore
from mgdet.tracking import journal as journal_module
from mgdet.tracking.journal import Journal, Outbox
from mgdet.training.checkpoint import CheckpointStore, read_info
from tests.small import small_experiment
from tests.sweep.test_config import write

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=5,
)
METRICS = {"val/AP": 0.4375, "val/AP50": 0.61, "val/divergence": 0.25}


def flips(data: bytes):
    """The data with each of its bits flipped in turn."""
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            yield bytes(flipped)


def rewrite(path: Path, **changes):
    """Change keys of a record and give it the checksum that fits: no accident, but somebody who means it."""
    path.write_bytes(seal({**unseal(path.read_bytes()), **changes}))


# --- the checksum


@given(st.dictionaries(st.text(max_size=8).filter(lambda k: k not in ("sealed", "checksum")), VALUES, max_size=5))
def test_what_is_sealed_is_read_back(content):
    assert unseal(seal(content)) == plain(content)


def test_it_may_be_indented_otherwise():
    assert unseal(json.dumps(json.loads(seal({"a": [1, 2.5]}))).encode()) == {"a": [1, 2.5]}


def test_a_record_of_an_earlier_version_has_no_checksum():
    assert unseal(b'{"step": 3}') == {"step": 3}


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b"\xff\xfe", b'{"a": 1', 100_000 * b"[", b'{"a": %s}' % (5000 * b"1"), b'{"sealed": 1}'],
    ids=["empty", "list", "null", "not text", "cut off", "deep", "long number", "no checksum"],
)
def test_what_is_no_record(data):
    with pytest.raises(RecordError):
        unseal(data)


def test_a_record_of_a_later_version():
    from mgdet import records

    later = {"sealed": 2, "a": 1}
    with pytest.raises(RecordError, match="another version of mgdet"):
        unseal(json.dumps({**later, "checksum": records._checksum(later)}).encode())


@pytest.mark.parametrize("written", [seal({"step": 7, "metrics": METRICS}), seal({"": None, "x": [True, 1e-300]})])
def test_no_flipped_bit_changes_what_is_read(written):
    content = unseal(written)
    for damaged in flips(written):
        try:
            assert unseal(damaged) == content
        except RecordError:
            continue


# --- checkpoints


@pytest.fixture
def store(tmp_path):
    """Two checkpoints."""
    store = CheckpointStore(str(tmp_path / "run"))
    for step in (3, 6):
        position = {"step": step, "epoch": step // 3}
        state = {"model": {}, "position": position, "format": 1}
        store.save(state, step=step, epoch=step // 3, metrics={**METRICS, "val/AP": step / 10})
    return store


def sidecar(store, step) -> Path:
    return Path(store.directory.path) / f"step-{step:08d}.json"


def test_no_flipped_bit_gives_a_checkpoint_another_step_epoch_or_metric(store):
    _, info = store.committed()
    path = sidecar(store, 6)
    refused = 0
    for damaged in flips(path.read_bytes()):
        try:
            assert read_info(locate(path), damaged) == info
        except RecordError:
            refused += 1
    assert refused > 8 * len(path.read_bytes()) // 2, "few bits mean nothing"


def test_a_record_that_is_damaged_is_named(store, caplog):
    path = sidecar(store, 6)
    path.write_text(path.read_text().replace('"epoch": 2', '"epoch": 9'))
    assert [i.step for i in store.committed()] == [3]
    assert store.committed() == store.complete()
    assert caplog.text.count(f"{path} is passed over: its checksum does not fit") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "../../secret.pt"},
        {"file": "/etc/passwd"},
        {"file": "step-00000003.pt"},
        {"file": "step-00000003.pt", "step": 3},
        {"step": 7},
        {"step": -1, "file": "step--0000001.pt"},
        {"step": 6.0},
        {"step": True, "file": "step-00000001.pt"},
        {"epoch": "2"},
        {"size": -1},
        {"sha256": "0"},
        {"metrics": {"val/AP": "high"}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_record_that_could_not_have_been_written_there(store, tmp_path, caplog, changes):
    """Also with the right checksum. What it names outside is not opened, and not deleted when old ones are."""
    secret = tmp_path / "secret.pt"
    secret.write_text("not to be touched")
    rewrite(sidecar(store, 6), **changes)
    assert [i.step for i in store.committed()] == [3]
    assert "step-00000006.json is passed over" in caplog.text
    for step in (9, 12, 15):
        store.save({"model": {}}, step=step, epoch=step, metrics={})
    assert secret.read_text() == "not to be touched"
    assert sidecar(store, 6).exists(), "what is not understood is not removed either"


def test_other_json_files_beside_checkpoints_are_left_alone(store):
    others = [Path(store.directory.path) / name for name in ("notes.json", "step-6.json", "step-00000099.json")]
    for other in others:
        other.write_bytes(sidecar(store, 6).read_bytes())
    (Path(store.directory.path) / "step-00000098.json").mkdir()
    assert [i.step for i in store.committed()] == [3, 6]
    for step in (9, 12, 15):
        store.save({"model": {}}, step=step, epoch=step, metrics={})
    assert [o.exists() for o in others] == [True, True, True]


def test_records_of_earlier_versions_are_read(store):
    before = store.committed()
    for step in (3, 6):
        path = sidecar(store, step)
        path.write_text(json.dumps(unseal(path.read_bytes())))
    assert store.committed() == before


def test_a_metric_that_is_undefined_costs_no_checkpoint_and_is_never_the_best(tmp_path):
    store = CheckpointStore(str(tmp_path), keep_best=1)
    for step, ap in enumerate([0.1, 0.5, math.nan, math.inf, math.nan]):
        store.save({"model": {}}, step=step, epoch=step, metrics={"val/AP": ap, "val/AP50": 0.5})
    assert [i.step for i in store.committed()] == [1, 3, 4]
    assert store.best().step == 1
    newest = store.committed()[-1]
    assert math.isnan(newest.metrics["val/AP"])
    assert newest.metrics["val/AP50"] == 0.5
    assert json.loads(sidecar(store, 4).read_bytes())["metrics"]["val/AP"] is None


def test_without_any_defined_metric_the_newest_is_reported(tmp_path):
    experiment = small_experiment(tmp_path)
    store = CheckpointStore(experiment.run_uri)
    store.save({"model": {}}, step=3, epoch=1, metrics={"val/AP": math.nan})
    store.save({"model": {}}, step=6, epoch=2, metrics={})
    assert store.best() is None
    assert summarise(experiment).epoch == 2


def test_a_checkpoint_whose_own_step_is_another_one(store, caplog):
    """The record fits its name and the file its record, but what is in it was trained for less."""
    store.save({"model": {}, "position": {"step": 5, "epoch": 1}}, step=9, epoch=3, metrics={})
    info, _ = store.latest()
    assert info.step == 6
    assert "it is of step 5, and its record says 9" in caplog.text


@pytest.mark.parametrize("version", [2, 0, "1", None, torch.ones(2)], ids=str)
def test_a_checkpoint_of_another_format_is_not_passed_over(store, version):
    """It is whole: to train on from the one before would overwrite what a later version has done."""
    store.save({"model": {}, "format": version}, step=9, epoch=3, metrics={})
    with pytest.raises(CheckpointError, match=r"step-00000009\.pt: format .*this version of mgdet reads 1"):
        store.latest()


# --- run.json and sweep.json


def test_a_run_record_is_read_back(tmp_path):
    record = Record({"a": 1.5, "b": [1, None]}, {"mlflow": "0af3"}, {"classes": [[1, "x"]]})
    file = locate(tmp_path / "run.json")
    write_record(file, "learned", record)
    assert read_record(file, "learned") == record


@pytest.mark.parametrize(
    "changes",
    [
        {"run_ids": {"mlflow": "../x"}},
        {"mlflow_run_id": 7},
        {"run_ids": {"mlflow": ""}},
        {"run_ids": []},
        {"data": []},
        {"data": {"classes": [1]}},
        {"data": {"classes": [[1.5, "x"]]}},
        {"data": {"splits": {"train": 3}}},
        {"data": {"splits": {"train": {"images": -1, "boxes": 0}}}},
        {"data": {"more": 1}},
        {"learned": [1]},
        {"x": 1},
    ],
    ids=str,
)
def test_a_run_record_that_could_not_have_been_written(tmp_path, changes):
    write_record(locate(tmp_path / "run.json"), "learned", Record({}, {}))
    rewrite(tmp_path / "run.json", **changes)
    with pytest.raises(ConfigError, match=r"run\.json is damaged"):
        read_record(locate(tmp_path / "run.json"), "learned")


def test_a_training_does_not_move_into_the_directory_of_a_sweep(tmp_path):
    """Both would write one journal there, and ask each other's workers to stop."""
    experiment = small_experiment(tmp_path)
    write_record(locate(experiment.run_uri) / "sweep.json", "definition", Record({}, {}))
    with pytest.raises(ConfigError, match="small is a sweep, not a training"):
        open_run(experiment)


def test_a_run_record_of_an_earlier_version(tmp_path):
    experiment = small_experiment(tmp_path)
    save_run(experiment, experiment, {"mlflow": "id"})
    path = Path(experiment.run_uri) / "run.json"
    path.write_text(json.dumps({"learned": experiment.identity(), "mlflow_run_id": "id"}))
    assert open_run(experiment, {"classes": [[1, "a"]], "splits": {}}).run_ids == {"mlflow": "id"}


# --- trial.json


@pytest.fixture
def trials(tmp_path):
    """A sweep with one trial, and the file of its record."""
    sweep = load_sweep(write(tmp_path))
    store = TrialStore(str(tmp_path / "s"), "s")
    key = next(iter(sweep.space))
    values = {k: d.encode(d.options()[0]) for k, d in sweep.space.items()}
    store.new(sweep, values, {k: sweep.space[k].decode(v) for k, v in values.items()})
    store.require(sweep)
    return sweep, tmp_path / "s" / "s-000" / "trial.json", key


def reread(tmp_path, sweep):
    TrialStore(str(tmp_path / "s"), "s").require(sweep)


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 1},
        {"name": "../../elsewhere"},
        {"name": "s-001"},
        {"state": "won"},
        {"epochs": 99},
        {"epochs": -1},
        {"settings": {"storage": "/elsewhere"}},
        {"settings": {}},
        {"params": {"storage": "/elsewhere"}},
        {"params": {}},
        {"evaluations": [{"epoch": 99, "metrics": {}, "time": 0.0}]},
        {"evaluations": 2 * [{"epoch": 1, "metrics": {}, "time": 0.0}]},
    ],
    ids=str,
)
def test_a_trial_that_could_not_have_been_written(tmp_path, trials, changes):
    sweep, path, _ = trials
    rewrite(path, **changes)
    with pytest.raises(ConfigError, match=r"s-000/trial\.json is damaged"):
        reread(tmp_path, sweep)


@pytest.mark.parametrize("value", [99.0, "2", True, None, math.nan], ids=str)
def test_a_searched_value_that_could_not_have_been_drawn(tmp_path, trials, value):
    sweep, path, key = trials
    rewrite(path, params={**unseal(path.read_bytes())["params"], key: value})
    with pytest.raises(ConfigError, match=r"s-000/trial\.json is damaged"):
        reread(tmp_path, sweep)


def test_a_trial_with_an_undefined_metric_is_read_back(tmp_path, trials):
    sweep, path, _ = trials
    store = TrialStore(str(tmp_path / "s"), "s")
    store.trials[0].add(1, {"val/AP": math.nan, "val/AP50": 0.5})
    store.save(store.trials[0])
    (again,) = TrialStore(str(tmp_path / "s"), "s").trials
    assert math.isnan(again.metrics["val/AP"])
    assert again.metrics["val/AP50"] == 0.5
    reread(tmp_path, sweep)
    assert unseal(path.read_bytes())["evaluations"][0]["metrics"]["val/AP"] is None


# --- the journal


def line_of(tmp_path) -> bytes:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"train/loss": 0.75, "val/AP": math.nan}, step=12, time=1.5e9)
    journal.close()
    return (tmp_path / "metrics.jsonl").read_bytes()


def test_no_flipped_bit_sends_another_value(tmp_path):
    line = line_of(tmp_path)
    points = {repr(p) for p in journal_module._parsed(line, str)}
    assert len(points) == 2
    for damaged in flips(line.rstrip()):
        assert {repr(p) for p in journal_module._parsed(damaged, str)} in (points, set())


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": 1.5},
        {"step": True},
        {"step": 10**30},
        {"time": math.inf},
        {"time": -1},
        {"time": "now"},
        {"metrics": {"a": "high"}},
        {"metrics": {"a": True}},
        {"metrics": {"a": 10**400}},
        {"metrics": [1]},
        {"more": 1},
    ],
    ids=str,
)
def test_a_line_that_could_not_have_been_written_is_left_out(change):
    good = {"step": 3, "time": 1.5e9, "metrics": {"a": 1.0}}
    assert journal_module._parsed(json.dumps(good).encode(), str), "lines of earlier versions have no checksum"
    assert journal_module._parsed(json.dumps({**good, **change}).encode(), str) == []


def test_a_link_among_the_unsent_artifacts_sends_nothing_from_outside(tmp_path):
    (tmp_path / "secret").write_text("PLANTED")
    outbox = Outbox(tmp_path / "unsent")
    outbox.put("text", "a.txt")
    (tmp_path / "unsent" / "link.txt").symlink_to(tmp_path / "secret")
    assert [p.name for p in outbox.waiting()] == ["a.txt"]


def test_a_link_in_the_place_of_the_unsent_artifacts_is_not_followed(tmp_path):
    """What is sent is removed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("a.txt", ".incoming-1"):
        (outside / name).write_text("PLANTED")
    (tmp_path / "unsent").symlink_to("outside")
    outbox = Outbox(tmp_path / "unsent")
    assert outbox.waiting() == []
    with pytest.raises(ValueError, match="is a link, which is not followed"):
        outbox.put("text", "b.txt")
    assert sorted(p.name for p in outside.iterdir()) == [".incoming-1", "a.txt"]
