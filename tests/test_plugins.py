"""Components from outside the package: found, joined to the unions, recorded, and never imported unasked."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import mgdet
from mgdet import plugins
from mgdet.config import load, validate
from mgdet.config_base import ByField, ByName
from mgdet.data import formats
from mgdet.errors import ConfigError, DataError
from mgdet.evaluation import evaluator
from mgdet.inference.load import load_detector
from mgdet.runs.launch import train_in_process
from mgdet.sweep.config import load_sweep
from tests.outside import BEST_K, as_before  # noqa: F401  # a fixture of all tests here
from tests.small import small_experiment
from tests.trained_runs import call, import_job, refused

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


SMOOTH = """
from typing import ClassVar

from pydantic import Field

from mgdet.models.losses.base import LossTerm, Term


class Smooth(LossTerm):
    name: ClassVar[str] = "smooth"
    floor: float = Field(default=0.5, ge=0)

    def term(self, inputs):
        return Term((inputs.predictions.logits.sigmoid() - self.floor).square().mean())
"""

LINES = """
from dataclasses import dataclass
from pathlib import Path

from mgdet.data.formats.base import AnnotatedImage, AnnotatedObject, AnnotatedSplit, DataFormat, option


@dataclass(frozen=True)
class Lines(DataFormat):
    name = "lines"
    summary = "a line for each image: its file and the class of the whole of it"
    separator: str = option(":", "between file and class")

    def read(self, places):
        path, directory = places
        rows = [line.split(self.separator) for line in path.read_text().split()]
        images = [AnnotatedImage(i, f, None, [AnnotatedObject(c, (0, 0, 8, 8))]) for i, (f, c) in enumerate(rows)]
        return AnnotatedSplit(path, directory, images, categories=None)
