"""A connection to Ray, with every default that matters set on purpose."""

import logging
import os
import secrets
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mgdet.cluster.room import require_room, require_start
from mgdet.errors import ClusterError, Interrupted
from mgdet.files import private_directory
from mgdet.host import environment
from mgdet.plugins import PLACES, own_place, places, shipped_modules
from mgdet.runs.config import ClusterConfig
from mgdet.runs.resources import Node, Resources, this_machine
from mgdet.signals import apart, keep, on_stop
from mgdet.storage import local_path

logger = logging.getLogger(__name__)

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would build a second environment for the workers
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay in the driver's directory
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # failures are seen, and reports committed, within half a second
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread of Ray Data that looks after the end of a session starts no other Ray
    "PYTHONSAFEPATH": "1",  # no process of the job imports from the directory where it was started
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # CPU workers see the GPUs' environment as it is (Ray's new default)
}


@contextmanager
def session(config: ClusterConfig) -> Iterator[Resources]:
    """Connect to the configured cluster, or start one on this machine and stop it at the end.

    Raises:
        ClusterError: the cluster cannot be reached.
    """
    with environment({key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()}):
        yield from _connected(config)


def _connected(config: ClusterConfig) -> Iterator[Resources]:
    address = config.address or os.environ.get("RAY_ADDRESS")
    if not address and "RAY_AUTH_MODE" not in os.environ:
        # All ports but the dashboard's are open to the network: only the processes of this job may come in. Ray's own
        # default is a file that it makes in the home directory, for everybody to read.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    variables = {"PYTHONSAFEPATH": "1", **({PLACES: places()} if places() else {})}
    shipped = {"py_modules": modules} if (modules := shipped_modules()) else {}
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}  # what workers say comes by `mgdet.cluster.relay`
    directory = None
    try:
        if address:
            # its processes must know it, or Ray's helpers there look for one as below
            known = {"RAY_ADDRESS": address} if ":" in address and "://" not in address else {}
            # in a client's session the directories of this machine mean nothing, and Ray leaves them out by itself
            paths = {} if "://" in address else {"job_config": _without_working_directory()}
            with keep():
                ray.init(address=address, runtime_env={"env_vars": known | variables, **shipped}, **paths, **quiet)
        else:
            # Ray lets everybody read and write below its directory
            own = None if "RAY_TMPDIR" in os.environ else str(private_directory() / "ray")
            directory = Path(own or os.path.join(os.environ["RAY_TMPDIR"], "ray"))
            require_room(directory)
            with keep(), apart(), _own_address(ray.util.get_node_ip_address()):
                # 200 MB: data does not travel through the object store
                room = {"num_cpus": int(this_machine().cpus), "object_store_memory": 200 << 20}
                private = {"_temp_dir": own} if own else {}
                ray.init(
                    address="local",
                    runtime_env={"env_vars": variables, **shipped},
                    job_config=_without_working_directory(),
                    **{**room, **private, **quiet},
                )
    except ClusterError:
        raise
    except Exception as error:
        raise ClusterError(
            f"no Ray cluster at {address or 'this machine'}: {error}. Check cluster.address or RAY_ADDRESS (such "
            "as 10.0.0.1:6379, or ray://HEAD:10001), and RAY_AUTH_MODE where the cluster uses tokens."
        ) from error
    try:
        if directory:
            require_start(directory)
        yield resources_of(f"cluster at {address}" if address else "this machine")
    finally:
        ray.shutdown()


def _without_working_directory() -> Any:
    """A job whose workers do not import from the driver's working directory, nor from that of its script.

    Ray puts both in front of the path of every worker, unless the job has a working directory of its own; a `numpy.py`
    there would be executed. mgdet's own directory takes their place where mgdet is not installed.
    """
    from ray.job_config import JobConfig

    class Job(JobConfig):  # type: ignore[misc]  # Ray's class is untyped
        def _runtime_env_has_working_dir(self) -> bool:
            return True  # all that Ray asks this for is whether to add the two directories

    return Job(_py_driver_sys_path=own_place())


