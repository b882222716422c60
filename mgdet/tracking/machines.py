"""How busy the nodes of a run are, as MLflow shows it: CPU, memory, disk, network, GPUs (`mlflow.system_metrics`).

MLflow's own thread stops for good at the first request that fails, and ends only when its last request has. This one
goes on when the server is back, and leaving it takes no longer than a bound of time.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from mgdet.bounded import Caller
from mgdet.text import first_line
from mgdet.tracking.client import mlflow_name

logger = logging.getLogger(__name__)

LEAVE_S = 2.0
"""The longest wait for a request that is on its way at the end."""
Sample = Callable[[], Mapping[str, float]]


class MachineMonitor:
    """Sends, within the block, samples of this machine to a run of MLflow. It never raises and never makes wait.

    Args:
        connect: gives an `MlflowClient`.
        run_id: of the run.
        node: what the machine is called in the names of metrics, `system/<node>/<metric>`.
        every_s: seconds between samples.
        timeout_s: deadline of a request.
        sampler: makes a function that gives a sample; called in the thread of the requests.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        run_id: str,
        node: str,
        every_s: float,
        timeout_s: float,
        sampler: Callable[[], Sample] | None = None,
    ) -> None:
        self.run_id, self.prefix, self.every_s, self.timeout_s = run_id, f"system/{node}/", every_s, timeout_s
        self._connect, self._sampler = connect, sampler or mlflow_sampler
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow-machine", daemon=True)
        self._ready: tuple[Any, Sample, float] | None = None
        self._told = False

    def __enter__(self) -> "MachineMonitor":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(LEAVE_S)

    def _run(self) -> None:
        caller = Caller("mlflow-machine-calls")
        while not self._over.wait(self.every_s):
            if caller.dead:
                caller, self._ready = Caller("mlflow-machine-calls"), None
            try:
                caller.call(self.timeout_s, self._send)
            except Exception as error:  # whatever MLflow or psutil can raise; the next sample may arrive
                if not self._told:
                    self._told = True
                    logger.warning("MLflow does not get the state of this machine (%s)", first_line(error))
        caller.end()

    def _send(self) -> None:
        from mlflow.entities import Metric

        if self._ready is None:
            client = self._connect()
            self._ready = client, self._sampler(), client.get_run(self.run_id).info.start_time / 1000
        client, sample, start = self._ready
        now = time.time()
        step = max(0, int(now - start))  # so that it goes on after a restart
        values = {mlflow_name(self.prefix + key): value for key, value in sample().items()}
        found = [Metric(key, value, int(now * 1000), step) for key, value in values.items()]
        client.log_batch(self.run_id, metrics=found, synchronous=True)


def mlflow_sampler() -> Sample:
    """A function that asks MLflow's own monitors, that of GPUs where its package (`nvidia-ml-py`) is installed."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except Exception as error:  # no package, no driver, no GPU
        logger.debug("no metrics of GPUs: %s", error)

    def sample() -> dict[str, float]:
        found: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return found

    return sample
