"""Components from outside the package: found, joined to the unions, recorded, and never imported unasked."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

from mgdet import plugins
from mgdet.config import load, validate
from mgdet.config_base import ByName
from mgdet.errors import ConfigError
from mgdet.evaluation import evaluator
from mgdet.inference.load import load_detector
from mgdet.runs.launch import train_in_process
from mgdet.sweep.config import load_sweep
from tests.small import small_experiment
from tests.trained_runs import call, import_job, refused

BEST_K = """
from typing import Literal

from pydantic import Field

from mgdet.assign.atss import ATSS
from mgdet.config_base import Config


class BestK(ATSS):
    name: Literal["best_k"] = "best_k"
    k: int = Field(default=9, ge=1)
"""

COUNT = """
from mgdet.evaluation.metric import Metric, MetricInfo, joined


class Count(Metric):
    name = "count"
    infos = (MetricInfo("val/count", "min", "images", headline=True),)

    def __init__(self, ground_truth, config):
        super().__init__(ground_truth, config)
        self.parts = []

    def update(self, seen):
        self.parts.append({"count": seen.batch.positions.cpu().numpy() >= 0})

    def state(self):
        return joined(self.parts)

    def merge(self, states):
        out = Count(self.ground_truth, self.config)
        out.parts = list(states)
        return out

    def compute(self):
        self.total = float(self.state()["count"].sum())
        return self

    def metrics(self):
        return {"val/count": self.total}
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Path, modules, unions and metrics are afterwards what they were."""
    monkeypatch.setattr(evaluator, "METRICS", list(evaluator.METRICS))
    members = {union: union.members for union in ByName.unions}
    modules, path = set(sys.modules), list(sys.path)
    monkeypatch.setattr(plugins, "_loaded", {})
    yield
    for union, before in members.items():
        union.set_members(before)
    sys.path[:] = path
    for name in [n for n in sys.modules if n.startswith(("outside", "my_"))]:
        if name not in modules:
            del sys.modules[name]


@pytest.fixture
def beside(tmp_path):
    """A package and an experiment's file that names it, in one directory that is not on the path."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/__init__.py").touch()
    (tmp_path / "outside/best_k.py").write_text(BEST_K)
    tree = {"name": "x", "data": {"uri": "d"}, "plugins": ["outside.best_k"], "assigner": {"name": "best_k", "k": 5}}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def test_an_assigner_beside_the_file_is_configured_like_one_of_ours(beside):
    e = load(beside / "e.yaml", ["assigner.k=4"])
    assert (e.assigner.name, e.assigner.k) == ("best_k", 4)
    assert e.plugins == ("outside.best_k",)
    assert validate(yaml.safe_load(e.to_yaml()), "again") == e
    assert e.identity()["assigner.k"] == 4
    assert not any(key.startswith("plugins") for key in e.identity())
    with pytest.raises(ConfigError, match=r"unknown key assigner\.kk\. Did you mean assigner\.k\?"):
        load(beside / "e.yaml", ["assigner.kk=4"])
    with pytest.raises(ConfigError, match=r"assigner\.name = 'best': allowed are max_iou, .*best_k\."):
        load(beside / "e.yaml", ["assigner.name=best"])
    with pytest.raises(ConfigError, match=r"assigner\.k = 0: Input should be greater"):
        load(beside / "e.yaml", ["assigner.k=0"])
    assert plugins.shipped_modules() == [str(beside / "outside")]


def test_a_plugin_on_the_command_line_and_of_a_base_add_up(beside, monkeypatch):
    (beside / "my_second.py").write_text(BEST_K.replace("best_k", "second"))
    (beside / "child.yaml").write_text("base: e.yaml\n")
    monkeypatch.chdir(beside)
    e = load(beside / "child.yaml", ["assigner.name=second", "plugins=[my_second]"])
    assert e.plugins == ("outside.best_k", "my_second")
    assert (e.assigner.name, e.assigner.k) == ("second", 5)


def test_a_sweep_searches_it_and_checks_the_ends_of_its_intervals(beside):
    tree = {
        "name": "s",
        "base": "plain.yaml",
        "plugins": ["outside.best_k"],
        "space": {
            "assigner.name": {"choice": ["best_k", "atss"]},
            "assigner.k": {"integers": [1, 20], "when": {"assigner.name": "best_k"}},
        },
        "trials": 4,
        "scheduler": {"name": "none"},
    }
    (beside / "plain.yaml").write_text("{name: x, data: {uri: d}}")
    (beside / "s.yaml").write_text(yaml.safe_dump(tree))
    sweep = load_sweep(beside / "s.yaml")
    assert {(e.assigner.name, getattr(e.assigner, "k", None)) for _, e in sweep.corners()} >= {("best_k", 20)}
    assert all(e.plugins == ("outside.best_k",) for _, e in sweep.corners())
    with pytest.raises(ConfigError, match=r"assigner\.k = 0"):
        load_sweep(beside / "s.yaml", ["space.assigner.k={integers: [0, 20], when: {assigner.name: best_k}}"])


