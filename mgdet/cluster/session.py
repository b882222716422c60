"""A connection to Ray, with every default that matters set on purpose."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mgdet.cluster.config import ClusterConfig
from mgdet.errors import ClusterError

log = logging.getLogger(__name__)

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would build a second environment for the workers
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay in the driver's directory
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # failures are seen, and reports committed, within half a second
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # CPU workers see the GPUs' environment as it is (Ray's new default)
}


@dataclass(frozen=True)
class Resources:
    """What a cluster, or this machine, has in all and on its largest node."""

    cpus: float
    gpus: float
    node_cpus: float
    node_gpus: float
    nodes: int
    where: str


def this_machine() -> Resources:
    """The resources of this machine, without Ray."""
    cpus, gpus = float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count())
    return Resources(cpus, gpus, cpus, gpus, 1, "this machine")


@contextmanager
def session(config: ClusterConfig) -> Iterator[Resources]:
    """Connect to the configured cluster, or start one on this machine and stop it at the end.

    Raises:
        ClusterError: the cluster cannot be reached.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    address = config.address or os.environ.get("RAY_ADDRESS")
    if not address:  # on loopback; a token written by an earlier cluster must not lock this one's own workers out
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    quiet = {"logging_level": logging.ERROR, "log_to_driver": True}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            # 200 MB: data does not travel through the object store
            ray.init(address="local", num_cpus=int(this_machine().cpus), object_store_memory=200 << 20, **quiet)
    except Exception as error:
        raise ClusterError(
            f"no Ray cluster at {address or 'this machine'}: {error}. Check cluster.address or RAY_ADDRESS (such "
            "as 10.0.0.1:6379, or ray://HEAD:10001), and RAY_AUTH_MODE where the cluster uses tokens."
        ) from error
    try:
        yield _resources(address)
    finally:
        ray.shutdown()


def _resources(address: str | None) -> Resources:
    import ray

    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    return Resources(
        cpus=sum(n.get("CPU", 0.0) for n in nodes),
        gpus=sum(n.get("GPU", 0.0) for n in nodes),
        node_cpus=max((n.get("CPU", 0.0) for n in nodes), default=0.0),
        node_gpus=max((n.get("GPU", 0.0) for n in nodes), default=0.0),
        nodes=len(nodes),
        where=f"cluster at {address}" if address else "this machine",
    )


def arithmetic(config: ClusterConfig, resources: Resources) -> str:
    """What the (resolved) configuration asks for and what there is, in one line."""
    gpus = f" and {config.workers} x 1 = {config.workers} GPUs" if config.gpu else ""
    return (
        f"{config.workers} workers x {config.cpus_per_worker:g} CPUs = "
        f"{int(config.workers) * float(config.cpus_per_worker):g} CPUs{gpus}; {resources.where} has {resources.cpus:g} "
        f"CPUs and {resources.gpus:g} GPUs on {resources.nodes} node{'s' if resources.nodes != 1 else ''}"
    )


def check_fits(config: ClusterConfig, resources: Resources) -> None:
    """See that the (resolved) workers fit. Raises `ClusterError` with the arithmetic; Ray would wait for ever."""
    workers, cpus, gpus = int(config.workers), float(config.cpus_per_worker), 1.0 if config.gpu else 0.0
    fits = workers * cpus <= resources.cpus and workers * gpus <= resources.gpus
    per_node = min(resources.node_cpus // cpus, resources.node_gpus // gpus if gpus else math.inf)  # of the largest
    if fits and per_node >= 1 and workers <= per_node * resources.nodes:
        return
    raise ClusterError(
        f"the workers do not fit: {arithmetic(config, resources)} (largest node: {resources.node_cpus:g} CPUs, "
        f"{resources.node_gpus:g} GPUs). Lower cluster.workers or cluster.cpus_per_worker"
        + (", or set cluster.gpu=false" if config.gpu else "")
        + ", or add nodes."
    )