"""


OPTIMIZER = "mgdet.training.optimizers import SGD"
FAST = {"train": {"optimizer": {"name": "best_few"}}}


@pytest.fixture
def beside(tmp_path):
    """A package and an experiment's file that names it, in one directory that is not on the path."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/__init__.py").touch()
    (tmp_path / "outside/best_few.py").write_text(BEST_K)
    tree = {
        "name": "x",
        "data": {"uri": "d"},
        "plugins": ["outside.best_few"],
        "assigner": {"name": "best_few", "k": 5},
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def test_an_assigner_beside_the_file_is_configured_like_one_of_ours(beside):
    e = load(beside / "e.yaml", ["assigner.k=4"])
    assert (e.assigner.name, e.assigner.k) == ("best_few", 4)
    assert e.plugins == ("outside.best_few",)
    assert validate(yaml.safe_load(e.to_yaml()), "again") == e
    assert e.identity()["assigner.k"] == 4
    assert not any(key.startswith("plugins") for key in e.identity())
    with pytest.raises(ConfigError, match=r"unknown key assigner\.kk\. Did you mean assigner\.k\?"):
        load(beside / "e.yaml", ["assigner.kk=4"])
    with pytest.raises(ConfigError, match=r"assigner\.name = 'best': allowed are max_iou, .*best_few\."):
        load(beside / "e.yaml", ["assigner.name=best"])
    with pytest.raises(ConfigError, match=r"assigner\.k = 0: Input should be greater"):
        load(beside / "e.yaml", ["assigner.k=0"])
    assert plugins.shipped_modules() == [str(beside / "outside")]


def test_a_plugin_on_the_command_line_and_of_a_base_add_up(beside, monkeypatch):
    (beside / "my_second.py").write_text(BEST_K.replace("best_few", "second"))
    (beside / "child.yaml").write_text("base: e.yaml\n")
    monkeypatch.chdir(beside)
    e = load(beside / "child.yaml", ["assigner.name=second", "plugins=[my_second]"])
    assert e.plugins == ("outside.best_few", "my_second")
    assert (e.assigner.name, e.assigner.k) == ("second", 5)


def test_a_sweep_searches_it_and_checks_the_ends_of_its_intervals(beside):
    tree = {
        "name": "s",
        "base": "plain.yaml",
        "plugins": ["outside.best_few"],
        "space": {
            "assigner.name": {"choice": ["best_few", "atss"]},
            "assigner.k": {"integers": [1, 20], "when": {"assigner.name": "best_few"}},
        },
        "trials": 4,
        "scheduler": {"name": "none"},
    }
    (beside / "plain.yaml").write_text("{name: x, data: {uri: d}}")
    (beside / "s.yaml").write_text(yaml.safe_dump(tree))
    sweep = load_sweep(beside / "s.yaml")
    assert {(e.assigner.name, getattr(e.assigner, "k", None)) for _, e in sweep.corners()} >= {("best_few", 20)}
    assert all(e.plugins == ("outside.best_few",) for _, e in sweep.corners())
    with pytest.raises(ConfigError, match=r"assigner\.k = 0"):
        load_sweep(beside / "s.yaml", ["space.assigner.k={integers: [0, 20], when: {assigner.name: best_few}}"])


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_loss_term_is_a_key_of_the_loss_and_is_trained_recorded_and_searched(beside):
    (beside / "my_smooth.py").write_text(SMOOTH)
    plain = small_experiment(beside, train__epochs=1)
    tree = yaml.safe_load(plain.to_yaml()) | {"plugins": ["my_smooth"]}
    (beside / "base.yaml").write_text(yaml.safe_dump(tree))
    e = load(beside / "base.yaml", ["loss.smooth.floor=0.25", "loss.smooth.weight=2"])
    assert e.loss.smooth.floor == 0.25
    assert validate(yaml.safe_load(e.to_yaml()), "again") == e
    assert e.identity()["loss.smooth.floor"] == 0.25
    with pytest.raises(ConfigError, match=r"unknown key loss\.smooth\.flor\. Did you mean loss\.smooth\.floor\?"):
        load(beside / "base.yaml", ["loss.smooth.flor=1"])
    with pytest.raises(ConfigError, match=r"unknown key loss\.smoth\. Did you mean loss\.smooth\?"):
        load(beside / "base.yaml", ["loss.smoth.floor=1"])
    with pytest.raises(ConfigError, match=r"loss\.smooth\.floor = -1: Input should be greater"):
        load(beside / "base.yaml", ["loss.smooth.floor=-1"])

    space = {"loss.smooth.floor": {"uniform": [0.0, 0.5]}}
    sweep = {"name": "s", "base": "base.yaml", "space": space, "trials": 2, "scheduler": {"name": "none"}}
    (beside / "s.yaml").write_text(yaml.safe_dump(sweep))
    assert {c.loss.smooth.floor for _, c in load_sweep(beside / "s.yaml").corners()} == {0.0, 0.5}

    unused = load(beside / "base.yaml")
    assert unused.loss.smooth is None
    assert "smooth" not in unused.to_yaml().replace("my_smooth", "")
    assert unused.identity() == plain.identity()
    try:
        train_in_process(e)
    finally:
        torch.use_deterministic_algorithms(False)
    logged = (Path(e.run_uri) / "metrics.jsonl").read_text()
    assert '"train/loss_smooth"' in logged


def test_a_box_loss_joins_the_box_losses_only(beside):
    source = """
from typing import Literal

from mgdet.models.losses.box import CodedTerm


class Squared(CodedTerm):
    name: Literal["squared"] = "squared"

    def of_difference(self, difference):
        return difference**2
"""
    (beside / "my_squared.py").write_text(source)
    plugins.load_plugins(["my_squared"], (beside,))
    tree = {"name": "x", "data": {"uri": "d"}, "plugins": ["my_squared"]}
    e = load(tree, ["loss.box.name=squared"])
    assert e.loss.box.name == "squared"
    assert "squared" not in type(e.loss).model_fields


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        (BEST_K, {"assigner": {"name": "best_few"}}),
        (SMOOTH, {"loss": {"smooth": {}}}),
        (BEST_K.replace("BestK(ATSS)", "Fast(SGD)").replace("mgdet.assign.atss import ATSS", OPTIMIZER), FAST),
    ],
    ids=["assigner", "loss term", "optimizer"],
)
def test_a_component_whose_plugin_is_loaded_but_not_named_is_refused(beside, source, uses):
    """Else a worker, or who loads the checkpoint, would not know where it comes from."""
    (beside / "my_plugin.py").write_text(source)
    plugins.load_plugins(["my_plugin"], (beside,))
    tree = {"name": "x", "data": {"uri": "d"}, **uses}
    with pytest.raises(ConfigError, match=r"(assigner|smooth|optimizer) comes from the plugin my_plugin: add"):
        load(tree)
    load(tree | {"plugins": ["my_plugin"]})


