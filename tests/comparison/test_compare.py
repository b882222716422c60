"""Comparisons from the directories of evaluations: the command, the API, the files, and what is refused."""

import json
import re

import numpy as np
import pytest

import mgdet
from benchmarks.intervals import detector, scenes
from mgdet.cli import main
from mgdet.comparison import compare
from mgdet.comparison.compare import compare_judged
from mgdet.comparison.judged import read_judged
from mgdet.comparison.publish import files_of, track
from mgdet.comparison.report import as_json, as_text, page
from mgdet.data import ShapesConfig, ShardedDataset, generate_shapes
from mgdet.data.pictures import Pictures
from mgdet.errors import MgdetError
from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.coco import coco_ap
from mgdet.inference.results import ResultFiles
from mgdet.tracking import NoTracking


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """Three directories as `mgdet evaluate --out` writes them: of objects that are found exactly, half, and not."""
    directory = tmp_path_factory.mktemp("evaluations")
    generate_shapes(directory / "shapes", ShapesConfig(train=2, val=12, size=64))
    dataset = ShardedDataset(str(directory / "shapes"), "val")
    gt = dataset.ground_truth()
    for name, every in (("good", 1), ("half", 2), ("none", 0)):
        rows = np.arange(len(gt.boxes))[::every] if every else np.zeros(0, dtype=int)
        det = DetectionArrays(gt.box_image[rows], gt.boxes[rows], np.linspace(0.9, 0.5, len(rows)), gt.labels[rows])
        metrics = {"checkpoint": f"{name}.pt", "data": "<shapes>", "split": "val", "metrics": {}}
        ResultFiles.below(str(directory / name)).write(metrics, coco_ap(gt, det), Pictures(dataset))
    return directory


@pytest.fixture(scope="module")
def simulated():
    """Two groups of three, the second one better."""
    rng = np.random.default_rng(0)
    gt = scenes(rng, 30)
    groups = {"<base>": [-0.5, -0.4, -0.45], "mine": [1.0, 1.2, 1.1]}
    runs = {name: [detector(rng, gt, skill, f"{name}{skill}") for skill in skills] for name, skills in groups.items()}
    return compare_judged(runs, samples=200)


def test_what_an_evaluation_wrote_is_read_back(evaluations):
    gt = ShardedDataset(str(evaluations / "shapes"), "val").ground_truth()
    found = read_judged(str(evaluations / "half"))
    for key in ("image_ids", "heights", "widths", "box_image", "labels", "iscrowd"):
        assert np.array_equal(getattr(found.gt, key), getattr(gt, key)), key
    np.testing.assert_allclose(found.gt.boxes, gt.boxes, atol=1e-9)
    assert found.gt.categories == gt.categories
    assert found.source == {"checkpoint": "half.pt", "data": "<shapes>", "split": "val"}
    expected = coco_ap(gt, found.det, "pycocotools")
    assert coco_ap(found.gt, found.det, "pycocotools").metrics() == pytest.approx(expected.metrics())


def test_the_command(evaluations, tmp_path, capsys):
    half, good, none = (str(evaluations / name) for name in ("half", "good", "none"))
    out = tmp_path / "out"
    arguments = ["compare", half, good, none, "--samples", "100", "--json", str(tmp_path / "x.json"), "--out", str(out)]
    assert main.main(arguments) == 0
    said = capsys.readouterr().out
    assert "good against half" in said
    assert re.search(r"^AP +0\.\d+ +1\.0000 +\+0\.\d+ +\[\+0\.\d+, \+0\.\d+\] +better$", said, re.M), said
    assert "none makes more errors in" in said
    values = json.loads((tmp_path / "x.json").read_text())
    assert [(pair["base"], pair["other"]) for pair in values["pairs"]] == [("half", "good"), ("half", "none")]
    lost = values["pairs"][1]["differences"]
    assert (lost["AP"]["other"], lost["AP"]["verdict"]) == (0, "worse")
    assert lost["AP50 lost to missed"]["verdict"] == "worse"
    assert sorted(path.name for path in out.iterdir()) == ["compare.html", "compare.json", "compare.txt"]
    assert json.loads((out / "compare.json").read_text()) == values


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{half}"], "1 of at least 2 runs or groups"),
        ([], "0 of at least 2 runs or groups"),
        (["{half}", "{half}"], "the same run is given twice"),
        (["--group", "a", "{half}", "--group", "a", "{good}"], "two groups are named a"),
        (["--group", "a", "--group", "b", "{good}"], "the group a has no run"),
        (["{half}", "{good}", "--samples", "5"], "5 samples give no interval; at least 100"),
        (["{half}", "{half}/nowhere"], "no such file or directory"),
        (["{half}", "{damaged}"], "is damaged"),
        (["{half}", "{other}"], "were not judged on the same images"),
    ],
)
def test_what_is_refused(evaluations, tmp_path, capsys, arguments, said):
    damaged, other = tmp_path / "damaged", tmp_path / "other"
    for directory in (damaged, other):
        directory.mkdir()
        for name in ("metrics.json", "annotations.json", "detections.parquet"):
            (directory / name).write_bytes((evaluations / "none" / name).read_bytes())
    (damaged / "detections.parquet").write_bytes(b"PAR1")
    content = json.loads((other / "annotations.json").read_text())
    fewer = {**content, "images": content["images"][:-1]}
    last = content["images"][-1]["id"]
    fewer["annotations"] = [each for each in content["annotations"] if each["image_id"] != last]
    (other / "annotations.json").write_text(json.dumps(fewer))
    places = {"half": evaluations / "half", "good": evaluations / "good", "damaged": damaged, "other": other}
    typed = [argument.format(**places) for argument in arguments]
    assert main.main(["compare", *typed]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error


def test_every_source_is_looked_at_before_one_is_evaluated(evaluations, monkeypatch):
    monkeypatch.setattr(compare, "read_judged", lambda *args: pytest.fail("it was evaluated"))
    with pytest.raises(MgdetError, match="nowhere: no such file or directory"):
        compare.compare({"a": [str(evaluations / "half")], "b": [str(evaluations / "nowhere")]})


def test_groups_of_seeds(simulated):
    (pair,) = simulated.pairs
    assert pair.verdict("AP") == "better"
    assert pair.differences["AP"].low > 0
    assert pair.verdict("AP50 lost to missed") in ("better", "")
    changes = [change.change for change in pair.images]
    assert changes == sorted(changes)
    assert 0 not in changes
    assert "and of the runs of a group" in as_text(simulated)


def test_the_same_seed_gives_the_same_intervals(evaluations):
    groups = {"half": evaluations / "half", "good": evaluations / "good"}
    one, other = (mgdet.compare(groups, samples=100, seed=4) for _ in range(2))
    assert one.values == other.values
    assert str(one) == str(other)
    json.dumps(one.values, allow_nan=False)
    assert one.html().startswith("<!doctype html>")


def test_the_page_needs_nothing_and_takes_no_name_for_markup(simulated):
    shown = page(simulated, "mgdet compare <a>")
    assert "<base>" not in shown
    assert "&lt;base&gt;" in shown
    assert "://" not in shown
    assert "<script" not in shown
    assert shown.count("<table") >= 4


def test_files_and_a_tracker_that_is_off(simulated):
    files = files_of(simulated)
    assert json.loads(files["compare.json"]) == json.loads(json.dumps(as_json(simulated)))
    assert track(simulated, files, NoTracking()) == ()
