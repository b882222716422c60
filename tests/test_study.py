"""The numbers of `benchmarks/study.py` against scipy and by hand, and the page that it makes of a store."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from scipy import stats

from mgdet.config_yaml import flatten
from mgdet.errors import ConfigError
from mgdet.sweep.config import load_sweep
from mgdet.sweep.space import Space
from tests.outside import BEST_K, as_before  # noqa: F401  # a fixture of all tests here

with pytest.MonkeyPatch.context() as patch:  # as for a script that is started there
    patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import study
    from study_numbers import across_arms, holm, paired, seeds_needed, sign_flip, spearman, within_arms

STUDIES = sorted((Path(__file__).parents[1] / "configs" / "studies").glob("*.yaml"))
BASE = [0.50, 0.52, 0.49, 0.51, 0.53, 0.50]
BETTER = [0.53, 0.54, 0.53, 0.52, 0.56, 0.54]


def by_seed(values):
    return dict(enumerate(values))


@pytest.mark.slow
def test_intervals_are_those_of_students_t():
    found = paired(by_seed(BETTER), by_seed(BASE))
    differences = [a - b for a, b in zip(BETTER, BASE, strict=True)]
    expected = stats.ttest_rel(BETTER, BASE).confidence_interval(0.95)
    assert found.mean == pytest.approx(sum(differences) / 6)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.excludes_zero


@pytest.mark.slow
def test_only_seeds_of_both_arms_are_paired():
    found = paired({0: 0.6, 1: 0.7, 3: 0.9, 4: math.nan}, {1: 0.5, 0: 0.5, 2: 0.5, 4: 0.5})
    assert (found.seeds, round(found.mean, 6)) == (2, 0.15)
    one = paired({0: 0.6}, {0: 0.5})
    assert one.seeds == 1
    assert not one.excludes_zero
    assert not paired({}, {0: 1.0}).excludes_zero


@pytest.mark.slow
def test_signs_are_counted_by_hand():
    """Of the eight sums of 1, 2 and 4, only +-7 are as far from 0."""
    assert sign_flip([1.0, 2.0, 4.0]) == 2 / 8
    assert sign_flip([1.0, 2.0, -4.0]) == 8 / 8
    assert sign_flip([0.01] * 8) == 2 / 256
    assert sign_flip([0.0, 0.0]) == 1
    assert sign_flip([0.01] * 20) < 1e-3


@pytest.mark.slow
def test_holm_by_hand():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan})
    assert {k: found[k] for k in "abc"} == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert math.isnan(found["d"])


@pytest.mark.slow
def test_seeds_that_a_difference_needs():
    """A difference as large as its deviation needs 10 pairs: the textbook's table of the paired t-test."""
    assert seeds_needed(0.02, 0.02) == 10
    assert seeds_needed(0.01, 0.02) == 34
    assert seeds_needed(-0.01, 0.02) == 34
    assert seeds_needed(0.02, 0.0) == 2
    assert seeds_needed(0.0, 0.1) is None
    assert seeds_needed(1e-9, 1.0) is None
    assert seeds_needed(math.nan, 1.0) is None


@pytest.mark.slow
def test_correlation_across_and_within_arms():
    """Arms rise together, runs within them fall: a pooled correlation would hide one of both."""
    arms = [[(x + dx, x - dx) for dx in (0.0, 1.0, 2.0)] for x in (10.0, 20.0, 30.0)]
    assert across_arms(arms).rho == pytest.approx(1)
    assert within_arms(arms).rho == pytest.approx(-1)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]).rho)
    assert within_arms([[(1.0, 2.0)]]).n == 0


def fake_run(assigner, seed, ap, **params):
    metrics = {f"test/{m}": ap for m in ("AP", "AP50", "AP75")} | {"test/divergence": 1 - ap}
    given = {
        "seed": str(seed),
        "data.uri": "data/bccd",
        "model.name": "retinanet",
        "model.quality": "none",
        "train.epochs": "20",
        "assigner.name": assigner,
        **params,
    }
    info = SimpleNamespace(run_id=f"{assigner}{seed}", run_name=f"{assigner}-{seed}")
    tags = {"mgdet.run": "runs/x"}
    return SimpleNamespace(info=info, data=SimpleNamespace(params=given, metrics=metrics, tags=tags))


class Store:
    """A client of MLflow that holds some runs, in pages of four."""

    def __init__(self, runs):
        sweep = SimpleNamespace(info=None, data=SimpleNamespace(params={}, metrics={}, tags={}))
        self.runs = [*runs, sweep]

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="1") if name == "study" else None

    def search_runs(self, ids, filter_string, page_token):
        first = int(page_token or 0)

        class Page(list):
            token = str(first + 4) if first + 4 < len(self.runs) else None

        return Page(self.runs[first : first + 4])


def runs():
    both = {"assigner.direction": "both"}
    base = [fake_run("max_iou", s, ap) for s, ap in enumerate(BASE)]
    return base + [fake_run("mutual_guidance", s, ap, **both) for s, ap in enumerate(BETTER)]


