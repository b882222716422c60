"""MLflow: the runs of a tracking server, or of a SQLite file."""

import contextlib
import getpass
import logging
import math
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from mgdet.bounded import require_wanted
from mgdet.files import may_be_written
from mgdet.lock import locked
from mgdet.text import first_line
from mgdet.tracking.base import StoreTracking
from mgdet.tracking.client import connect, mlflow_name, resolve_uri, shown_uri, sqlite_path
from mgdet.tracking.machines import MachineMonitor
from mgdet.tracking.models import has_files, log_files
from mgdet.tracking.origin import log_data, show_model
from mgdet.tracking.run import COPY_OF, Best, Child, Connection, ModelFiles, NewRun, Point, RunHandle, Status
from mgdet.tracking.view import artifact_url, how_to_see, show_runs

logger = logging.getLogger(__name__)

_PLACE = "mgdet.place"
_NOTE, _OWN_NOTE = "mlflow.note.content", "mgdet.note"
_MAX_VALUE = 6000  # characters of a parameter's value
_MAX_TAG = 5000  # of a tag's
_BATCH = 100  # parameters in one request
_LOCK_S = 45.0  # a database is made in seconds, also on a slow disk; less than `call_timeout_s`


# pydantic warns of the key `register`, because ABCMeta has a method of this name; no instance sees that one
warnings.filterwarnings("ignore", 'Field name "register" in .* shadows')


class Mlflow(StoreTracking):
    """MLflow: a server, or a SQLite file on one machine."""

    title: ClassVar[str] = "MLflow"

    name: Literal["mlflow"] = "mlflow"
    enabled: bool = Field(default=True, description="false: no MLflow; metrics still go to metrics.jsonl")
    uri: str = Field(
        default="auto",
        min_length=1,
        description="MLflow tracking URI; auto: MLFLOW_TRACKING_URI, else mlflow.db in the working directory. "
        "SQLite serves one machine; several nodes need a server (http://...)",
    )
    experiment: str = Field(default="mgdet", min_length=1, max_length=500, description="MLflow experiment: the project")
    request_timeout_s: int = Field(
        default=10, ge=1, le=120, description="bound on one read of a request to a server; see call_timeout_s"
    )
    request_retries: int = Field(
        default=2, ge=0, le=7, description="retries of one request; MLflow's own 7 block for 4 minutes"
    )
    system_metrics_every_s: float | None = Field(
        default=None,
        ge=1,
        le=3600,
        description="seconds between samples of CPU, memory, disk, network and GPUs of each node, which MLflow shows "
        "as system metrics; null: none. GPUs need the package nvidia-ml-py",
    )
    log_model: bool = Field(
        default=False,
        description="the best checkpoint of a finished run becomes a model of MLflow that needs neither torch nor Ray; "
        "needs the extra mgdet[export]",
    )
    register: str | None = Field(
        default=None,
        max_length=200,
        pattern=r"^[^/:.%\"'\\]+$",
        description="name of a registered model that gets this model as a version; its alias `best` is the version "
        "with the highest val/AP of all; implies log_model",
    )

    def __init_subclass__(cls, **options: Any) -> None:
        """Declare `register` again: pydantic would take the method of ABCMeta for its default in a subclass."""
        super().__init_subclass__(**options)
        cls.register = Mlflow.model_fields["register"]  # type: ignore[assignment]  # a field of the class, as above

    def where(self, handle: RunHandle | None = None) -> str:
        """See `StoreTracking`."""
        return f"MLflow at {shown_uri(handle.store if handle else resolve_uri(self.uri))}"

    def metric_name(self, name: str) -> str:
        """See `StoreTracking`."""
        return mlflow_name(name)

    def open(self, run: NewRun) -> RunHandle:
        """See `StoreTracking`; `params` is flattened with dots, and a sweep's keys become columns of MLflow's table."""
        uri = resolve_uri(self.uri)
        with _alone(uri):
            client = self._client(uri, create=True)
            experiment_id = _experiment_id(client, self.experiment, uri)
            run_id = run.run_id
            if run_id is None and run.parent_run_id is not None:
                run_id = _child(client, experiment_id, run.parent_run_id, run.name)
            found, tags = _reopened(client, run_id), {**run.tags, _PLACE: run.place}
            if found is not None and (copy := _gone_on_at(found, run)):
                logger.warning(
                    "%s, a copy of %s, has gone on with run %s of MLflow: a new one is made and gets the whole history",
                    *(copy, run.place, run_id),
                )
                found, tags = None, {**tags, COPY_OF: copy}
            require_wanted()
            if found is None:
                found = _created(client, experiment_id, run.name, run.parent_run_id, tags)
            else:
                client.update_run(run_id, status="RUNNING")
                client.set_tag(run_id, _PLACE, run.place)
        opened = str(found.info.run_id)
        if run.parent_run_id is None:
            show_runs(
                client, experiment_id, run.headlines, run.searched or (), None if run.searched is None else opened
            )
        for what, step in (
            ("parameters", lambda: _log_params(client, found, run.params)),
            ("config.yaml", lambda: client.log_text(opened, run.config_yaml, "config.yaml")),
            ("data sets", lambda: log_data(client, opened, run.data)),
        ):
            try:
                step()
            except Exception as error:  # the run is there and takes metrics
                logger.warning("MLflow did not take the %s of run %s: %s", what, opened, first_line(error))
        experiment_id = str(found.info.experiment_id)  # a run that is reopened stays in the experiment that it is in
        return RunHandle(opened, uri, experiment_id, how_to_see(uri, experiment_id, opened))

    def connect(self, handle: RunHandle) -> Connection:
        """See `StoreTracking`."""
        return _Run(self._client(handle.store), handle.run_id)

    def finish(self, handle: RunHandle, status: Status) -> None:
        """See `StoreTracking`."""
        self._client(handle.store).set_terminated(handle.run_id, status)

    def set_tags(self, handle: RunHandle, tags: Mapping[str, str]) -> None:
        """See `StoreTracking`."""
        client = self._client(handle.store)
        for key, value in tags.items():
            client.set_tag(handle.run_id, key, value[:_MAX_TAG])

    def set_best(self, handle: RunHandle, best: Best) -> None:
        """See `StoreTracking`; MLflow's table shows it in the column Models."""
        show_model(self._client(handle.store), handle.run_id, best)

    def watch_machine(self, handle: RunHandle | None, node: str) -> AbstractContextManager[object]:
        """See `Tracking`."""
        every = self.system_metrics_every_s
        if handle is None or every is None or not self.enabled:
            return nullcontext()
        return MachineMonitor(partial(self._client, handle.store), handle.run_id, node, every, self.call_timeout_s)

    @property
    def wants_model(self) -> bool:
        """See `Tracking`."""
        return self.enabled and (self.log_model or self.register is not None)

    def find_model(self, handle: RunHandle, best: Best) -> bool:
        """See `StoreTracking`."""
        return has_files(self._client(handle.store), handle.run_id, best, self.register)

    def store_model(self, handle: RunHandle, best: Best, files: ModelFiles) -> None:
        """See `StoreTracking`: the files of the logged model that `set_best` has made, and a registered version."""
        log_files(self._client(handle.store), handle.run_id, best, files, self.register)

    def set_note(self, handle: RunHandle, report: str, text: str) -> None:
        """See `StoreTracking`; MLflow shows it as the description of the run, in Markdown."""
        client = self._client(handle.store)
        tags = client.get_run(handle.run_id).data.tags
        if tags.get(_NOTE, "") != tags.get(_OWN_NOTE, ""):  # a person has changed it
            return
        link = f"\n\n[{report}]({artifact_url(handle.group, handle.run_id, report)})"
        note = text[: _MAX_TAG - len(link)] + link
        for tag in (_OWN_NOTE, _NOTE):
            client.set_tag(handle.run_id, tag, note)

    def find_children(self, parent: RunHandle) -> list[Child]:
        """See `StoreTracking`."""
        client = self._client(parent.store)
        under, token = f"tags.`mlflow.parentRunId` = '{parent.run_id}'", None
        found: list[Any] = []
        while True:
            page = client.search_runs([parent.group], under, page_token=token)
            found += page
            if not (token := page.token):
                return [Child(r.info.run_id, r.info.run_name, r.info.status == "RUNNING") for r in found]

    def _client(self, uri: str, create: bool = False) -> Any:
        return connect(uri, self.request_timeout_s, self.request_retries, create=create)


