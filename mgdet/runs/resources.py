"""CPUs and GPUs of a cluster or of this machine, and whether a training fits into them. Imports no Ray."""

import math
import os
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mgdet.errors import ClusterError
from mgdet.runs.config import ClusterConfig


class Node(NamedTuple):
    """The CPUs and GPUs of one node."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Resources:
    """The nodes of a cluster, or this machine as the only one."""

    nodes: tuple[Node, ...]
    where: str
    """How messages call it: `this machine`, `cluster at 10.0.0.1:6379`."""

    @property
    def cpus(self) -> float:
        """CPUs of all nodes together."""
        return sum(n.cpus for n in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes together."""
        return sum(n.gpus for n in self.nodes)

    def slots(self, config: ClusterConfig) -> int:
        """How many workers of this (resolved) configuration fit; a worker lies on one node."""
        cpus = float(config.cpus_per_worker)
        return sum(int(min(n.cpus // cpus, n.gpus if config.gpu else math.inf)) for n in self.nodes)


def this_machine() -> Resources:
    """The resources of this machine, without Ray."""
    return Resources((Node(float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count())),), "this machine")


def arithmetic(config: ClusterConfig, resources: Resources, beside: int = 0) -> str:
    """One line: the CPUs and GPUs that the (resolved) configuration asks for, and those there are.

    `beside` processes, each of the size of a worker, are needed beside the workers.
    """
    n = config.fewest + beside
    gpus = f" and {n} x 1 = {n} GPUs" if config.gpu else ""
    more = f" (at most {config.most}, if there is room)" if config.most > config.fewest else ""
    more += f" and {beside} that evaluates" if beside else ""
    return (
        f"{config.fewest} workers{more} x {config.cpus_per_worker:g} CPUs = {n * float(config.cpus_per_worker):g} "
        f"CPUs{gpus}; {describe(resources)}"
    )


def describe(resources: Resources) -> str:
    """The resources as the end of a sentence: `this machine has 2 CPUs and 0 GPUs on 1 node`."""
    nodes = len(resources.nodes)
    return (
        f"{resources.where} has {resources.cpus:g} CPUs and {resources.gpus:g} GPUs on {nodes} "
        f"node{'s' if nodes != 1 else ''}"
    )


def check_fits(config: ClusterConfig, resources: Resources, beside: int = 0) -> None:
    """Check that the (resolved) workers fit, as Ray would wait for ever; `beside` as for `arithmetic`.

    Raises `ClusterError` with the arithmetic.
    """
    if config.fewest + beside <= resources.slots(config):
        return
    largest = max(resources.nodes, default=Node(0, 0))
    waited = f" after waiting {config.scale_up_timeout_s:g} s for nodes" if config.scale_up_timeout_s else ""
    raise ClusterError(
        f"the workers do not fit{waited}: {arithmetic(config, resources, beside)} (largest node: {largest.cpus:g} "
        f"CPUs, {largest.gpus:g} GPUs). Lower cluster.workers or cluster.cpus_per_worker"
        + (", or set cluster.gpu=false" if config.gpu else "")
        + (", or set evaluation.where=workers" if beside else "")
        + ", or add nodes"
        + (
            "; `ray status` on the head says why none came."
            if waited
            else " (scaling cluster: cluster.scale_up_timeout_s)."
        )
    )
