"""The MLflow runs of a sweep's trials, as its driver handles them: the trials' own processes may be dead."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mgdet.text import first_line
from mgdet.tracking.run import RunHandle, Status, end_run
from mgdet.tracking.store import TrackingConfig, connect
from mgdet.tracking.tracker import MlflowTracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Child:
    """A trial's run in MLflow."""

    run_id: str
    name: str  # of the trial
    running: bool  # whether it was never ended


def children(parent: RunHandle, config: TrackingConfig) -> list[Child]:
    """The runs under a parent run; none, with a warning, if the store cannot be reached."""
    try:
        client = connect(parent.uri, config)
        found, token = [], None
        while True:
            page = client.search_runs(
                [parent.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'", page_token=token
            )
            found += page
            if not (token := page.token):
                break
    except Exception as error:
        logger.warning("MLflow does not tell the runs of the trials (%s).", first_line(error))
        return []
    return [Child(r.info.run_id, r.info.run_name, r.info.status == "RUNNING") for r in found]


def close_child(
    parent: RunHandle, run_id: str, status: Status, tags: Mapping[str, str], directory: Path, config: TrackingConfig
) -> None:
    """Send what `directory` still holds of a run whose process is gone, tag it, and end it; never raises."""
    handle = RunHandle(parent.uri, run_id, parent.experiment_id, parent.ui_command)
    if (directory / "metrics.jsonl").exists():  # else it is on the machine where the trial ran, or nothing was logged
        MlflowTracker(handle, directory, config).close()
    tag(handle, tags, config)
    end_run(handle, status, config)


def tag(handle: RunHandle, tags: Mapping[str, str], config: TrackingConfig) -> None:
    """Set tags of a run; a store that cannot be reached costs a warning only."""
    try:
        client = connect(handle.uri, config)
        for key, value in tags.items():
            client.set_tag(handle.run_id, key, value[:5000])
    except Exception as error:
        logger.warning("MLflow run %s could not be tagged: %s", handle.run_id, first_line(error))
