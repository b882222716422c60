"""A training below its smallest number of workers, two sweeps of one name, and records that cannot be written."""

import logging
import threading

import pytest

from mgdet.cluster import tune
from mgdet.cluster.search import ResumingSearcher
from mgdet.cluster.waiting import shortage_told
from mgdet.errors import ConfigError, OwnedError
from mgdet.lease import OWNER, claims, owned
from mgdet.runs.config import ClusterConfig
from mgdet.runs.resources import Node, Resources
from mgdet.storage import Location, locate
from mgdet.sweep.config import load_sweep
from mgdet.sweep.trials import TrialStore
from tests.sweep.test_config import write


def test_it_is_told_once_that_a_training_waits_for_a_node_and_once_that_it_need_not(caplog):
    config = ClusterConfig(workers=(2, 4), cpus_per_worker=1, gpu=False)
    nodes, seen = iter([3, 1, 1, None, 1, 2, 2]), threading.Event()

    def look():
        cpus = next(nodes, "over")
        if cpus == "over":
            seen.set()
            cpus = 2
        if cpus is None:
            raise ConnectionError("a look that fails tells nothing")
        return Resources((Node(cpus, 0),), "the cluster")

    with caplog.at_level(logging.INFO, logger="mgdet"), shortage_told(config, look, every_s=0.001):
        assert seen.wait(60)
    assert caplog.text.count("room for 1 workers, and the training needs at least 2: it waits for a node") == 1
    assert caplog.text.count("room for 2 workers again") == 1


def test_a_second_sweep_of_one_name_is_refused_before_it_starts_anything(tmp_path, monkeypatch):
    """Whoever is first owns the sweep's directory; the other one neither connects to Ray nor writes."""
    sweep = load_sweep(write(tmp_path))
    monkeypatch.setattr(tune, "session", lambda config: pytest.fail("it connects to a cluster"))
    directory = locate(tmp_path / "runs" / "s")
    with owned(directory / OWNER, "the sweep"):
        with pytest.raises(OwnedError, match=r"the sweep .*/runs/s is being written by process"):
            tune.run_sweep(sweep)
        assert directory.children().keys() == claims(directory / OWNER).keys()


def test_a_trial_whose_record_cannot_be_written_is_not_begun(tmp_path, monkeypatch):
    """On a full disk: a sentence instead of a trial that a restarted sweep would not know."""
    sweep = load_sweep(write(tmp_path))
    store = TrialStore(str(tmp_path / "s"), "s")
    search = ResumingSearcher(sweep, store, [], {"workers": 1})
    search.suggest("a")
    full = OSError(28, "No space left on device")

    def replace(self, data):
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(Location, "replace", replace)
        with pytest.raises(ConfigError, match=r"s-001/trial.json cannot be written: .*No space left.*the same command"):
            search.suggest("b")
    assert [t.number for t in store.trials] == [0]
    assert search.suggest("c")["number"] == 1, "and there is room again"
