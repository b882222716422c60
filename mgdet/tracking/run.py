"""Tracking in the driver: make or reopen the one MLflow run of a training, and end it."""

import contextlib
import getpass
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mgdet.files import may_be_written
from mgdet.text import first_line
from mgdet.tracking.store import TrackingConfig, connect, mlflow_name, resolve_uri, shown_uri, sqlite_path
from mgdet.tracking.view import is_server, run_url, runs_url, show_runs, ui_command

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

_MAX_VALUE = 6000  # characters of a parameter's value
_BATCH = 100  # parameters in one request


@dataclass(frozen=True)
class RunHandle:
    """The address of an MLflow run: plain strings, which can be passed to any process."""

    uri: str
    run_id: str
    experiment_id: str
    ui_command: str  # the command that opens the UI on this store, or the run's address if the store is a server

    def how_to_see(self) -> list[tuple[str, str]]:
        """Labels, each with a command or an address, that tell the user how to see the run in MLflow."""
        command = [] if is_server(self.uri) else [("see it in MLflow", self.ui_command)]
        run = ("this run", run_url(self.uri, self.experiment_id, self.run_id))
        return [*command, run, ("all runs", runs_url(self.uri, self.experiment_id))]


def start_run(
    config: TrackingConfig,
    *,
    name: str,
    params: Mapping[str, object],
    config_yaml: str,
    run_id: str | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    searched: Sequence[str] | None = None,
) -> RunHandle | None:
    """Make the run, or reopen `run_id` if the store still has it; None if tracking is off or the store is away.

    Called once, in the driver: one run per training whatever the workers and restarts. `params` is flattened with
    dots. None is no error: the training goes on and its metrics are in `metrics.jsonl` only. A child that the parent
    already has under this name is reopened: a process may be killed before it could note the id. `searched` is given
    for a sweep: the keys that it searches, whose values MLflow's table of runs then shows.
    """
    if not config.enabled:
        return None
    uri = resolve_uri(config.uri)
    try:
        with _alone(uri):
            client = connect(uri, config, create=True)
            experiment_id = _experiment_id(client, config.experiment, uri)
            if run_id is None and parent_run_id is not None:
                run_id = _child(client, experiment_id, parent_run_id, name)
            run = _reopened(client, run_id)
            if run is None:
                run = _created(client, experiment_id, name, parent_run_id, tags or {})
    except Exception as error:
        # Whatever a store can raise (driver, network, permission, schema version): none of it is worth a training.
        logger.warning(
            "MLflow at %s cannot be used (%s). Training goes on; its metrics are written to metrics.jsonl beside the "
            "run, and are sent when the same run is started again with MLflow in reach.",
            shown_uri(uri),
            first_line(error),
        )
        return None
    if parent_run_id is None:
        show_runs(client, experiment_id, searched or (), None if searched is None else run.info.run_id)
    for what, step in (
        ("parameters", lambda: _log_params(client, run, params)),
        ("config.yaml", lambda: client.log_text(run.info.run_id, config_yaml, "config.yaml")),
    ):
        try:
            step()
        except Exception as error:
            logger.warning("MLflow did not take the %s of run %s: %s", what, run.info.run_id, first_line(error))
    return RunHandle(
        uri=uri,
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        ui_command=run_url(uri, run.info.experiment_id, run.info.run_id) if is_server(uri) else ui_command(uri),
    )


def end_run(handle: RunHandle | None, status: Status, config: TrackingConfig | None = None) -> None:
    """Set the run's final status; a store that is away costs a warning only."""
    if handle is None:
        return
    try:
        connect(handle.uri, config or TrackingConfig()).set_terminated(handle.run_id, status)
    except Exception as error:
        logger.warning("MLflow run %s could not be ended as %s: %s", handle.run_id, status, first_line(error))


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold a lock beside a SQLite file: two drivers that make its schema at the same time would destroy it."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in (path, f"{path}.lock"):
        may_be_written(file)
    with open(f"{path}.lock", "w") as lock:
        with contextlib.suppress(ImportError, OSError):  # no fcntl on Windows, no locks on some network file systems
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _experiment_id(client: Any, name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    location = None
    if (path := sqlite_path(uri)) is not None:  # MLflow's default is relative to whichever process asks
        location = (path.parent / "mlruns" / re.sub(r"[^\w\-. ]", "_", name)).as_uri()
    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # made by someone else meanwhile
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    return str(found.experiment_id)


def _child(client: Any, experiment_id: str, parent_run_id: str, name: str) -> str | None:
    found = client.search_runs(
        [experiment_id],
        f"tags.`mlflow.parentRunId` = '{parent_run_id}' and attributes.run_name = '{name}'",
        max_results=1,
    )
    return str(found[0].info.run_id) if found else None


def _reopened(client: Any, run_id: str | None) -> Any:
    """The run, set to RUNNING again; None if none was asked for or the store no longer has it."""
    if run_id is None:
        return None
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
        gone = run.info.lifecycle_stage == "deleted"
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        gone = True
    if gone:
        logger.warning("MLflow has no run %s any more: a new one is made, and gets the whole history.", run_id)
        return None
    client.update_run(run_id, status="RUNNING")
    return run


def _created(client: Any, experiment_id: str, name: str, parent_run_id: str | None, tags: Mapping[str, str]) -> Any:
    all_tags = {"mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(Exception):  # containers run under users that have no name
        all_tags["mlflow.user"] = getpass.getuser()
    if parent_run_id is not None:
        all_tags["mlflow.parentRunId"] = parent_run_id
    return client.create_run(experiment_id, run_name=name, tags={**all_tags, **tags})


def _log_params(client: Any, run: Any, params: Mapping[str, object]) -> None:
    """Log the parameters that are new. One that has another value already keeps it (MLflow's rule), with a warning."""
    from mlflow.entities import Param

    known: Mapping[str, str] = run.data.params
    new: dict[str, str] = {}
    for key, value in _flattened(params):
        if key not in known:
            new[key] = value
        elif known[key] != value:
            logger.warning("MLflow keeps parameter %s = %s of the first start; now it is %s.", key, known[key], value)
    items = list(new.items())
    for i in range(0, len(items), _BATCH):
        client.log_batch(run.info.run_id, params=[Param(key, value) for key, value in items[i : i + _BATCH]])


def _flattened(params: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            text = str(value)
            yield mlflow_name(f"{prefix}{key}"), text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 3] + "..."
