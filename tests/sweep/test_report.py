"""The report of a sweep: tables, pictures, importance, and configurations that train as they are."""

import csv
import io

import pytest
from PIL import Image

from mgdet.config import load
from mgdet.sweep.config import load_sweep
from mgdet.sweep.report import importance, report, seeds_csv
from mgdet.sweep.table import headline, seconds_per_epoch, table
from mgdet.sweep.trials import EpochMetrics, TrialStore
from tests.sweep.test_config import write

SPACE = {
    "assigner.name": {"choice": ["mutual_guidance", "max_iou"]},
    "assigner.sigma": {"uniform": [1, 4], "when": {"assigner.name": "mutual_guidance"}},
    "train.optimizer.lr": {"loguniform": [1e-4, 1e-2]},
    "loss.cls": {"choice": [{"name": "focal"}, {"name": "varifocal"}]},
}


@pytest.fixture
def made(tmp_path):
    """A sweep over a conditional space with trials in every state; lr decides AP."""
    sweep = load_sweep(write(tmp_path, space=SPACE, trials=12, metric=["val/AP", "val/divergence"]))
    book = TrialStore(str(tmp_path / "s"), "s")
    for i in range(10):
        settings = {
            "assigner.name": "max_iou" if i % 3 == 0 else "mutual_guidance",
            "train.optimizer.lr": 1e-4 * 1.5**i,
            "loss.cls": {"name": "focal" if i % 2 else "varifocal"},
        }
        if i % 3:
            settings["assigner.sigma"] = 1.2 + i / 5
        params = {k: sweep.space[k].encode(v) for k, v in settings.items()}
        trial = book.new(sweep, params, settings)
        for epoch in range(1, 5 if i < 7 else 3):
            metrics = {"val/AP": 0.01 * i * epoch, "val/divergence": 0.9 - 0.05 * i + 0.01 * (i % 2)}
            trial.evaluations.append(EpochMetrics(epoch=epoch, metrics=metrics, time=100.0 * epoch))
        trial.state = "finished" if i < 7 else ["stopped", "failed", "running"][i - 7]
        trial.reason = {7: "asha: too bad", 8: "NonFiniteError: a gradient, or so"}.get(i, "")
    return sweep, book.trials


def rows(data: bytes):
    return list(csv.DictReader(io.StringIO(data.decode())))


@pytest.mark.slow
def test_every_file_is_what_it_says(made):
    files = report(*made)
    fronts = {name for name in files if name.startswith("front-")}
    assert set(files) - fronts == {
        "trials.csv",
        "winner.yaml",
        "importance.csv",
        "importance.png",
        "parallel_coordinates.png",
        "divergence_against_ap.png",
        "report.html",
    }
    assert "front-s-006.yaml" in fronts
    for name, data in files.items():
        if name.endswith(".png"):
            assert Image.open(io.BytesIO(data)).size[0] > 400


@pytest.mark.slow
def test_the_table_of_trials_is_in_order_of_merit(made):
    sweep, trials = made
    found = rows(report(sweep, trials)["trials.csv"])
    assert [r["trial"] for r in found[:3]] == ["s-006", "s-005", "s-004"]
    assert len(found) == len(trials)
    by_name = {r["trial"]: r for r in found}
    assert by_name["s-008"]["reason"] == "NonFiniteError: a gradient, or so"
    assert by_name["s-000"]["assigner.sigma"] == ""
    assert float(by_name["s-001"]["assigner.sigma"]) == 1.4
    assert float(by_name["s-006"]["val/AP"]) == pytest.approx(0.24)


@pytest.mark.slow
def test_the_page_has_every_trial(made):
    sweep, trials = made
    page = report(sweep, trials)["report.html"].decode()
    for trial in trials:
        assert f">{trial.name}</th>" in page
    assert "share of each key" in page
    assert "# s-006 of the sweep s" in page, "the winner's configuration"
    assert "no trial" not in report(sweep, [])["report.html"].decode()


