"""A component of a package outside mgdet, searched by a sweep whose workers get the package from Ray."""

import sys

import pytest
import yaml

from mgdet import plugins
from mgdet.assign import AssignerConfig
from mgdet.cluster.tune import run_sweep
from mgdet.config_base import ByName
from mgdet.sweep.config import load_sweep
from tests.small import small_experiment

pytestmark = pytest.mark.usefixtures("no_ray_left_behind")

BEST_K = """
from typing import Literal

from pydantic import Field

from mgdet.assign.base import Assigner, hard_labels
from mgdet.assign.criteria import prior_iou
from mgdet.structures import Assignment


class BestK(Assigner):
    name: Literal["best_k"] = "best_k"
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
    union = next(u for u in ByName.unions if u.members[0] in AssignerConfig.__origin__.__args__)
    members, path = union.members, list(sys.path)
    monkeypatch.setattr(plugins, "_loaded", {})
    package = tmp_path / "outside_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "best_k.py").write_text(BEST_K.replace("IMPORTED", str(tmp_path / "imported")))
    yield tmp_path
    union.set_members(members)
    sys.path[:] = path
    for name in [n for n in sys.modules if n.partition(".")[0] == package.name]:
        del sys.modules[name]


@pytest.mark.slow
def test_a_sweep_searches_an_assigner_from_outside(outside, shared):
    base = small_experiment(outside, train__epochs=1, data__generate__train=4)
    (outside / "base.yaml").write_text(base.to_yaml())
    tree = {
        "name": "s",
        "base": "base.yaml",
        "plugins": ["outside_package.best_k"],
        "set": {
            "assigner": {"name": "best_k"},
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
    assert [(e["assigner"]["name"], e["assigner"]["k"]) for e in trained] == [("best_k", 2), ("best_k", 7)]
    assert all(e["plugins"] == ["outside_package.best_k"] for e in trained)
    imported = (outside / "imported").read_text().splitlines()
    ours = str(outside / "outside_package/best_k.py")
    assert imported[0] == ours
    assert ours not in imported[1:], "a worker did not take the copy that was sent to it"
    assert len(imported) > 2