def test_a_metric_is_computed_shown_and_searched(beside):
    (beside / "my_count.py").write_text(COUNT)
    tree = yaml.safe_load(small_experiment(beside).to_yaml())
    (beside / "base.yaml").write_text(yaml.safe_dump(tree))
    space = {"train.optimizer.lr": {"loguniform": [1e-4, 1e-2]}}
    sweep = {"name": "s", "base": "base.yaml", "metric": "val/count", "space": space, "trials": 2}
    (beside / "s.yaml").write_text(yaml.safe_dump(sweep | {"scheduler": {"name": "none"}}))
    with pytest.raises(ConfigError, match="'val/count' is not a metric of the evaluation; there are val/AP"):
        load_sweep(beside / "s.yaml")
    (beside / "base.yaml").write_text(yaml.safe_dump(tree | {"plugins": ["my_count"]}))
    assert load_sweep(beside / "s.yaml").lead == ("val/count", "min")

    try:
        summary = train_in_process(load(beside / "base.yaml"))[0]
    finally:
        torch.use_deterministic_algorithms(False)
    assert summary.metrics["val/count"] == 3
    assert evaluator.headlines(summary.metrics)[-1] == "val/count"


def test_a_metric_that_is_imported_anew_takes_the_place_of_its_earlier_version(beside):
    before = list(evaluator.METRICS)
    (beside / "my_count.py").write_text(COUNT)
    for _ in range(2):
        plugins.load_plugins(["my_count"], (beside,))
        assert [m.name for m in evaluator.METRICS] == [*(m.name for m in before), "count"]
        assert evaluator.METRICS[-1] is sys.modules["my_count"].Count
        del sys.modules["my_count"]
        plugins._loaded.clear()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "my_plugin was not found .*looked for as an entry point.*a module in "),
        ("import nothing_like_it", "found but cannot be imported: ModuleNotFoundError: No module named 'nothing_like"),
        ("1 +", "found but cannot be imported: SyntaxError"),
        ("raise SystemExit(3)", "found but cannot be imported: SystemExit"),
        ("x = 1", "has no component. It must hold a class that derives from one of .*Assigner"),
        (
            BEST_K.replace("best_k", "simota"),
            r"the name simota of my_plugin\.BestK .* is taken by mgdet\.assign\.simota",
        ),
        (
            COUNT.replace('"count"\n    infos', '"divergence"\n    infos'),
            r"the name divergence of my_plugin\.Count .* is taken by mgdet\.evaluation\.task_divergence\.Divergence",
        ),
        (COUNT.replace("val/count", "val/AP"), r"the name val/AP of my_plugin\.Count .* is taken by .*CocoAP"),
        (COUNT.replace("    infos = ", "    data = "), r"the metric my_plugin\.Count .* has no infos: give it"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused_in_words(tmp_path, source, said):
    if source is not None:
        (tmp_path / "my_plugin.py").write_text(source)
    (tmp_path / "e.yaml").write_text("{name: x, data: {uri: d}, plugins: [my_plugin]}")
    before = list(evaluator.METRICS)
    with pytest.raises(ConfigError, match=said):
        load(tmp_path / "e.yaml")
    assert before == evaluator.METRICS


def test_two_modules_of_one_name_are_refused(beside, tmp_path_factory):
    load(beside / "e.yaml")
    other = tmp_path_factory.mktemp("other")
    (other / "outside").mkdir()
    (other / "outside/__init__.py").touch()
    (other / "e.yaml").write_text((beside / "e.yaml").read_text())
    with pytest.raises(ConfigError, match="there are two modules outside"):
        load(other / "e.yaml")


def test_an_entry_point_is_a_name_for_a_module(beside, monkeypatch):
    info = beside / "outside-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mgdet.plugins]\nnearest = outside.best_k\n")
    monkeypatch.syspath_prepend(str(beside))
    e = validate_with(["nearest"], {"name": "best_k"})
    assert e.assigner.name == "best_k"


def validate_with(names, assigner):
    return load({"name": "x", "data": {"uri": "d"}, "plugins": names, "assigner": assigner})


def test_a_checkpoint_says_what_it_needs_and_imports_nothing_unasked(beside, monkeypatch):
    """Trained with it, refused without it, evaluated with it."""
    from mgdet.runs.launch import prepare
    from mgdet.tracking import NullTracker
    from mgdet.training.distributed import World
    from mgdet.training.loop import Worker

    monkeypatch.chdir(beside)
    plugins.load_plugins(["outside.best_k"], (Path(),))
    e = small_experiment(beside, plugins=["outside.best_k"], assigner={"name": "best_k"}, train__epochs=1)
    e = prepare(e, cpus=1, gpus=0)[0]
    try:
        Worker(e, World(0, 1, torch.device("cpu")), NullTracker()).run()
    finally:
        torch.use_deterministic_algorithms(False)

    del sys.modules["outside.best_k"], sys.modules["outside"]
    plugins._loaded.clear()
    needs = r"needs the plugin outside\.best_k: pass plugins=\['outside\.best_k'\].*--plugin outside\.best_k"
    with pytest.raises(ConfigError, match=needs):
        load_detector(e.run_uri)
    assert "outside" not in sys.modules
    job = import_job("evaluate")
    assert "needs the plugin outside.best_k" in refused(call(job, e.run_uri))
    answer = call(job, e.run_uri, "--plugin", "outside.best_k")
    assert answer.status == 0, answer.err
    assert load_detector(e.run_uri, plugins=["outside.best_k"]).experiment.assigner.name == "best_k"
