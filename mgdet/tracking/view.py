"""What a person sees first in MLflow: how its UI is started, the links into it, and the columns of its table of runs.

MLflow 3 opens an experiment in the mode for GenAI ("0 traces") unless the address or the browser's storage says
otherwise; no tag of the experiment changes that. So every link carries the mode, and the link to all runs names a
*view*: columns and unfolded runs, which a tag of the experiment holds. A click on the experiment in MLflow's list
carries neither; for that, `mgdet.tracking.ui` gives the browser the same mode and view.
"""

import contextlib
import json
import logging
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mgdet.text import first_line
from mgdet.tracking.client import mlflow_name, shown_uri

logger = logging.getLogger(__name__)

APP = "mgdet"
"""Name of `mgdet.tracking.ui` among the apps of `mlflow ui --app-name`."""
MODE = "machine_learning"
VIEW_TAG = "mlflow.sharedViewState.mgdet"
LOCAL_ADDRESS = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens unless it is told otherwise."""

_KIND = ("mlflow.experimentKind", "custom_model_development")  # servers older than the two modes go by it
_LAST = ("params.`assigner.name`",)
_MAX_SEARCHED, _MAX_UNFOLDED = 16, 8  # a tag of an experiment holds 5000 characters


def show_runs(
    client: Any, experiment_id: str, headlines: Sequence[str], searched: Sequence[str], sweep_run_id: str | None
) -> None:
    """Give the experiment its view, or add the keys that a sweep searches and its run, to be unfolded; never raises."""
    try:
        tags = client.get_experiment(experiment_id).tags
        if _KIND[0] not in tags:
            client.set_experiment_tag(experiment_id, *_KIND)
        view = view_state(tags.get(VIEW_TAG), headlines, searched, sweep_run_id)
        if tags.get(VIEW_TAG) != view:
            client.set_experiment_tag(experiment_id, VIEW_TAG, view)
    except Exception as error:  # a store that is away, or one where runs may be written and experiments may not
        logger.info("MLflow's table of runs keeps its own columns: %s", first_line(error))


def view_state(known: str | None, headlines: Sequence[str], searched: Sequence[str], sweep_run_id: str | None) -> str:
    """The state of MLflow's table of runs as JSON, at most 5000 characters; `known` is the one it follows, if any.

    Its columns are the headline metrics, the searched keys (at most 16, the newest sweep's before others) and the
    assigner; MLflow itself sorts metrics and parameters by name, and few columns can be seen without scrolling. The
    runs of the newest 8 sweeps are unfolded.
    """
    before: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        before = json.loads(known or "{}")
    columns = [*(f"params.`{mlflow_name(key)}`" for key in searched), *before.get("selectedColumns", [])]
    first = [f"metrics.`{mlflow_name(name)}`" for name in headlines]
    middle = [column for column in dict.fromkeys(columns) if column not in (*first, *_LAST)][:_MAX_SEARCHED]
    unfolded = [run for run in before.get("runsExpanded", {}) if run != sweep_run_id]
    unfolded = [*unfolded, *([sweep_run_id] if sweep_run_id else [])][-_MAX_UNFOLDED:]
    state = {"selectedColumns": [*first, *middle, *_LAST], "runsExpanded": dict.fromkeys(unfolded, True)}
    return json.dumps(state, ensure_ascii=False)  # escapes would make it longer than the tag may be


def how_to_see(uri: str, experiment_id: str, run_id: str) -> tuple[tuple[str, str], ...]:
    """Labels, each with a command or an address, that tell the user how to see a run in MLflow."""
    command = () if is_server(uri) else (("see it in MLflow", ui_command(uri)),)
    this, every = run_url(uri, experiment_id, run_id), runs_url(uri, experiment_id)
    return (*command, ("this run", this), ("all runs", every))


def ui_command(uri: str) -> str:
    """The command that opens the UI on a store that is no server, as it is typed where this process was started.

    Without the app `mgdet` where it is not installed: a tree of source files on PYTHONPATH has no entry points.
    """
    app = ["--app-name", APP] if APP in entry_points(group="mlflow.app").names else []
    return shlex.join([*_mlflow(), "ui", "--backend-store-uri", shown_uri(uri), *app])


def _mlflow() -> list[str]:
    """MLflow's command of this environment: by name where the shell finds it, else with `uv run` or its whole path."""
    if "UV_RUN_RECURSION_DEPTH" in os.environ:  # `uv run` sets it, and PATH for this process alone
        project = Path(sys.prefix).parent
        if (project / "pyproject.toml").exists() and Path.cwd().is_relative_to(project):
            return ["uv", "run", "mlflow"]
    own = Path(sysconfig.get_path("scripts")) / "mlflow"
    found = shutil.which("mlflow")
    if "UV_RUN_RECURSION_DEPTH" not in os.environ and found and own.exists() and own.samefile(found):
        return ["mlflow"]
    return [str(own)] if own.exists() else [sys.executable, "-m", "mlflow"]


def runs_url(uri: str, experiment_id: str) -> str:
    """The address of the experiment's table of runs, with the columns of `show_runs`."""
    return f"{_address(uri)}/#/experiments/{experiment_id}/runs?workflowType={MODE}&viewStateShareKey={_key()}"


def run_url(uri: str, experiment_id: str, run_id: str) -> str:
    """The address of one run."""
    return f"{_address(uri)}/#/experiments/{experiment_id}/runs/{run_id}?workflowType={MODE}"


def artifact_url(experiment_id: str, run_id: str, name: str) -> str:
    """The address of an artifact of a run; within MLflow's own pages, so that it holds wherever they are served."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{name}"


def is_server(uri: str) -> bool:
    """Whether the store has a UI of its own."""
    return uri.startswith(("http://", "https://"))


def _address(uri: str) -> str:
    return shown_uri(uri).rstrip("/") if is_server(uri) else LOCAL_ADDRESS


def _key() -> str:
    return VIEW_TAG.rpartition(".")[2]
