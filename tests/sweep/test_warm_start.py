"""A sweep that knows what earlier ones have found, and the file that Optuna's dashboard opens."""

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from mgdet.errors import ConfigError
from mgdet.runs.record import Record, write_record
from mgdet.storage import locate
from mgdet.sweep import study_file
from mgdet.sweep.config import load_sweep
from mgdet.sweep.study_file import FILE, StudyFile
from mgdet.sweep.trials import TrialStore, definition
from mgdet.sweep.warm_start import earlier_trials
from tests.sweep.test_config import write

SIGMA = "assigner.sigma"


def earlier_sweep(directory, sweep, values, states=None):
    """A sweep on disk whose trials have reached these values of AP."""
    uri = str(directory)
    write_record(locate(uri) / "sweep.json", "definition", Record(definition(sweep), {}))
    store = TrialStore(uri, directory.name)
    for number, value in enumerate(values):
        sigma = 1.5 + number / 10
        trial = store.new(sweep, {SIGMA: sigma}, {SIGMA: sigma})
        state = states[number] if states else "finished"
        for epoch in (2, trial.epochs) if state == "finished" else (2,):
            trial.add(epoch, {"val/AP": value})
        trial.state, trial.reason = state, "why" if state == "failed" else ""
        store.save(trial)
    return store


def test_the_trials_of_earlier_sweeps_are_known_and_do_not_count(tmp_path):
    sweep = load_sweep(write(tmp_path))
    earlier_sweep(tmp_path / "a", sweep, [0.1, 0.2])
    earlier_sweep(tmp_path / "b", sweep, [0.3, 0.4], ["finished", "running"])
    warm = load_sweep(write(tmp_path), {"warm_start": [str(tmp_path / "a"), str(tmp_path / "b")]})
    assert [t.metrics["val/AP"] for t in earlier_trials(warm)] == [0.1, 0.2, 0.3], "one that is not done says nothing"
    assert earlier_trials(sweep) == []


def test_without_a_warm_start_the_record_is_that_of_earlier_versions(tmp_path):
    assert "warm_start" not in definition(load_sweep(write(tmp_path)))
    warm = load_sweep(write(tmp_path), {"warm_start": ["runs/a"]})
    assert definition(warm)["warm_start"] == ["runs/a"]


def test_another_base_is_told_and_another_space_is_refused(tmp_path, caplog):
    caplog.set_level("INFO", logger="mgdet")
    earlier_sweep(tmp_path / "a", load_sweep(write(tmp_path), ["train.optimizer.lr=0.01"]), [0.1])
    warm = {"warm_start": [str(tmp_path / "a")]}
    assert len(earlier_trials(load_sweep(write(tmp_path), warm))) == 1
    assert "1 trials of" in caplog.text
    assert "another set" in caplog.text
    for change in ({f"space.{SIGMA}": {"uniform": [1, 3]}}, {"metric": ["val/divergence"]}):
        with pytest.raises(ConfigError, match="cannot be compared with this one"):
            earlier_trials(load_sweep(write(tmp_path), warm | change))
    with pytest.raises(ConfigError, match=r"is no sweep: it has no sweep\.json"):
        earlier_trials(load_sweep(write(tmp_path), {"warm_start": [str(tmp_path / "nowhere")]}))


def study_of(directory):
    storage = JournalStorage(JournalFileBackend(str(directory / FILE)))
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage)


def test_optuna_opens_the_file_of_a_sweep(tmp_path):
    sweep = load_sweep(write(tmp_path))
    states = ["finished", "stopped", "failed", "running"]
    store = earlier_sweep(tmp_path / "s", sweep, [0.1, 0.2, 0.3, 0.4], states)
    file = StudyFile(sweep, store)
    store.trials[3].add(store.trials[3].epochs, {"val/AP": 0.5})
    store.trials[3].state = "finished"
    file.add(store.trials[3])
    study = study_of(tmp_path / "s")
    assert [t.state for t in study.trials] == [
        *(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE)
    ]
    assert study.best_trial.user_attrs["name"] == "s-003"
    assert study.best_value == 0.5
    assert study.trials[0].params == store.trials[0].params
    assert study.trials[1].intermediate_values == {2: 0.2}
    assert study.metric_names == ["val/AP"]
    StudyFile(sweep, store)
    assert len(study_of(tmp_path / "s").trials) == 4, "a restart writes it anew"


def test_several_metrics(tmp_path):
    sweep = load_sweep(write(tmp_path, metric=["val/AP", "val/divergence"]))
    store = earlier_sweep(tmp_path / "s", sweep, [0.1, 0.2], ["finished", "stopped"])
    for trial in store.trials:
        trial.evaluations[-1].metrics["val/divergence"] = 0.3
    StudyFile(sweep, store)
    study = study_of(tmp_path / "s")
    assert [t.values for t in study.best_trials] == [[0.1, 0.3]]
    assert len(study.trials) == 2


def test_a_file_that_cannot_be_written_ends_no_search(tmp_path, monkeypatch, caplog):
    sweep = load_sweep(write(tmp_path))
    store = earlier_sweep(tmp_path / "s", sweep, [0.1])

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(study_file, "JournalFileBackend", full)
    StudyFile(sweep, store).add(store.trials[0])
    assert caplog.text.count("The search goes on without it") == 1


def test_remote_storage_has_no_such_file(tmp_path):
    class Remote:
        directory = locate("file:///nowhere")
        trials = ()

    Remote.directory = type("Place", (), {"uri": "s3://bucket/s"})
    assert StudyFile(load_sweep(write(tmp_path)), Remote)._study is None
