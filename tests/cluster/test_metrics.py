"""What Ray's metrics show of a run, the dashboard that draws them, and MLflow's metrics of the machines."""

import json
import logging
import re
import threading
import urllib.request
from pathlib import Path

import pytest

from mgdet.cluster import metrics
from mgdet.cluster.metrics import EXPORTED, PART, RUN, Exported, ExportingTracker
from mgdet.errors import Interrupted
from mgdet.evaluation.evaluator import AP
from mgdet.runs.stop import StopRequest
from mgdet.tracking import NullTracker
from mgdet.training.profile import _measured, stage

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana_dashboard.json"


class Gauges(dict):
    """Values by name and part, in the place of Ray's gauges."""

    def __call__(self, name, description, tag_keys):
        assert description == EXPORTED[name]
        assert set(tag_keys) <= {RUN, PART}
        gauges = self

        class Gauge:
            def set(self, value, tags):
                assert tuple(tags) == tag_keys
                assert tags[RUN] == "mine"
                gauges[name, tags.get(PART)] = value

        return Gauge()


def test_what_is_tracked_and_the_parts_of_steps_are_exported(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("mgdet.training.profile.time.perf_counter", lambda: float(next(clock)))
    seen = Gauges()
    tracker = ExportingTracker(NullTracker(), Exported("mine", seen))
    assert len(_measured) == 1
    pace = {"train/images_per_s": 8.0, "train/loss": 2.0, "train/lr": 0.1, "epoch": 0.5}
    tracker.log(pace, 10)
    for name in ("wait", "forward", "forward", "save"):
        with stage(name):
            pass
    tracker.log(pace, 12)
    tracker.log({"val/AP": 0.25, "val/seconds": 3.0}, 12)
    tracker.close()
    assert not _measured, "nothing is measured any more"
    assert seen["mgdet_images_per_second", None] == 8
    assert seen["mgdet_step", None] == 12
    assert seen["mgdet_ap", None] == 0.25
    assert metrics.LOGGED["mgdet_ap"][0] == AP.name
    assert seen["mgdet_step_part_seconds", "wait"] == 0.5, "a second in two steps"
    assert seen["mgdet_step_part_seconds", "forward"] == 1
    assert seen["mgdet_loader_wait_share", None] == pytest.approx(1 / 3)
    assert (seen["mgdet_saves", None], seen["mgdet_save_stall_seconds", None]) == (1, 1)


def test_metrics_that_cannot_be_shown_cost_one_warning(caplog):
    def broken(*args):
        raise RuntimeError("no agent")

    tracker = ExportingTracker(NullTracker(), Exported("mine", broken))
    with caplog.at_level(logging.WARNING, logger="mgdet"):
        tracker.log({"train/images_per_s": 1.0, "train/loss": 1.0}, 1)
        tracker.log({"train/images_per_s": 1.0}, 2)
    tracker.close()
    assert caplog.text.count("Ray's metrics do not show the run (no agent)") == 1


def test_the_dashboard_draws_what_is_exported():
    """Every metric has a panel, every panel a metric, and every query chooses the run."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    named = [name for query in queries for name in re.findall(rf"\b{metrics.PREFIX}(mgdet_\w+)", query)]
    assert sorted(named) == sorted(EXPORTED)
    assert all('{run=~"$run"}' in query for query in queries)
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.slow
def test_prometheus_reads_them_from_a_node(shared, tmp_path):
    """While a training runs, until every metric that it has is there; then it is asked to stop."""
    import ray

    from mgdet.cluster.train import run
    from tests.cluster.runs import experiment

    ray.init(address=shared["cluster__address"], log_to_driver=False, logging_level=logging.ERROR)
    pages = [f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}/metrics" for n in ray.nodes() if n["Alive"]]
    ray.shutdown()
    wanted = {metrics.PREFIX + name for name in EXPORTED if name != "mgdet_bad_images"}
    e = experiment(tmp_path, "watched", workers=1, train__epochs=100_000, train__evaluate_every=1, **shared)
    found, over = set(), threading.Event()

    def look():
        try:
            for _ in range(1200):
                if over.wait(0.5) or wanted <= found:
                    break
                for page in pages:
                    text = urllib.request.urlopen(page, timeout=30).read().decode()
                    found.update(re.findall(r'^(ray_mgdet_\w+)\{[^}]*run="watched"', text, re.MULTILINE))
        finally:
            StopRequest(e.run_uri).create()

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with pytest.raises(Interrupted):
            run(e)
    finally:
        over.set()
        watcher.join()
    assert wanted <= found
