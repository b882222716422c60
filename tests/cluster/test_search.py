"""Searcher and scheduler of a sweep that was restarted know what happened before. No Ray is started here."""

import json
import random
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from ray import cloudpickle
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mgdet.cluster.recorder import Recorder
from mgdet.cluster.search import ResumingSearcher, build_scheduler
from mgdet.errors import ConfigError
from mgdet.runs.record import Record, write_record
from mgdet.storage import locate
from mgdet.sweep.config import load_sweep
from mgdet.sweep.record import open_sweep
from mgdet.sweep.report import report
from mgdet.sweep.trials import FAILURE, TrialStore, definition
from mgdet.tracking import Mlflow, RunHandle
from mgdet.tracking.run import Child
from tests.sweep.test_config import write

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
SIGMA = "assigner.sigma"


def finish(book, trial, **metrics):
    trial.add(trial.epochs, {f"val/{k}": v for k, v in metrics.items()})
    trial.state = "finished"
    book.save(trial)


def searcher(sweep, book):
    return ResumingSearcher(sweep, book, [t for t in book.trials if not t.done], {"workers": 1})


def test_a_trial_is_on_disk_before_tune_hears_of_it(tmp_path):
    sweep = load_sweep(write(tmp_path))
    book = TrialStore(str(tmp_path / "s"), "s")
    config = searcher(sweep, book).suggest("abc")
    on_disk = TrialStore(str(tmp_path / "s"), "s").trials
    assert [t.number for t in on_disk] == [config["number"]] == [0]
    assert config["experiment"]["assigner"]["sigma"] == on_disk[0].settings[SIGMA]
    assert config["experiment"]["name"] == "s-000"
    assert config["experiment"]["storage"] == f"{tmp_path}/runs/s"
    assert config["experiment"]["cluster"]["workers"] == 1


def test_it_ends_after_the_last_trial(tmp_path):
    sweep = load_sweep(write(tmp_path))
    book = TrialStore(str(tmp_path / "s"), "s")
    search = searcher(sweep, book)
    for i in range(3):
        assert isinstance(search.suggest(str(i)), dict)
    assert search.suggest("more") == Searcher.FINISHED


def test_after_a_restart_unfinished_trials_come_first_and_unchanged(tmp_path):
    sweep = load_sweep(write(tmp_path), ["trials=5"])
    book = TrialStore(str(tmp_path / "s"), "s")
    search = searcher(sweep, book)
    first = [search.suggest(str(i)) for i in range(3)]
    finish(book, book.trials[1], AP=0.3)

    again = TrialStore(str(tmp_path / "s"), "s")
    search = searcher(sweep, again)
    second = [search.suggest(str(i)) for i in range(4)]
    assert second[:2] == [first[0], first[2]]
    assert [c["number"] for c in second[2:]] == [3, 4]
    assert search.suggest("more") == Searcher.FINISHED
    sigmas = [c["experiment"]["assigner"]["sigma"] for c in [*first, *second[2:]]]
    assert len(set(sigmas)) == 5, "a restarted sampler drew the same values once more"


def test_more_trials_may_be_asked_for_later(tmp_path):
    book = TrialStore(str(tmp_path / "s"), "s")
    search = searcher(load_sweep(write(tmp_path)), book)
    for i in range(3):
        search.suggest(str(i))
        finish(book, book.trials[i], AP=i / 10)
    search = searcher(load_sweep(write(tmp_path), ["trials=4"]), book)
    assert search.suggest("x")["number"] == 3
    assert search.suggest("y") == Searcher.FINISHED


