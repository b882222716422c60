"""The searcher on a recorded table of trials (`tests/sweep/recorded.py`), without Ray and without training."""

import random
import statistics

import pytest

from mgdet.cluster.search import ResumingSearcher
from mgdet.sweep.config import TPE, RandomSearch, load_sweep
from mgdet.sweep.trials import Trial, TrialStore
from tests.sweep.recorded import SPACE, Recorded
from tests.sweep.test_config import write

RANDOM, WITHIN = 60, 30


@pytest.fixture(scope="module")
def table():
    return Recorded()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Of so many trials as random search gets; the experiment behind it is never trained."""
    return load_sweep(write(tmp_path_factory.mktemp("sweep"), space=SPACE, trials=RANDOM, scheduler={"name": "none"}))


class InMemory(TrialStore):
    """Keeps records in memory, because a replay is about the values."""

    def __init__(self):
        self.trials, self.name = [], "s"

    def save(self, trial):
        pass


def replay(sweep, store, value, until):
    """Try what the searcher suggests until there are so many trials; their values in order."""
    search = ResumingSearcher(sweep, store, [t for t in store.trials if not t.done], {"workers": 1})
    while sum(t.done for t in store.trials) < until:
        suggested = search.suggest("x")
        trial = store.trials[suggested["number"]]
        trial.add(trial.epochs, {"val/AP": value(trial)})
        trial.state = "finished"
        store.save(trial)
        search.on_trial_complete("x")
    return [t.metrics["val/AP"] for t in store.trials]


def seeded(sweep, kind, seed):
    return sweep.model_copy(update={"searcher": kind(seed=seed)})


def trials_to_reach(sweep, table, monkeypatch, seed):
    """How many trials TPE needs for the best value of as many random ones; one more than it may have at most."""
    monkeypatch.setattr("mgdet.cluster.search.trial_experiment", lambda sweep, trial, cluster: NoExperiment)

    def value(trial):
        return table(trial.params)

    best = max(replay(seeded(sweep, RandomSearch, 1000 + seed), InMemory(), value, RANDOM))
    found = replay(seeded(sweep, TPE, seed), InMemory(), value, WITHIN)
    return next((n for n, v in enumerate(found, 1) if v >= best), WITHIN + 1)


class NoExperiment:
    @staticmethod
    def shown():
        return {}


@pytest.fixture
def fast(monkeypatch, sweep):
    """New trials without their experiment, whose validation takes most of the time."""

    def new(self, sweep, params, settings):
        trial = Trial(number=len(self.trials), name="s", params=params, settings=settings, epochs=1)
        self.trials.append(trial)
        return trial

    monkeypatch.setattr(TrialStore, "new", new)


@pytest.mark.parametrize(
    "replays", [pytest.param(7, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.exhaustive)]
)
@pytest.mark.usefixtures("fast")
def test_the_best_of_60_random_trials_within_30(sweep, table, monkeypatch, replays):
    needed = [trials_to_reach(sweep, table, monkeypatch, seed) for seed in range(replays)]
    print(f"median {statistics.median(needed)} of {sorted(needed)}")
    assert statistics.median(needed) <= WITHIN


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.exhaustive) for s in range(1, 20))])
def test_a_restarted_search_goes_on_as_one_that_was_not(sweep, table, tmp_path, seed):
    """The same values in every later trial, to the bit; the records are read from disk."""
    small = seeded(sweep, TPE, seed)
    small = small.model_copy(update={"searcher": small.searcher.model_copy(update={"startup_trials": 3})})
    cut, whole = random.Random(seed).randrange(2, 8), 10

    def value(trial):
        return table(trial.params)

    through = replay(small, TrialStore(str(tmp_path / "through"), "s"), value, whole)
    replay(small, TrialStore(str(tmp_path / "cut"), "s"), value, cut)
    assert replay(small, TrialStore(str(tmp_path / "cut"), "s"), value, whole) == through
    stored = [TrialStore(str(tmp_path / name), "s").trials for name in ("through", "cut")]
    assert [t.params for t in stored[0]] == [t.params for t in stored[1]]


@pytest.mark.usefixtures("fast")
def test_repetitions_that_cannot_win_are_left_out_and_the_search_comes_to_its_end(sweep, table, monkeypatch):
    """With noise of a known deviation: fewer trainings, the winner among those that have all repetitions."""
    monkeypatch.setattr("mgdet.cluster.search.trial_experiment", lambda sweep, trial, cluster: NoExperiment)
    noisy = sweep.model_copy(update={"trials": 8, "repeat": 3, "repeat_until": 0.95})
    draw = random.Random(0)
    store = InMemory()
    search = ResumingSearcher(noisy, store, [], {"workers": 1})
    trained = 0
    while isinstance(suggested := search.suggest("x"), dict):
        trial = store.trials[suggested["number"]]
        trial.add(1, {"val/AP": table(trial.params) + draw.gauss(0, 0.002)})
        trial.state = "finished"
        search.on_trial_complete("x")
        trained += 1
    assert len(store.trials) == noisy.total == 24
    left_out = [t for t in store.trials if t.reason.startswith("left out")]
    assert trained + len(left_out) == 24
    assert 3 <= len(left_out) <= 14
    assert all(t.state == "stopped" and not t.evaluations for t in left_out)
    assert all(t.state.is_finished() for t in search._study.trials)
    again = ResumingSearcher(noisy, store, [], {"workers": 1})
    assert [t.value for t in again._study.trials] == pytest.approx([t.value for t in search._study.trials])