@contextmanager
def _own_address(ip: str) -> Iterator[None]:
    """Choose a free port for the cluster about to be started and put its address into the environment.

    Without it Ray's helper processes look for "the" cluster of this machine, fail if there are several, and then never
    release the resources of a stopped trial.
    """
    with socket.socket() as free:
        free.bind((ip, 0))
        port = str(free.getsockname()[1])
    with environment({"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"{ip}:{port}"}):
        yield


def resources_of(where: str) -> Resources:
    """The nodes of the connected cluster that are alive; `where` is what messages call it."""
    import ray

    alive = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    return Resources(tuple(Node(n.get("CPU", 0.0), n.get("GPU", 0.0)) for n in alive), where)


def scale_up(config: ClusterConfig, resources: Resources, copies: int = 1, beside: int = 0) -> Resources:
    """Wait, as long as the configuration says, until the connected cluster has room for `copies` times its workers.

    Each copy has `beside` processes of the size of a worker beside these.
    Asks the cluster's autoscaler for nodes and returns what there is in the end, enough or not: see `check_fits`.
    """
    if not config.scale_up_timeout_s:
        return resources
    wanted = (config.fewest + beside) * copies
    if resources.slots(config) >= wanted:
        return resources
    from ray.autoscaler.sdk import request_resources

    def leave() -> None:
        raise Interrupted("stopped on request while waiting for nodes; the same command starts again")

    deadline, seen = time.monotonic() + config.scale_up_timeout_s, -1
    try:
        with on_stop(leave, "not waiting for nodes any longer"):
            request_resources(bundles=[config.of_one_worker()] * wanted)
            while (room := resources.slots(config)) < wanted and time.monotonic() < deadline:
                if room != seen:
                    logger.info("room for %d of %d workers; waiting for nodes", room, wanted)
                    seen = room
                time.sleep(1)
                resources = resources_of(resources.where)
    finally:
        # A request outlives its job, and would keep the nodes. From here on the workers keep them; until those have
        # started, the autoscaler's idle timeout does.
        request_resources(bundles=[])
    return resources


def check_shared(places: dict[str, str]) -> None:
    """Check that every node of the connected cluster sees the same files under the local paths among `places`.

    Otherwise a node would train on other data, or write a checkpoint where the other nodes do not find it.

    Args:
        places: keys of the configuration and their values, local paths or URIs; URIs of remote stores are not checked.

    Raises:
        ClusterError: a path is another directory on some node; the message names key, path and nodes.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    local = {key: path for key, uri in places.items() if (path := local_path(uri))}
    nodes = [n for n in ray.nodes() if n["Alive"]]
    if len(nodes) < 2 or not local:
        return
    token = f".mgdet-{uuid.uuid4().hex}"
    marks = []
    try:
        for path in local.values():
            path.mkdir(parents=True, exist_ok=True)
            marks.append(path / token)
            marks[-1].touch()
        look = ray.remote(num_cpus=0)(_not_seen)
        answers = [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                [str(mark) for mark in marks]
            )
            for node in nodes
        ]
        missing = [(n["NodeManagerAddress"], a) for n, a in zip(nodes, ray.get(answers, timeout=120), strict=True)]
    except (OSError, ray.exceptions.RayError) as error:
        raise ClusterError(f"whether all nodes share {', '.join(local)} could not be found out: {error}") from error
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)
    blind = {
        f"{key} = {places[key]}": [address for address, paths in missing if str(path / token) in paths]
        for key, path in local.items()
    }
    lines = [f"  {what} is another directory on {', '.join(nodes)}" for what, nodes in blind.items() if nodes]
    if lines:
        raise ClusterError(
            "a path of this machine is not shared with the cluster's other nodes:\n"
            + "\n".join(lines)
            + "\nUse a file "
            "system that all nodes mount under the same path (NFS, EFS, Lustre), or a URI such as s3://bucket/runs."
        )


def _not_seen(paths: list[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]
