"""Settings of the whole suite and its three tiers, which tests/README.md explains."""

import gc
import os
import secrets

# One thread: the tensors are small, and threads of several processes that spin for each other cost most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Some tests import Ray before mgdet sets this: under `uv run pytest` each worker would start in a new environment.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # nor may a thread connect this process to the next cluster
# Ray gives its workers a low priority, and the tests wait for them.
os.environ.setdefault("RAY_worker_niceness", "0")
# One token for all clusters of this process: Ray remembers the first that it has seen.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import hypothesis
import pytest

gc.disable()  # until everything is collected: imports make objects that stay

pytest_plugins = ["tests.buckets"]

# No example fails because the machine is slow: the first one of a test may import MLflow.
EVER = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("unit", max_examples=30, derandomize=True, **EVER)
hypothesis.settings.register_profile("exhaustive", max_examples=2000, print_blob=True, **EVER)


def runs(config, tier):
    """Whether `-m` selects this tier: without an expression it selects everything."""
    words = config.option.markexpr.replace("(", " ").replace(")", " ").split()
    return not words or any(word == tier and last != "not" for last, word in zip(["", *words], words, strict=False))


def pytest_configure(config):
    hypothesis.settings.load_profile("exhaustive" if runs(config, "exhaustive") else "unit")


def pytest_collection_finish():
    """What has been imported and collected stays: the garbage collector walked over it again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # some modules complain at exit about objects that were never collected


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n`, the tests of a file share its fixtures in one process, and those of tests/cluster share their Ray."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "tests/cluster" if nodeid.startswith("tests/cluster/") else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """What is exhaustive is not slow too; the exhaustive tier tries more examples of all properties."""
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.own_markers = [mark for mark in item.own_markers if mark.name != "slow"]
    if runs(config, "exhaustive"):
        for item in items:
            if getattr(item.obj, "is_hypothesis_test", False):
                item.add_marker("exhaustive")