def test_what_earlier_sweeps_found_counts_for_the_sampler_and_not_as_trials(tmp_path):
    sweep = load_sweep(write(tmp_path))
    earlier = TrialStore(str(tmp_path / "earlier"), "earlier")
    for sigma in (1.5, 2.5):
        finish(earlier, earlier.new(sweep, {SIGMA: sigma}, {SIGMA: sigma}), AP=sigma / 10)
    book = TrialStore(str(tmp_path / "s"), "s")
    search = ResumingSearcher(sweep, book, [], {"workers": 1}, earlier=earlier.trials)
    assert [t.values for t in search._study.trials] == [[0.15], [0.25]]
    for i in range(3):
        assert search.suggest(str(i))["number"] == i
    assert search.suggest("more") == Searcher.FINISHED


def test_repetitions_share_their_values_and_are_told_by_their_mean(tmp_path):
    sweep = load_sweep(write(tmp_path), ["trials=2", "repeat=3", "seed=7"])
    book = TrialStore(str(tmp_path / "s"), "s")
    search = searcher(sweep, book)
    configs = [search.suggest(str(i)) for i in range(4)]
    assert [c["experiment"]["seed"] for c in configs] == [7, 8, 9, 7]
    sigmas = [c["experiment"]["assigner"]["sigma"] for c in configs]
    assert sigmas[0] == sigmas[1] == sigmas[2] != sigmas[3]
    for number, ap in ((2, 0.1), (0, 0.2)):
        finish(book, book.trials[number], AP=ap)
        search.on_trial_complete(str(number))
    assert search._study.trials[0].value is None, "one repetition is not done"
    search.on_trial_complete("1", error=True)
    assert search._study.trials[0].value == pytest.approx(0.15), "of those that did not fail"
    search.on_trial_complete("3", error=True)
    for number in ("4", "5"):
        search.suggest(number)
        search.on_trial_complete(number, error=True)
    assert search._study.trials[1].state.name == "FAIL"
    assert search.suggest("more") == Searcher.FINISHED


def test_repetitions_go_on_after_a_restart(tmp_path):
    sweep = load_sweep(write(tmp_path), ["trials=3", "repeat=2"])
    book = TrialStore(str(tmp_path / "s"), "s")
    search = searcher(sweep, book)
    first = [search.suggest(str(i)) for i in range(5)]
    for number, ap in ((0, 0.1), (1, 0.2), (3, 0.4), (4, 0.6)):
        finish(book, book.trials[number], AP=ap)
    again = TrialStore(str(tmp_path / "s"), "s")
    again.require(sweep)
    search = searcher(sweep, again)
    assert [t.value for t in search._study.trials] == [pytest.approx(0.15), None, None]
    assert search.suggest("a") == first[2], "the repetition that was not done"
    last = search.suggest("b")
    assert last["number"] == 5, "the repetition that had not begun"
    assert last["experiment"]["assigner"] == first[4]["experiment"]["assigner"]
    assert search.suggest("more") == Searcher.FINISHED
    for trial_id, number, ap in (("a", 2, 0.2), ("b", 5, 0.2)):
        finish(again, again.trials[number], AP=ap)
        search.on_trial_complete(trial_id)
    assert [t.value for t in search._study.trials] == pytest.approx([0.15, 0.3, 0.4])


def test_grid_points_come_in_order_also_after_a_restart(tmp_path):
    space = {"seed": {"grid": [0, 1, 2]}, "assigner.name": {"grid": ["max_iou", "simota"]}}
    sweep = load_sweep(write(tmp_path, space=space, trials=12))
    book = TrialStore(str(tmp_path / "s"), "s")
    search = searcher(sweep, book)
    for i in range(5):
        search.suggest(str(i))
        finish(book, book.trials[i], AP=0.1)
    book = TrialStore(str(tmp_path / "s"), "s")
    search = searcher(sweep, book)
    for i in range(7):
        search.suggest(f"b{i}")
    points = [(t.settings["seed"], t.settings["assigner.name"]) for t in book.trials]
    assert points == 2 * [(s, n) for n in ("max_iou", "simota") for s in (0, 1, 2)]


