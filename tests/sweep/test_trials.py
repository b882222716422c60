"""What is known of trials: on disk, in order of merit, and for a searcher that starts anew."""

import itertools
import random

import optuna
import pytest

from mgdet.errors import ConfigError
from mgdet.sweep.config import load_sweep
from mgdet.sweep.constraints import broken, excesses
from mgdet.sweep.table import headline, table
from mgdet.sweep.trials import Trial, TrialStore, definition, front, judged, ranked, tell, winner_of
from tests.sweep.test_config import write


def trial(number, state="finished", epoch=4, **metrics):
    t = Trial(number=number, name=f"s-{number:03d}", params={}, settings={}, epochs=4, state=state)
    if metrics:
        t.add(epoch, {f"val/{k}": v for k, v in metrics.items()})
    return t


@pytest.fixture
def sweep(tmp_path):
    return load_sweep(write(tmp_path, metric=["val/AP", "val/divergence"]))


def test_a_book_is_read_back_as_it_was_written(tmp_path, sweep):
    book = TrialStore(str(tmp_path / "s"), "s")
    for sigma in (1.5, 2.5):
        t = book.new(sweep, {"assigner.sigma": sigma}, {"assigner.sigma": sigma})
        t.add(2, {"val/AP": 0.25, "epoch": 2})
        t.state = "stopped"
        book.save(t)
    again = TrialStore(str(tmp_path / "s"), "s")
    assert again.trials == book.trials
    assert [t.name for t in again.trials] == ["s-000", "s-001"]
    assert again.trials[1].metrics == {"val/AP": 0.25}
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_damaged_record_is_named(tmp_path, sweep):
    TrialStore(str(tmp_path / "s"), "s").new(sweep, {}, {"assigner.sigma": 2})
    (tmp_path / "s" / "s-000" / "trial.json").write_text('{"number": 0')
    with pytest.raises(ConfigError, match=r"s-000/trial.json is damaged"):
        TrialStore(str(tmp_path / "s"), "s")


@pytest.mark.parametrize(("lost", "there"), [(0, "trial.json"), (1, "trial.json"), (2, "run.json")])
def test_a_new_trial_does_not_take_the_place_of_one_whose_record_was_lost(tmp_path, sweep, lost, there):
    book = TrialStore(str(tmp_path / "s"), "s")
    for _ in range(3):
        book.new(sweep, {}, {"assigner.sigma": 2})
    (tmp_path / "s" / "s-002" / "run.json").write_text("{}")
    (tmp_path / "s" / f"s-00{lost}" / "trial.json").unlink()
    with pytest.raises(ConfigError, match=rf"s-00{lost}/trial.json is missing, and there is .*/{there}"):
        TrialStore(str(tmp_path / "s"), "s")


def test_directories_that_are_no_trials_are_left_alone(tmp_path, sweep):
    """One that a killed process made before the record, and others of similar names."""
    book = TrialStore(str(tmp_path / "s"), "s")
    for name in ("s-000", "s-00x", "s-1", "other-004", "report"):
        (tmp_path / "s" / name).mkdir(parents=True)
    (tmp_path / "s" / "other-004" / "trial.json").write_text("{}")
    assert TrialStore(str(tmp_path / "s"), "s").trials == []
    assert book.new(sweep, {}, {"assigner.sigma": 2}).number == 0


def test_an_evaluation_that_a_restart_repeats_counts_once():
    t = trial(0)
    assert t.add(1, {"val/AP": 0.1})
    assert t.add(2, {"val/AP": 0.2})
    assert not t.add(1, {"val/AP": 0.3})
    assert not t.add(2, {"val/AP": 0.3})
    assert [e.metrics["val/AP"] for e in t.evaluations] == [0.1, 0.2]


def test_a_trial_that_ended_stands_before_one_that_was_stopped(sweep):
    trials = [
        trial(0, "stopped", 2, AP=0.9),
        trial(1, AP=0.3),
        trial(2, AP=0.4),
        trial(3, "failed", 2, AP=0.99),
        trial(4, "running", 1, AP=0.95),
        trial(5),
        trial(6, AP=float("nan")),
        trial(7, AP=0.4),
    ]
    assert [t.number for t in ranked(sweep, trials)] == [2, 7, 1, 4, 0]


def test_the_front_against_its_definition(sweep):
    """A trial is on the front if no other is at least as good in both metrics and better in one."""
    rng = random.Random(0)
    for count in (0, 1, 2, 7, 25):
        trials = [trial(i, AP=rng.randint(0, 5) / 5, divergence=rng.randint(0, 5) / 5) for i in range(count)]

        def better(a, b):
            x, y = a.metrics, b.metrics
            no_worse = x["val/AP"] >= y["val/AP"] and x["val/divergence"] <= y["val/divergence"]
            return no_worse and (x["val/AP"], x["val/divergence"]) != (y["val/AP"], y["val/divergence"])

        expected = [t.number for t in trials if not any(better(o, t) for o in trials)]
        assert [t.number for t in front(sweep, trials)] == expected


def test_the_front_leaves_out_what_is_not_done(sweep):
    trials = [trial(0, "stopped", 2, AP=1, divergence=0), trial(1, AP=0.1, divergence=0.9), trial(2, AP=0.9)]
    assert [t.number for t in front(sweep, trials)] == [1]


def test_optuna_learns_what_was_there_before(sweep):
    study = optuna.create_study(directions=["maximize", "minimize"])
    done = [trial(0, AP=0.4, divergence=0.3), trial(1, "failed", AP=0.2, divergence=0.1), trial(2, AP=0.4)]
    for t, sigma in zip(done, (1.5, 2.0, 3.0), strict=True):
        t.params = {"assigner.sigma": sigma}
        tell(study, sweep, t)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "FAIL"]
    assert study.trials[0].values == [0.4, 0.3]
    assert study.trials[0].params == {"assigner.sigma": 1.5}


