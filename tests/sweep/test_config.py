"""A sweep file: what it holds, and that every mistake in it is found before anything starts."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mgdet.errors import ConfigError
from mgdet.sweep.config import ASHA, NoScheduler, load_sweep
from tests.small import small_experiment

CONFIGS = Path(__file__).parents[2] / "configs"
SWEEPS = sorted((CONFIGS / "sweeps").glob("*.yaml"))


def write(directory, **changes) -> Path:
    """A sweep over `assigner.sigma` of the small experiment; `changes` replace top-level keys, None takes one out."""
    (directory / "base.yaml").write_text(small_experiment(directory).to_yaml())
    tree = {
        "name": "s",
        "base": "base.yaml",
        "set": {"train.epochs": 4},
        "space": {"assigner.sigma": {"uniform": [1, 4]}},
        "trials": 3,
        **changes,
    }
    path = directory / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in tree.items() if v is not None}))
    return path


def test_a_sweep_becomes_experiments(tmp_path):
    sweep = load_sweep(write(tmp_path))
    assert sweep.total == 3
    assert sweep.lead == ("val/AP", "max")
    e = sweep.trial("s-000", {"assigner.sigma": 2.5})
    assert (e.name, e.assigner.sigma, e.train.epochs) == ("s-000", 2.5, 4)
    assert e.storage == f"{tmp_path}/runs/s"


def test_nested_keys_are_dotted_keys(tmp_path):
    nested = write(tmp_path, set={"train": {"epochs": 4}}, space={"assigner": {"sigma": {"uniform": [1, 4]}}})
    assert load_sweep(nested) == load_sweep(write(tmp_path))


def test_overrides_reach_the_sweep_or_its_experiment(tmp_path):
    path = write(tmp_path)
    changes = ["trials=7", "scheduler.name=none", "train.epochs=3", "searcher={name: random, seed: 3}"]
    sweep = load_sweep(path, [*changes, "space.train.optimizer.lr={loguniform: [1e-4, 1e-3]}"])
    assert sweep.total == 7
    assert isinstance(sweep.scheduler, NoScheduler)
    assert sweep.searcher.name == "random"
    assert set(sweep.space) == {"assigner.sigma", "train.optimizer.lr"}
    assert sweep.experiment({"assigner.sigma": 2}).train.epochs == 3


def test_a_default_scheduler_needs_no_name(tmp_path):
    assert load_sweep(write(tmp_path), ["scheduler.grace_epochs=1"]).scheduler == ASHA(grace_epochs=1)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("val/AP75", {"val/AP75": "max"}),
        ("val/divergence", {"val/divergence": "min"}),
        (["val/AP", "val/divergence"], {"val/AP": "max", "val/divergence": "min"}),
        ({"val/AP/WBC": "max"}, {"val/AP/WBC": "max"}),
    ],
)
def test_metrics(tmp_path, written, read):
    assert load_sweep(write(tmp_path, metric=written)).metric == read


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"space": {"assigner.sgima": {"uniform": [1, 2]}}},
            r"unknown key assigner.sgima. Did you mean assigner.sigma",
        ),
        ({"space": {"assigner.sigma": {"uniform": [0.5, 2]}}}, r"assigner.sigma = 0.5.*\n.*uniform.*allows 0.5"),
        ({"space": {"train.seed": {"choice": [4]}}}, r"unknown key train.seed"),
        ({"space": {"train.clip_norm": {"choice": [4, "many"]}}}, r"train.clip_norm = 'many'[^$]*allows 'many'"),
        ({"space": {"assigner.name": {"choice": ["max_iuo"]}}}, r"assigner.name = 'max_iuo': allowed are"),
        ({"space": {"assigner.name": {"grid": ["center_sampling"]}, "model.name": {"grid": ["fcos"]}}}, None),
        (
            {"space": {"assigner.name": {"choice": ["max_iou"]}, "model.name": {"choice": ["retinanet", "fcos"]}}},
            r"max_iou[^$]*allows 'fcos'",
        ),
        ({"space": {"assigner.sigma": {"unform": [1, 2]}}}, r"expected exactly one of uniform"),
        ({"space": {}}, r"space"),
        ({"space": None}, r"space is missing"),
        ({"name": "a/b"}, r"name = 'a/b'"),
        ({"base": None}, r"base = None: expected the name"),
        ({"base": "none.yaml"}, r"cannot be read"),
        ({"metric": "val/ap"}, r"'val/ap' is not a metric"),
        ({"metric": {"val/AP": "up"}}, r"metric"),
        ({"metric": [["val/AP"]]}, r"metric"),
        ({"metric": [{"val/AP": "max"}]}, r"metric"),
        ({"metric": 3}, r"metric"),
        ({"trials": None}, r"trials is missing"),
        ({"trials": 0}, r"trials = 0"),
        ({"trials": 3, "space": {"seed": {"grid": [0, 1]}}}, r"a multiple of 2"),
        ({"scheduler": {"grace_epochs": 4}}, r"none would ever be stopped early"),
        ({"set": {"train.epochs": 4, "train.evaluate_every": 4}}, r"judged only at its end"),
        ({"set": {"assigner.sigma": 2}}, r"assigner.sigma: searched, and set"),
        ({"schedular": {"name": "asha"}}, r"unknown key schedular. Did you mean scheduler"),
        ({"searcher": {"name": "pbt"}}, r"searcher.name = 'pbt': allowed are tpe, random"),
    ],
)
def test_mistakes_are_found_when_the_file_is_read(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    if message is None:
        load_sweep(path)
        return
    with pytest.raises(ConfigError, match=message):
        load_sweep(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trails=3", "unknown key trails. Did you mean trials?"),
        ("train.epoch=3", "unknown key train.epoch. Did you mean train.epochs?"),
        ("trials.x=3", "trials is a value, it has no keys below it"),
        ("trials", "an override is written key=value"),
        ("assigner.sigma=3", "searched, and set"),
    ],
)
def test_mistakes_in_overrides(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        load_sweep(write(tmp_path), [override])


def test_an_assigner_may_be_searched_together_with_its_own_keys(tmp_path):
    space = {
        "assigner.name": {"choice": ["mutual_guidance", "max_iou", "simota"]},
        "assigner.sigma": {"uniform": [1, 4], "when": {"assigner.name": "mutual_guidance"}},
    }
    sweep = load_sweep(write(tmp_path, space=space))
    assert {e.assigner.name for _, e in sweep.corners()} == {"mutual_guidance", "max_iou", "simota"}
    with pytest.raises(ConfigError, match=r"unknown key assigner.sigma"):  # without the condition
        load_sweep(write(tmp_path, space={**space, "assigner.sigma": {"uniform": [1, 4]}}))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_the_ready_sweeps_are_valid(path):
    sweep = load_sweep(path)
    assert sweep.name == path.stem
    assert sweep.total >= 8


@pytest.mark.slow
def test_ray_is_not_imported_before_its_environment_is_set():
    """It reads the environment when it is imported, and `session` sets it."""
    code = "import sys, mgdet.cluster.tune, mgdet.sweep.config; print('ray' in sys.modules, 'mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