def test_optuna_hears_of_the_past_and_of_undefined_metrics(tmp_path):
    sweep = load_sweep(write(tmp_path), ["trials=4", "metric=[val/AP, val/divergence]"])
    book = TrialStore(str(tmp_path / "s"), "s")
    search = searcher(sweep, book)
    for i in range(3):
        search.suggest(str(i))
    finish(book, book.trials[0], AP=0.3, divergence=0.5)
    search.on_trial_complete("0", {})
    finish(book, book.trials[1], AP=0.3)  # divergence is undefined
    search.on_trial_complete("1", {})
    search.on_trial_complete("2", error=True)
    assert [t.state.name for t in search._study.trials[:3]] == ["COMPLETE", "FAIL", "FAIL"]
    book.trials[2].state = "failed"
    again = searcher(sweep, book)
    assert [t.state.name for t in again._study.trials] == ["COMPLETE", "FAIL", "FAIL"]


def test_optuna_hears_by_how_much_constraints_are_broken(tmp_path, recwarn):
    """From the trials that it suggested, and after a restart from their records."""
    bounds = ["val/divergence <= 0.25"]
    sweep = load_sweep(write(tmp_path, constraints=bounds), ["trials=6", "searcher.startup_trials=2"])
    book = TrialStore(str(tmp_path / "s"), "s")
    search = searcher(sweep, book)
    for i, divergence in enumerate((0.5, 0.125, 0.25)):
        search.suggest(str(i))
        finish(book, book.trials[i], AP=i / 10, divergence=divergence)
        search.on_trial_complete(str(i), {})
    again = searcher(sweep, book)
    for study in (search._study, again._study):
        assert [list(t.system_attrs["constraints"]) for t in study.trials] == [[0.25], [-0.125], [0.0]]
    assert isinstance(again.suggest("x"), dict)
    assert not [w for w in recwarn if "constraint" in str(w.message)]


WHEN = {
    "assigner.name": {"choice": ["mutual_guidance", "max_iou"]},
    SIGMA: {"uniform": [1, 4], "when": {"assigner.name": "mutual_guidance"}},
    "train.optimizer.lr": {"loguniform": [1e-4, 1e-2]},
}


@pytest.mark.parametrize("metric", ["val/AP", ["val/AP", "val/divergence"]], ids=["one metric", "two"])
def test_keys_are_drawn_together_with_those_that_exist_in_the_same_trials(tmp_path, metric, recwarn):
    sweep = load_sweep(write(tmp_path, space=WHEN, trials=12, metric=metric), ["searcher.startup_trials=3"])
    assert definition(sweep)["searcher"].items() >= {"multivariate": True, "group": True}.items()
    book = TrialStore(str(tmp_path / "s"), "s")
    search = searcher(sweep, book)
    for i in range(8):
        search.suggest(str(i))
        finish(book, book.trials[i], AP=i / 10, divergence=0.5)
        search.on_trial_complete(str(i), {})
    together = {frozenset(s) for s in search._study.sampler._search_space_group.search_spaces}
    assert together == {frozenset({SIGMA}), frozenset({"assigner.name", "train.optimizer.lr"})}
    assert not [str(w.message) for w in recwarn if "optuna" in w.filename or "multivariate" in str(w.message)]


def test_keys_are_drawn_by_themselves_where_that_is_asked_for(tmp_path):
    path = write(tmp_path, space=WHEN)
    with pytest.raises(ConfigError, match=r"group = true needs multivariate = true"):
        load_sweep(path, ["searcher.multivariate=false"])
    sweep = load_sweep(path, ["searcher.multivariate=false", "searcher.group=false"])
    sampler = searcher(sweep, TrialStore(str(tmp_path / "s"), "s"))._study.sampler
    assert (sampler._multivariate, sampler._group) == (False, False)


