"""Settings of the whole suite."""

import os
import secrets

# One thread: the tensors are small, and threads of several processes that spin for each other cost most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Some tests import Ray before mgdet sets this: under `uv run pytest` each worker would start in a new environment.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# One token for all clusters of this process: Ray remembers the first that it has seen.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# Nothing fails because the machine is slow: the first example of a test may import MLflow.
hypothesis.settings.register_profile("mgdet", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("mgdet")


def pytest_configure(config):
    if config.getoption("numprocesses", None) and config.option.markexpr != "not slow":
        raise pytest.UsageError("slow tests start clusters and servers and are run one at a time: leave out -n")