class _Run(Connection):
    """A run in MLflow, over a client."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def reached(self) -> Mapping[str, int]:
        """See `Connection`."""
        data = self._client.get_run(self._run_id).data
        # MLflow's latest value of a key is that of its highest step. Its step is in no public attribute; the
        # public history says the same, but takes a second per 20,000 points and a request per key.
        latest = {metric.key: metric.step for metric in getattr(data, "_metric_objs", ())}
        for key in data.metrics:
            if key not in latest:
                latest[key] = max(metric.step for metric in self._client.get_metric_history(self._run_id, key))
        return latest

    def send_metrics(self, points: Sequence[Point]) -> None:
        """See `Connection`.

        Infinite values become NaN: 1.8e308, which is what MLflow makes of them, would flatten every chart. A request
        that failed but did arrive does no harm: MLflow drops a point that equals a stored one in key, step, value and
        time, and the time comes from the journal.
        """
        from mlflow.entities import Metric

        metrics = [Metric(p.key, p.value if math.isfinite(p.value) else math.nan, p.ms, p.step) for p in points]
        self._client.log_batch(self._run_id, metrics=metrics, synchronous=True)

    def send_artifact(self, path: Path, name: str) -> None:
        """See `Connection`."""
        self._client.log_artifact(self._run_id, str(path), name.rpartition("/")[0] or None)


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
    with locked(f"{path}.lock", _LOCK_S):
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
    """The run of an earlier start; None if none was asked for or the store no longer has it."""
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
    return run


def _gone_on_at(found: Any, run: NewRun) -> str:
    """The place of the copy that has gone on with what was `found` since the last start; empty where none has."""
    place = str(found.data.tags.get(_PLACE, ""))
    return "" if not run.begun_at or place in (run.begun_at, run.place) else place


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