@pytest.mark.slow
def test_the_winner_trains_as_it_is(made, tmp_path):
    sweep, trials = made
    for name, data in report(sweep, trials).items():
        if name.endswith(".yaml"):
            path = tmp_path / name
            path.write_bytes(data)
            experiment = load(path)
            assert experiment.name == ("s-winner" if name == "winner.yaml" else name[len("front-") : -len(".yaml")])
            assert experiment.storage == sweep.experiment(trials[0].settings).storage
    winner = load(tmp_path / "winner.yaml")
    assert winner.train.optimizer.lr == pytest.approx(1e-4 * 1.5**6)
    assert winner.loss.cls.name == "varifocal"


@pytest.mark.slow
def test_importance_finds_the_key_that_decides(made):
    sweep, trials = made
    found = importance(sweep, trials)
    assert max(found, key=found.get) == "train.optimizer.lr"
    assert sum(found.values()) == pytest.approx(1)
    assert "assigner.sigma" not in found, "it does not exist in every trial"
    assert importance(sweep, trials[:3]) is None


@pytest.mark.slow
def test_seeds_are_averaged_over_what_ended(tmp_path):
    space = {"seed": {"grid": [0, 1, 2]}, "assigner.name": {"grid": ["max_iou", "simota"]}}
    sweep = load_sweep(write(tmp_path, space=space, trials="auto"))
    book = TrialStore(str(tmp_path / "s"), "s")
    for i, point in enumerate(sweep.points):
        trial = book.new(sweep, point, dict(point))
        trial.add(4, {"val/AP": 0.1 * i})
        trial.state = "failed" if i == 5 else "finished"
    found = rows(seeds_csv(sweep, book.trials).encode())
    assert [(r["assigner.name"], r["seeds"]) for r in found] == [("max_iou", "3"), ("simota", "2")]
    assert [r["val/AP mean"] for r in found] == ["0.1000", "0.3500"]
    assert [r["val/AP deviation"] for r in found] == ["0.1000", "0.0707"]
    assert seeds_csv(load_sweep(write(tmp_path)), []) is None


@pytest.mark.slow
def test_a_sweep_without_any_value_still_has_its_table(tmp_path):
    sweep = load_sweep(write(tmp_path))
    book = TrialStore(str(tmp_path / "s"), "s")
    book.new(sweep, {"assigner.sigma": 2}, {"assigner.sigma": 2}).state = "failed"
    assert set(report(sweep, book.trials)) == {"trials.csv", "report.html"}
    assert set(report(sweep, [])) == {"trials.csv", "report.html"}


@pytest.mark.slow
def test_the_table_while_it_runs(made):
    sweep, trials = made
    assert seconds_per_epoch(trials) == 100
    text = table(sweep, trials, concurrent=2)
    first, best, header, *body = text.splitlines()
    # running: 2 epochs left; two trials of 4 epochs to come: 10 epochs of 100 s on two places
    assert first == "s: 9 of 12 trials done (7 finished, 1 stopped, 1 failed), 1 running; at most 8 min 20 s left"
    assert best.startswith("best s-006 finished at epoch 4 of 4: val/AP 0.2400, val/divergence 0.6000; ")
    assert header.split() == ["trial", "state", "epoch", "val/AP", "val/divergence", "left", "searched"]
    assert [line.split()[0] for line in body] == [f"s-{i:03d}" for i in (4, 5, 6, 7, 8, 9)]
    assert "3 min 20 s" in body[-1]
    assert len(table(sweep, trials, 2, everything=True).splitlines()) == 3 + 10


@pytest.mark.slow
def test_a_failed_trial_in_one_line(made):
    _, trials = made
    assert headline(made[0], trials[8]).endswith("(NonFiniteError: a gradient, or so)")


@pytest.mark.slow
def test_an_empty_table(tmp_path):
    assert table(load_sweep(write(tmp_path)), [], 1).splitlines()[0] == "s: 0 of 3 trials done, 0 running"