def test_a_data_format_is_a_sub_command_and_a_format_in_python(beside, monkeypatch):
    (beside / "my_lines.py").write_text(LINES)
    (beside / "photos").mkdir()
    for name in "ab":
        Image.new("RGB", (16, 16)).save(beside / f"photos/{name}.png")
    (beside / "l.txt").write_text("a.png=cat b.png=dog")
    monkeypatch.chdir(beside)
    job = import_job("prepare")
    split = ("--split", "train", "l.txt", "photos", "--separator", "=", "--out", "d")
    assert "invalid choice: 'lines'" in call(job, "lines", *split).err
    assert "my_missing was not found" in refused(call(job, "lines", "--plugin", "my_missing", *split))
    assert "my_lines" not in sys.modules
    answer = call(job, "lines", "--plugin", "my_lines", *split)
    assert answer.status == 0, answer.err
    assert "2 classes: cat, dog" in answer.out

    plugins._loaded.clear()
    formats.FORMATS[:] = [each for each in formats.FORMATS if each.name != "lines"]
    del sys.modules["my_lines"]
    splits = {"train": ("l.txt", "photos")}
    with pytest.raises(DataError, match=r"format = 'lines': allowed are coco.* and shapes"):
        mgdet.prepare("lines", "e", splits=splits, separator="=")
    prepared = mgdet.prepare("lines", "e", splits=splits, separator="=", plugins=["my_lines"])
    assert prepared.classes == ("cat", "dog")


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
            BEST_K.replace("best_few", "simota"),
            r"the name simota of my_plugin\.BestK .* is taken by mgdet\.assign\.simota",
        ),
        (
            COUNT.replace('"count"\n    infos', '"divergence"\n    infos'),
            r"the name divergence of my_plugin\.Count .* is taken by mgdet\.evaluation\.task_divergence\.Divergence",
        ),
        (COUNT.replace("val/count", "val/AP"), r"the name val/AP of my_plugin\.Count .* is taken by .*CocoAP"),
        (
            COUNT.replace("    infos = ", "    data = "),
            r"the Metric my_plugin\.Count .* has no infos: give it a MetricI",
        ),
        (
            SMOOTH.replace('"smooth"', '"cls"'),
            r"the name cls of my_plugin\.Smooth .* is taken by mgdet: choose another",
        ),
        (SMOOTH.replace('"smooth"', '"copy"'), r"the name copy of my_plugin\.Smooth .* is taken by mgdet"),
        (SMOOTH.replace('"smooth"', '"a.b"'), r"the name 'a\.b' of my_plugin\.Smooth .* is not of the form \[a-z\]"),
        (
            SMOOTH.replace("    name", "    nam"),
            r"the LossTerm my_plugin\.Smooth .* has no name: give it a name, such as",
        ),
        (f"{SMOOTH}\n\nclass Twin(Smooth):\n    pass", r"the name smooth of .* is taken by my_plugin\."),
        (
            LINES.replace('"lines"', '"coco"'),
            r"the name coco of my_plugin\.Lines .* is taken by mgdet\.data\.formats\.coco",
        ),
        (LINES.replace('"lines"', '"shapes"'), r"the name shapes of my_plugin\.Lines .* is taken by mgdet"),
        (
            LINES.replace("    summary", "    summ"),
            r"the DataFormat my_plugin\.Lines .* has no summary: give it a summary",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused_in_words(tmp_path, source, said):
    if source is not None:
        (tmp_path / "my_plugin.py").write_text(source)
    (tmp_path / "e.yaml").write_text("{name: x, data: {uri: d}, plugins: [my_plugin]}")

    def members():
        return [
            list(evaluator.METRICS),
            list(formats.FORMATS),
            [place.members for place in ByName.unions + ByField.nodes],
        ]

    before = members()
    with pytest.raises(ConfigError, match=said):
        load(tmp_path / "e.yaml")
    assert members() == before


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
    (info / "entry_points.txt").write_text("[mgdet.plugins]\nnearest = outside.best_few\n")
    monkeypatch.syspath_prepend(str(beside))
    e = validate_with(["nearest"], {"name": "best_few"})
    assert e.assigner.name == "best_few"


def validate_with(names, assigner):
    return load({"name": "x", "data": {"uri": "d"}, "plugins": names, "assigner": assigner})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "source", "uses"),
    [
        ("outside.best_few", BEST_K, {"assigner": {"name": "best_few"}}),
        pytest.param("outside.smooth", SMOOTH, {"loss": {"smooth": {}}}, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_says_what_it_needs_and_imports_nothing_unasked(beside, monkeypatch, plugin, source, uses):
    """Trained with it, refused without it, evaluated with it."""
    from mgdet.runs.launch import prepare
    from mgdet.tracking import NullTracker
    from mgdet.training.distributed import World
    from mgdet.training.loop import Worker

    monkeypatch.chdir(beside)
    (beside / f"{plugin.replace('.', '/')}.py").write_text(source)
    plugins.load_plugins([plugin], (Path(),))
    e = small_experiment(beside, plugins=[plugin], train__epochs=1, **uses)
    e = prepare(e, cpus=1, gpus=0)[0]
    try:
        Worker(e, World(0, 1, torch.device("cpu")), NullTracker()).run()
    finally:
        torch.use_deterministic_algorithms(False)

    del sys.modules[plugin], sys.modules["outside"]
    plugins._loaded.clear()
    named = re.escape(plugin)
    with pytest.raises(ConfigError, match=rf"needs the plugin {named}: pass plugins=\['{named}'\].*--plugin {named}"):
        load_detector(e.run_uri)
    assert "outside" not in sys.modules
    job = import_job("evaluate")
    assert f"needs the plugin {plugin}" in refused(call(job, e.run_uri))
    answer = call(job, e.run_uri, "--plugin", plugin)
    assert answer.status == 0, answer.err
    assert load_detector(e.run_uri, plugins=[plugin]).experiment.plugins == (plugin,)