@pytest.mark.slow
def test_the_page_says_what_the_store_holds():
    found = study.tables(study.read_runs(Store(runs()), "study"))
    assert {t: {a: len(r) for a, r in arms.items()} for t, arms in found.items()} == {
        ("bccd", "retinanet"): {"baseline": 6, "mutual guidance, both": 6}
    }
    text = "\n".join(study.page(found, "test", "the command"))
    difference = paired(by_seed(BETTER), by_seed(BASE))
    interval = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    assert f"| mutual guidance, both | 6 | 0.537 | {interval} | 0.031 |" in text
    assert f"| mutual guidance gains AP | bccd | retinanet | {interval} | holds |" in text
    assert "not results on a test split" not in text
    assert "not results on a test split" in "\n".join(study.page(found, "val", "the command"))


@pytest.mark.slow
def test_a_claim_is_open_fails_or_holds():
    up = paired(by_seed(BETTER), by_seed(BASE))
    assert (study.verdict(up, 1), study.verdict(up, -1)) == ("holds", "fails")
    assert study.verdict(paired({0: 1.0, 1: 0.0}, {0: 0.0, 1: 1.0}), 1) == "open"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (fake_run("max_iou", 0, 0.9), "two runs"),
        (fake_run("atss", 0, 0.9, **{"train.epochs": "40"}), "train.epochs = "),
        (fake_run("atss", 0, 0.9, **{"data.uri": "data/other"}), "no run of the baseline"),
    ],
)
def test_what_a_reviewer_would_refuse_is_refused(more, message):
    with pytest.raises(ConfigError, match=message):
        study.tables(study.read_runs(Store([*runs(), more]), "study"))


@pytest.mark.slow
def test_an_assigner_of_ones_own_has_a_row_and_an_experiment_must_be_there():
    found = study.read_runs(Store([*runs(), fake_run("mine", 0, 0.5)]), "study")
    assert "mine" in study.tables(found)["bccd", "retinanet"]
    with pytest.raises(ConfigError, match="no experiment"):
        study.read_runs(Store([]), "other")


@pytest.mark.slow
def test_one_command_gives_an_assigner_from_outside_its_row(tmp_path, monkeypatch):
    """Trained with the study's seeds beside its baseline, looked at on the test split, and on the page."""
    (tmp_path / "my_best.py").write_text(BEST_K)
    monkeypatch.chdir(tmp_path)
    store, trained = Store([]), []

    def tune(path, overrides):
        sweep = load_sweep(path, overrides)
        for point in sweep.points:
            tree = flatten(sweep.experiment(Space(sweep.space).settings(point)).shown())
            trained.append((tree["assigner.name"], tree["seed"], tuple(tree["plugins"])))
            run = fake_run(tree["assigner.name"], tree["seed"], 0.5 + 0.01 * len(trained))
            run.data.params.update({key: str(value) for key, value in tree.items()})
            run.data.metrics = {}
            store.runs.append(run)

    def look(client, runs, split):
        for run in client.runs:
            run.data.metrics.setdefault("test/AP", 0.5 if run.data.params.get("assigner.name") == "max_iou" else 0.6)
        return len(runs)

    monkeypatch.setattr(study.mgdet, "tune", tune)
    monkeypatch.setattr(study, "connect", lambda *_: store)
    monkeypatch.setattr(study, "look_at_test", look)
    monkeypatch.setattr(study, "draw", lambda *_: [])
    command = ["arm", "best_few", "plugins=[my_best]", "assigner.top_k=3", "--out", str(tmp_path / "page.md")]
    assert study.main(command) == 0
    assert {name for name, _, _ in trained} == {"best_few", "max_iou"}
    assert [seed for name, seed, _ in trained if name == "best_few"] == list(range(8))
    assert all(brought == ("my_best",) for _, _, brought in trained)
    assert "| best_few | 8 | 0.600 | +0.100 [+0.100, +0.100] |" in (tmp_path / "page.md").read_text()
    trained.clear()
    store.runs = [run for run in store.runs if run.data.params.get("assigner.name") != "best_few"]
    assert study.main(command) == 0
    assert {name for name, _, _ in trained} == {"best_few"}  # the store has a baseline
    assert study.main(["arm"]) == 2
    assert study.main(["arm", "best_few", "--study", "other"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_is_a_sweep_with_paired_seeds(path):
    sweep = load_sweep(path)
    assert sweep.name == f"study-{path.stem.replace('_', '-')}"
    seeds = {point["seed"] for point in sweep.points}
    assert sweep.total == len(sweep.points) == len(seeds) * sweep.total // len(seeds)
    if "lr" not in path.stem:
        assert seeds == set(range(8))


@pytest.mark.slow
def test_the_studies_have_every_arm_of_the_claims():
    """By the arms that their trials would have in the store."""
    arms = set()
    for path in STUDIES:
        if "retinanet" in path.stem and "lr" not in path.stem:
            sweep = load_sweep(path)
            for point in itertools.islice(sweep.points, 0, None, 8):
                arms.add(point_arm(sweep, point))
    claimed = {arm for _, first, second, _, _ in study.CLAIMS for arm in (first, second)}
    assert claimed <= arms


def point_arm(sweep, point):
    tree = flatten(sweep.experiment(Space(sweep.space).settings(point)).shown())
    params = {key: str(value) for key, value in tree.items()}
    return study.Run("", "", params, {}, "").arm
