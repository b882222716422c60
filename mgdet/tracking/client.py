"""Access to MLflow: which store, how it is reached without ever blocking for long, and which names it accepts."""

import hashlib
import logging
import os
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mgdet.files import ensure_home
from mgdet.text import redacted

_SQLITE = "sqlite:///"
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_MAX_NAME = 250  # MLflow refuses longer keys, and one refused key refuses the whole batch


def resolve_uri(uri: str) -> str:
    """The URI to use, with an absolute path if it is SQLite: workers run in other directories than the driver."""
    if uri == "auto":
        uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"{_SQLITE}mlflow.db"
    path = sqlite_path(uri)
    return uri if path is None else f"{_SQLITE}{path}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite URI, absolute; None for every other store."""
    if not uri.startswith(_SQLITE) or uri == f"{_SQLITE}:memory:":
        return None
    return Path(os.path.expanduser(uri.removeprefix(_SQLITE))).absolute()  # which leaves an unknown ~name as it is


def shown_uri(uri: str) -> str:
    """The URI as it may stand in a log: without user and password."""
    return redacted(uri)


def mlflow_name(name: str) -> str:
    """A key that MLflow accepts; class names in `val/AP/<class>` may hold anything.

    A name that has to be changed gets a hash of itself at its end, so that "a&b" and "a%b" stay two keys.
    """
    clean = re.sub(r"[^\w\-. /:]", "_", name)
    clean = "/".join("_" if part in ("", ".", "..") else part for part in clean.split("/"))
    if clean.startswith(".."):  # refused even where it is no directory, as in "..x"
        clean = "__" + clean[2:]
    if clean == name and len(clean) <= _MAX_NAME:
        return clean
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{clean[: _MAX_NAME - 7]}-{digest}"


def connect(uri: str, timeout_s: int, repeats: int, *, create: bool = False) -> Any:
    """An `MlflowClient`, with the environment it reads set on purpose wherever the user has not set it.

    Only the driver passes `create`: several processes that make the schema of one new SQLite file at the same time
    destroy it, and a worker on another machine would silently make an empty one.

    Args:
        uri: as `resolve_uri` gives it.
        timeout_s: bound on one request to a server.
        repeats: of a request that failed.
        create: make the database file, if it is one that is not there.

    Raises:
        FileNotFoundError: the database file is not there.
        ConnectionError: nobody listens where the database should be.
    """
    path = sqlite_path(uri)
    if path is not None and not create and not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist on this machine. SQLite serves one machine: for several nodes start "
            "`mlflow server` on one of them and set MLFLOW_TRACKING_URI to its address"
        )
    _require_database(uri, timeout_s)
    for key, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(repeats),
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # a server may ask for a pause of an hour
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",  # alembic tells each of 60 migrations otherwise
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(key, value)
    retries = logging.getLogger("urllib3.connectionpool")
    if retries.level == logging.NOTSET:  # it warns at each retry of each request; our own warning says it once
        retries.setLevel(logging.ERROR)
    ensure_home()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _require_database(uri: str, timeout_s: float) -> None:
    """See that somebody listens at the address of a database: MLflow would try a host that is unknown for minutes.

    Raises `ConnectionError`.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
    except ValueError as error:
        raise ConnectionError(f"tracking.uri = {shown_uri(uri)}: {error}") from error
    if port is None or not parts.hostname or parts.scheme in ("http", "https"):
        return
    try:
        socket.create_connection((parts.hostname, port), timeout_s).close()
    except OSError as error:
        raise ConnectionError(f"no database at {parts.hostname}, port {port}: {error}") from error
