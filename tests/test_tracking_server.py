"""Eight trials of a sweep write at once: to a server on a real PostgreSQL, and straight to one new SQLite file.

The PostgreSQL test needs the server's programs (Debian: `postgresql`) and its driver (`psycopg[binary]`). Where one is
missing it is skipped, or fails if MGDET_REQUIRE_POSTGRES=1 says that both have to be there. `-s` shows the times.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from mgdet.tracking import CloseReport, Mlflow, NewRun
from tests.forked import CONTEXT
from tests.tracking_servers import free_port

WRITERS = 8
STEPS = 150
KEYS = ("train/loss", "train/lr")
# Sends as often as the store takes it. The bounds are wide: what is asked is whether all arrives, not how soon.
SETTINGS = {"send_every_s": 0.05, "request_timeout_s": 60, "flush_timeout_s": 120.0}


@pytest.fixture(autouse=True)
def _no_progress_bars(monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@pytest.fixture
def programs():
    """The directory of initdb and postgres, the newest if there are several; they are in no PATH on Debian."""
    found = [str(path.parent) for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    found.sort(key=lambda path: float(path.split("/")[-2]))
    if (on_path := shutil.which("postgres")) is not None:
        found.append(str(Path(on_path).resolve().parent))
    if not found:
        missing("PostgreSQL is not installed (Debian package: postgresql)")
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        missing(f"the PostgreSQL driver is not installed (Python package: psycopg[binary]): {error}")
    return Path(found[-1])


def missing(what):
    if os.environ.get("MGDET_REQUIRE_POSTGRES") == "1":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture
def database(programs, tmp_path):
    """A PostgreSQL of its own with the role and the database `mlflow`.

    Gives the URI without the password, as it may be on a command line, and the file that has the password.
    """
    import psycopg

    # postgres refuses to run as root, and pytest's directories are closed to other users
    user = "postgres" if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="mgdet-postgres-"))
    server = None
    try:
        password = secrets.token_hex(16)
        (home / "password").write_text(password)
        if user is not None:
            for path in (home, home / "password"):
                shutil.chown(path, user)
        make = [programs / "initdb", "--pgdata", home / "data", "--username", "admin", "--encoding", "UTF8"]
        make += ["--auth", "scram-sha-256", "--pwfile", home / "password", "--no-sync"]
        done = subprocess.run(make, user=user, cwd=home, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        port = free_port()
        command = [programs / "postgres", "-D", home / "data", "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        command += ["-c", "unix_socket_directories="]
        log = tmp_path / "postgres.log"
        server = start(command, log, user=user, cwd=home)
        admin = f"host=127.0.0.1 port={port} user=admin password={password} dbname=postgres connect_timeout=2"

        def ready():
            try:
                psycopg.connect(admin).close()
            except psycopg.OperationalError:
                return False
            return True

        wait_for(ready, server, log, 60)
        with psycopg.connect(admin, autocommit=True) as connection:  # CREATE DATABASE works in no transaction
            connection.execute(f"CREATE ROLE mlflow LOGIN PASSWORD '{password}'")
            connection.execute("CREATE DATABASE mlflow OWNER mlflow")
        passfile = tmp_path / "pgpass"
        passfile.write_text(f"127.0.0.1:{port}:mlflow:mlflow:{password}\n")
        passfile.chmod(0o600)  # the client library ignores the file otherwise
        yield f"postgresql+psycopg://mlflow@127.0.0.1:{port}/mlflow", passfile
    finally:
        stop(server, signal.SIGINT)  # "fast": does not wait for the clients
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def server(database, tmp_path):
    """The address of `mlflow server` on that database, and the directory of its artifacts."""
    uri, passfile = database
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    command += ["--backend-store-uri", uri, "--artifacts-destination", str(tmp_path / "artifacts")]
    environment = os.environ | {
        "PGPASSFILE": str(passfile),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    log = tmp_path / "mlflow.log"
    process = start(command, log, env=environment, cwd=tmp_path)

    def healthy():
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
        except OSError:
            return False

    try:
        wait_for(healthy, process, log, 120)
        yield f"http://127.0.0.1:{port}", tmp_path / "artifacts"
    finally:
        stop(process)


@pytest.mark.exhaustive
def test_eight_trials_write_to_a_server_on_postgresql(server, tmp_path):
    uri, artifacts = server
    config = Mlflow(uri=uri, **SETTINGS)
    parent = config.start(NewRun("sweep"))
    assert parent is not None
    write_at_once(config, parent.run_id, tmp_path / "trials")
    config.end(parent, "FINISHED")
    assert_all_there(config, parent.run_id, tmp_path)
    assert len(list(artifacts.rglob("result.txt"))) == WRITERS


@pytest.mark.slow
def test_eight_trials_write_to_one_new_sqlite_file(tmp_path):
    """Nobody made the database before: its first use is that of eight processes, too."""
    config = Mlflow(uri=f"sqlite:///{tmp_path}/new.db", **SETTINGS)
    write_at_once(config, "a" * 32, tmp_path / "trials")
    assert_all_there(config, "a" * 32, tmp_path)


def trial(number, config, parent_run_id, directory, start_line):
    """What the process of a trial does; any failure shows in its exit code."""
    import mlflow  # noqa: F401  # takes seconds, and not equally many in each process

    start_line.wait(120)
    handle = config.start(NewRun(f"trial-{number}", params={"number": number}, parent_run_id=parent_run_id))
    assert handle is not None
    tracker = config(handle, directory)
    for step in range(1, STEPS + 1):
        tracker.log({key: value_of(number, key, step) for key in KEYS}, step)
        time.sleep(0.01)  # so that it is many requests, and those of the trials meet
    tracker.artifact(f"trial {number}", "tables/result.txt")
    report = tracker.close()
    assert report == CloseReport(sent=STEPS * len(KEYS)), report
    config.end(handle, "FINISHED")


def value_of(number, key, step):
    return number * 1000.0 + step + 0.5 * KEYS.index(key)


def write_at_once(config, parent_run_id, directory):
    # forks of a process that has no connections: those of this one would go along
    start_line = CONTEXT.Barrier(WRITERS + 1)
    trials = [
        CONTEXT.Process(target=trial, args=(i, config, parent_run_id, directory / str(i), start_line))
        for i in range(WRITERS)
    ]
    try:
        for process in trials:
            process.start()
        start_line.wait(120)
        begin = time.monotonic()
        for process in trials:
            process.join(max(0.0, begin + 300 - time.monotonic()))
        print(f"\n{WRITERS} trials, {WRITERS * STEPS * len(KEYS)} points: {time.monotonic() - begin:.1f} s")
        assert [process.exitcode for process in trials] == [0] * WRITERS
    finally:
        for process in trials:
            if process.is_alive():
                process.kill()
                process.join()


def assert_all_there(config, parent_run_id, tmp_path):
    """Each trial once under the parent, each of its points once with its value, and its artifacts."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=config.uri)
    experiment = client.get_experiment_by_name(config.experiment)
    runs = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent_run_id}'")
    assert sorted(run.info.run_name for run in runs) == [f"trial-{i}" for i in range(WRITERS)]
    for run in runs:
        number = int(run.data.params["number"])
        assert run.info.run_name == f"trial-{number}"
        assert run.info.status == "FINISHED"
        assert set(run.data.metrics) == set(KEYS)
        for key in KEYS:
            points = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))
            assert points == [(step, value_of(number, key, step)) for step in range(1, STEPS + 1)]
        file = client.download_artifacts(run.info.run_id, "tables/result.txt", str(tmp_path))
        assert Path(file).read_text() == f"trial {number}"
        assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"config.yaml", "tables"}


def start(command, log, **options):
    """A process group of its own, so that `stop` reaches the server's workers too."""
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, **options)


def wait_for(condition, process, log, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def stop(process, how=signal.SIGTERM):
    if process is None:
        return
    process.send_signal(how)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