def test_a_record_without_the_searchers_newer_keys_is_continued(tmp_path):
    sweep = load_sweep(write(tmp_path))
    there = definition(sweep)
    there["searcher"] = {"name": "tpe", "seed": 0, "startup_trials": 10}
    for known, refused in ((there, False), ({**there, "searcher": {**there["searcher"], "seed": 1}}, True)):
        write_record(locate(tmp_path / "s" / "sweep.json"), "definition", Record(known, {}))
        with pytest.raises(ConfigError, match="another definition") if refused else nullcontext():
            assert open_sweep(sweep, str(tmp_path / "s")) is not None


def test_what_tune_keeps_in_the_sweeps_directory_holds_no_password(tmp_path):
    """Tune writes trial configurations there, and pickles the searcher and its callbacks."""
    sweep = load_sweep(write(tmp_path), ["tracking.uri=http://me:hunter2@mlflow:5000"])
    book = TrialStore(str(tmp_path / "s"), "s")
    search = searcher(sweep, book)
    recorder = Recorder(sweep, book, 1, RunHandle("1", "http://me:hunter2@mlflow:5000", "1"), Mlflow())
    kept = [json.dumps(search.suggest("0")).encode(), cloudpickle.dumps(search), cloudpickle.dumps(recorder)]
    kept += [json.dumps(definition(sweep)).encode(), *report(sweep, book.trials).values()]
    kept += [p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()]
    assert all(b"hunter2" not in data for data in kept)
    assert sweep.experiment(book.trials[0].settings).tracking.uri.count("hunter2"), "the trial itself must have it"


# --- the recorder


class Store:
    """Stands for a tracker; notes what is done to which run."""

    def __init__(self, *children):
        self.found, self.done = children, []

    def children(self, parent):
        return list(self.found)

    def end(self, handle, status):
        self.done.append((handle.run_id, status))

    def close_child(self, handle, status, tags, *where):
        self.done.append((handle.run_id, status, tags))


def recorded(tmp_path, *children):
    """A recorder of three trials, the first of which has begun, its store of records, and its tracker."""
    sweep = load_sweep(write(tmp_path))
    book = TrialStore(str(tmp_path / "s"), "s")
    search = searcher(sweep, book)
    for i in range(3):
        search.suggest(str(i))
    tracker = Store(*children)
    recorder = Recorder(sweep, book, 1, RunHandle("parent", "sqlite:///x", "1"), tracker)
    trial = tune_trial(0)
    recorder.on_trial_start(1, [], trial)
    return recorder, book, tracker, trial, search


def test_an_error_that_a_second_try_would_meet_again_ends_its_trial(tmp_path):
    """Tune sees a trial that reported something and came to its end; the search and the record know it as failed."""
    recorder, book, _, trial, search = recorded(tmp_path)
    recorder.on_trial_result(1, [], trial, {"epoch": 1, "val/AP": 0.25})
    message = {FAILURE: "image 3 cannot be read"}
    scheduler = build_scheduler(recorder.sweep, book, 4)
    assert scheduler.on_trial_result(None, trial, message) == CONTINUE
    recorder.on_trial_result(1, [], trial, message)
    assert TrialStore(str(tmp_path / "s"), "s").trials[0].state == "failed", "on disk at once"
    recorder.on_trial_complete(1, [], trial)
    search.on_trial_complete("0", message)
    kept = TrialStore(str(tmp_path / "s"), "s").trials[0]
    assert (kept.state, kept.reason, kept.epoch) == ("failed", "image 3 cannot be read", 1)
    assert search._study.trials[0].state.name == "FAIL"


def test_a_sweep_that_stops_at_once_leaves_no_run_open(tmp_path):
    """Sends nothing: processes of the trials may still write their journals."""
    children = [Child("a", "s-000", True), Child("b", "s-001", True), Child("c", "s-002", False), Child("d", "x", True)]
    recorder, book, tracker, _, _ = recorded(tmp_path, *children)
    book.trials[1].state = "failed"
    recorder.abandon()
    assert tracker.done == [("a", "KILLED"), ("b", "FAILED")]


