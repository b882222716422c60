"""Ray clusters for tests, beside whatever else runs on this machine."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ray_cluster(num_cpus: float, **head: Any) -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` of one node, to which more can be added."""
    from ray.cluster_utils import Cluster

    with socket.socket() as free:  # the default port may be another cluster's
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = {"num_cpus": num_cpus, "include_dashboard": True, "dashboard_port": port, **head}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    try:
        yield cluster
    finally:
        cluster.shutdown()