def test_what_makes_two_sweeps_the_same(tmp_path):
    path = write(tmp_path)
    same = load_sweep(path)
    for override in ("trials=9", "concurrent=1", "max_failures=3", "cluster.workers=2", "tracking.enabled=false"):
        assert definition(load_sweep(path, [override])) == definition(same)
    for override in ("train.epochs=3", "metric=val/AP75", "searcher.seed=1", "scheduler.name=none", "storage=x"):
        assert definition(load_sweep(path, [override])) != definition(same)
    assert all(isinstance(k, str) for k in itertools.chain(definition(same)))


def test_a_choice_is_judged_by_the_mean_of_its_repetitions(tmp_path):
    sweep = load_sweep(write(tmp_path), ["trials=3", "repeat=2"])
    trials = [
        *(trial(0, AP=0.2), trial(1, AP=0.4)),
        *(trial(2, AP=0.5), trial(3, "stopped", 2, AP=0.3)),
        *(trial(4, AP=0.35), trial(5, "failed")),
    ]
    found = judged(trials, 2)
    assert [t.name for t in found] == ["s-000", "s-002", "s-004"]
    assert [t.metrics["val/AP"] for t in found] == pytest.approx([0.3, 0.4, 0.35])
    assert [t.state for t in found] == ["finished", "stopped", "finished"]
    assert found[2].reason == "mean of 1 of 2 repetitions"
    assert [t.name for t in ranked(sweep, found)] == ["s-004", "s-000", "s-002"]
    assert judged(trials[:3], 2)[1].state == "running"
    assert judged([trial(0, "failed"), trial(1, "failed")], 2)[0].state == "failed"
    assert judged(trials, 1) == trials


def test_repetitions_and_a_searched_seed_exclude_each_other(tmp_path):
    assert load_sweep(write(tmp_path), ["trials=3", "repeat=2"]).total == 6
    with pytest.raises(ConfigError, match="repeat = 2: it sets the seed, which is searched as well"):
        load_sweep(write(tmp_path), {"trials": 2, "repeat": 2, "space.seed": {"grid": [0, 1]}})


def test_the_report_has_the_spread_of_repetitions(tmp_path):
    from mgdet.sweep.report import seeds_csv

    sweep = load_sweep(write(tmp_path), ["trials=1", "repeat=2"])
    settings = {"assigner.sigma": 2.0}
    trials = [
        trial(n, AP=ap).model_copy(update={"settings": {**settings, "seed": n}}) for n, ap in ((0, 0.2), (1, 0.4))
    ]
    header, row = seeds_csv(sweep, trials).splitlines()
    assert header.startswith("assigner.sigma,seeds,val/AP mean,val/AP deviation")
    assert row.startswith("2.0,2,0.3000,0.1414")


def test_a_trial_that_breaks_a_constraint_does_not_win(tmp_path):
    changes = {"metric": ["val/AP", "val/divergence"], "constraints": ["val/AP <= 0.6", "val/divergence<=0.3"]}
    sweep = load_sweep(write(tmp_path, **changes))
    kept, worse = trial(0, AP=0.4, divergence=0.3), trial(1, "stopped", 2, AP=0.5, divergence=0.1)
    broken = [trial(2, AP=0.5, divergence=0.31), trial(3, AP=0.7, divergence=0.2), trial(4, AP=0.6)]
    trials = [*broken, worse, kept]
    assert [t.number for t in ranked(sweep, trials)] == [0, 1, 3, 4, 2]
    assert winner_of(sweep, trials).number == 0
    assert [t.number for t in front(sweep, trials)] == [0]
    assert winner_of(sweep, broken) is None
    assert "no trial keeps val/AP <= 0.6 and val/divergence<=0.3 so far" in table(sweep, broken, 1)
    assert "(breaks val/divergence<=0.3)" in headline(sweep, broken[0])
    assert "constraints" not in definition(load_sweep(write(tmp_path)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val/divergence < 0.3", "expected a metric, <= or >=, and a number"),
        ("val/divergence <= nan", "expected a metric, <= or >=, and a number"),
        ("0.3 >= val/divergence", "expected a metric"),
        ("val/latency <= 20", "'val/latency' is not a metric of the evaluation; there are val/AP,"),
        ("val/latency_ms <= 20", "val/latency_ms: nothing measures this; add `evaluation.cost: true` to what is set"),
    ],
)
def test_constraints_that_mean_nothing(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_sweep(write(tmp_path, constraints=[text]))


def test_what_a_detector_costs_can_be_bounded(tmp_path):
    changes = {"constraints": ["val/latency_ms <= 20", "val/parameters <= 3e7"]}
    sweep = load_sweep(write(tmp_path, **changes), ["evaluation.cost=true"])
    slow = {"latency_ms": 20.5, "parameters": 3e7}
    trials = [trial(0, AP=0.5, **slow), trial(1, AP=0.4, **slow | {"latency_ms": 20})]
    assert winner_of(sweep, trials).number == 1


def test_by_how_much_a_constraint_is_broken():
    texts = ["val/AP >= 0.5", "val/divergence <= 0.25"]
    assert excesses(texts, {"val/AP": 0.25, "val/divergence": 0.125}) == [0.25, -0.125]
    assert excesses(texts, {"val/AP": float("nan")}) == [1e9, 1e9]
    assert broken(texts, {"val/AP": 0.5, "val/divergence": 0.5}) == texts[1:]