def test_a_tracker_that_hangs_does_not_keep_a_sweep_from_stopping(tmp_path, monkeypatch, caplog):
    recorder, _, tracker, _, _ = recorded(tmp_path)
    over = threading.Event()
    monkeypatch.setattr(tracker, "children", lambda parent: over.wait(60) and [])
    monkeypatch.setattr("mgdet.cluster.recorder.ABANDON_S", 0.05)
    recorder.abandon()
    over.set()
    assert "not all runs of trials could be ended: no whole answer within 0.05 s" in caplog.text


# --- the scheduler


def tune_trial(number):
    return SimpleNamespace(trial_id=f"tune-{random.random()}", config={"number": number})


def play(scheduler, events, book=None):
    """Feed (number, epoch, AP) to a scheduler, and to a book; what it decides."""
    decisions = []
    for number, epoch, ap in events:
        if book is not None and book.trials[number].add(epoch, {"val/AP": ap}):
            book.save(book.trials[number])
        decisions.append(scheduler.on_trial_result(None, tune_trial(number), {"epoch": epoch, "val/AP": ap}))
    return decisions


@pytest.mark.parametrize("name", ["asha", "median"])
@pytest.mark.parametrize("seed", range(8))
def test_a_restarted_scheduler_decides_like_one_that_went_on(tmp_path, name, seed):
    """The same events, with a restart after any one of them: the same decisions."""
    rng = random.Random(seed)
    overrides = [f"scheduler={{name: {name}, grace_epochs: 1}}", "trials=6", "train.epochs=9"]
    sweep = load_sweep(write(tmp_path), overrides)
    events = sorted(
        ((n, e, rng.random() * e) for n in range(6) for e in range(1, 9)), key=lambda e: (e[1] + e[0] // 2, e[0])
    )
    book = TrialStore(str(tmp_path / "a"), "s")
    for i in range(6):
        book.new(sweep, {SIGMA: 2.0 + i / 10}, {SIGMA: 2.0 + i / 10})
    through = build_scheduler(sweep, TrialStore(str(tmp_path / "none"), "s"), 9)
    expected, alive = [], set(range(6))
    kept = []
    for event in events:
        if event[0] in alive:
            kept.append(event)
            expected += play(through, [event])
            if expected[-1] == STOP:
                alive.discard(event[0])
    assert STOP in expected
    assert CONTINUE in expected
    cut = rng.randrange(1, len(kept))
    play(build_scheduler(sweep, book, 9), kept[:cut], book)
    restarted = build_scheduler(sweep, TrialStore(str(tmp_path / "a"), "s"), 9)
    assert play(restarted, kept[cut:]) == expected[cut:]


def test_an_evaluation_that_a_resumed_trial_repeats_decides_nothing(tmp_path):
    sweep = load_sweep(write(tmp_path), ["scheduler.grace_epochs=1", "trials=3"])
    book = TrialStore(str(tmp_path / "s"), "s")
    for sigma in (1.5, 2.5):
        book.new(sweep, {SIGMA: sigma}, {SIGMA: sigma})
    play(build_scheduler(sweep, book, 4), [(0, 1, 0.5), (1, 1, 0.6)], book)
    assert play(build_scheduler(sweep, book, 4), [(0, 1, 0.1)]) == [CONTINUE]


def test_an_undefined_metric_decides_nothing(tmp_path):
    sweep = load_sweep(write(tmp_path), ["scheduler.grace_epochs=1"])
    scheduler = build_scheduler(sweep, TrialStore(str(tmp_path / "s"), "s"), 4)
    assert scheduler.on_trial_result(None, tune_trial(0), {"epoch": 1}) == CONTINUE


def test_no_scheduler_is_first_in_first_out(tmp_path):
    sweep = load_sweep(write(tmp_path), ["scheduler.name=none"])
    assert type(build_scheduler(sweep, TrialStore(str(tmp_path / "s"), "s"), 4)) is FIFOScheduler
