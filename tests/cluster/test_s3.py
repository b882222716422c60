"""A sweep in an object store."""

import json
import os

import pytest
import yaml

from mgdet.storage import locate
from tests.buckets import KEYS, experiment_in_a_bucket
from tests.forked import run_job


@pytest.mark.exhaustive
def test_a_sweep_in_a_bucket_goes_on(uri, tmp_path):
    """Two trials on Ray, then one more of the same sweep: the first two are not trained again."""
    base = experiment_in_a_bucket(
        tmp_path, uri, train__epochs=2, train__evaluate_every=2, train__checkpoint_every_steps=None
    )
    (tmp_path / "base.yaml").write_text(base.to_yaml())
    sweep = {
        "name": "search",
        "base": "base.yaml",
        "set": {"cluster.workers": 1, "cluster.cpus_per_worker": 1},
        "space": {"train.optimizer.lr": {"loguniform": [1e-4, 1e-2]}},
        "trials": 2,
        "scheduler": {"name": "none"},
    }
    path, log = tmp_path / "sweep.yaml", tmp_path / "sweep.log"
    for trials in (2, 3):
        path.write_text(yaml.safe_dump({**sweep, "trials": trials}))
        done = run_job("tune", [path], log, timeout=600, directory=tmp_path, environment={**os.environ, **KEYS})
        assert done.returncode == 0, done.output
    directory = locate(uri("runs/search"))
    assert "sweep.json" in directory.children()
    trials = [name for name in directory.children() if "trial.json" in (directory / name).children()]
    assert len(trials) == 3, directory.children()
    for name in trials:
        assert json.loads((directory / name / "trial.json").read_bytes())
