"""Every recipe trains: two epochs of a few tiny images for each pair of detector and assigner."""

import math
import re
from pathlib import Path

import pytest

from mgdet.cluster.train import run
from mgdet.config import load

IN_THE_GATE = ("bccd_retinanet_mutual_guidance", "bccd_fcos_mutual_labeling")
RECIPES = [
    pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in IN_THE_GATE else pytest.mark.exhaustive)
    for path in sorted((Path(__file__).parents[1] / "configs").glob("*_*.yaml"))
]
TINY = (
    *("data.generate.train=6", "data.generate.val=3", "data.generate.size=64"),
    *("data.transform.resize.height=64", "data.transform.resize.width=64", "data.loader.workers=0"),
    *("train.epochs=2", "train.evaluate_every=1", "train.batch_size=2"),
    *("cluster.workers=0", "tracking.enabled=false"),
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_epochs_of_a_recipe(recipe, tmp_path_factory):
    data = tmp_path_factory.getbasetemp() / "recipes" / "shapes"
    warmed_up = ["assigner.warmup_epochs=1"] if re.search("task_aligned|mutual_labeling", recipe.stem) else []
    storage = tmp_path_factory.mktemp("runs")
    experiment = load(recipe, [*TINY, *warmed_up, f"data.uri={data}", f"storage={storage}"])
    summary, _ = run(experiment)
    assert summary.epoch in (1, 2)
    assert 0 <= summary.metrics["val/AP"] <= 1
    assert all(math.isfinite(v) for v in summary.metrics.values())
    rescored = experiment.model.quality != "none"
    assert ("val/divergence_raw" in summary.metrics) <= rescored
