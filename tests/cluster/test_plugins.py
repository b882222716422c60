"""Components of a package outside mgdet, in a sweep whose workers get the package from Ray."""

import sqlite3
import sys
from contextlib import closing

import pytest
import yaml

from mgdet import plugins
from mgdet.cluster.tune import run_sweep
from mgdet.config_base import ByField, ByName
from mgdet.sweep.config import load_sweep
from tests.small import small_experiment
from tests.test_docs import example

pytestmark = pytest.mark.usefixtures("no_ray_left_behind")

PLUGINS = ["outside_package.best_few", "outside_package.entropy", "outside_package.sqlite"]
BEST_K = """
from typing import Literal

from pydantic import Field

from mgdet.assign.base import Assigner, hard_labels
from mgdet.assign.criteria import prior_iou
from mgdet.structures import Assignment


class BestK(Assigner):
    name: Literal["best_few"] = "best_few"
    k: int = Field(default=9, ge=1)

    def assign(self, predictions, targets):
        owners = self.find_owners(prior_iou(predictions.priors), predictions.priors, targets)
        labels = hard_labels(owners.owner, (owners.owner >= 0) & (owners.rank < self.k))
        return Assignment(labels, labels)


with open("IMPORTED", "a") as file:
    print(__file__, file=file)
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A directory with the package `outside_package`, which is not on the path of anything; forgotten afterwards."""
    members, path = {union: union.members for union in ByName.unions}, list(sys.path)
    monkeypatch.setattr(plugins, "_loaded", {})
    package = tmp_path / "outside_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "best_few.py").write_text(BEST_K.replace("IMPORTED", str(tmp_path / "imported")))
    (package / "entropy.py").write_text(example("a loss term").code)
    (package / "sqlite.py").write_text(example("a tracker").code)
    yield tmp_path
    for union, before in members.items():
        union.set_members(before)
    for node in ByField.nodes:
        node.set_added(())
    sys.path[:] = path
    for name in [n for n in sys.modules if n.partition(".")[0] == package.name]:
        del sys.modules[name]


@pytest.mark.slow
def test_a_sweep_has_assigner_loss_term_and_tracker_from_outside(outside, shared):
    base = small_experiment(outside, train__epochs=1, data__generate__train=4)
    (outside / "base.yaml").write_text(base.to_yaml())
    tree = {
        "name": "s",
        "base": "base.yaml",
        "plugins": PLUGINS,
        "set": {
            "assigner": {"name": "best_few"},
            "loss.entropy.weight": 0.05,
            "tracking": {"name": "sqlite", "path": str(outside / "tracked.db")},
            "cluster.workers": 1,
            "cluster.cpus_per_worker": 1,
            "cluster.address": shared["cluster__address"],
        },
        "space": {"assigner.k": {"grid": [2, 7]}},
        "scheduler": {"name": "none"},
    }
    (outside / "sweep.yaml").write_text(yaml.safe_dump(tree))
    outcome = run_sweep(load_sweep(outside / "sweep.yaml"))
    assert [t.state for t in outcome.trials] == ["finished", "finished"], [t.reason for t in outcome.trials]
    trained = [yaml.safe_load(path.read_text()) for path in sorted(outside.glob("runs/s/*/config.yaml"))]
    assert [(e["assigner"]["name"], e["assigner"]["k"]) for e in trained] == [("best_few", 2), ("best_few", 7)]
    assert all(e["plugins"] == PLUGINS for e in trained)
    imported = (outside / "imported").read_text().splitlines()
    ours = str(outside / "outside_package/best_few.py")
    assert imported[0] == ours
    assert ours not in imported[1:], "a worker did not take the copy that was sent to it"
    assert len(imported) > 2
    with closing(sqlite3.connect(outside / "tracked.db")) as db:
        runs = "select name, status, parent is null from runs order by name"
        assert db.execute(runs).fetchall() == [("s", "FINISHED", 1), ("s-000", "FINISHED", 0), ("s-001", "FINISHED", 0)]
        logged = "select runs.name, count(*) from metrics join runs on run = id where metrics.name = ? group by run"
        assert {name for name, _ in db.execute(logged, ("train/loss_entropy",))} == {"s-000", "s-001"}
        best = "select value from tags join runs on run = id where runs.name = 's' and tags.name = 'mgdet.winner'"
        assert db.execute(best).fetchall() == [(outcome.winner.name,)]
