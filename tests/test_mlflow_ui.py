"""What a person sees first in MLflow: the printed command and links, and the table of runs in a real browser.

`tests/chromium.py` says what the browser's tests need.
"""

import importlib.metadata
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
from pathlib import Path

import pytest

from mgdet.tracking import Mlflow, NewRun
from mgdet.tracking import view as views
from mgdet.tracking.view import LOCAL_ADDRESS, VIEW_TAG, how_to_see, ui_command
from tests.chromium import chromium, screenshot
from tests.tracking_servers import free_port, wait_for

ROOT = Path(__file__).parents[1]
STORE = "sqlite:////data/mlflow.db"
SEARCHED = ("assigner.sigma", "train.optimizer.lr")
HEADLINES = ("val/AP", "val/divergence")


# --- the view


def view_state(known, searched, sweep_run_id):
    return views.view_state(known, HEADLINES, searched, sweep_run_id)


def columns(state):
    return json.loads(state)["selectedColumns"]


def test_a_view_shows_ap_and_divergence_first_and_the_searched_keys_next():
    state = view_state(None, SEARCHED, "sweep1")
    assert columns(state)[:4] == [
        "metrics.`val/AP`",
        "metrics.`val/divergence`",
        "params.`assigner.sigma`",
        "params.`train.optimizer.lr`",
    ]
    assert json.loads(state)["runsExpanded"] == {"sweep1": True}
    assert view_state(state, SEARCHED, "sweep1") == state, "a sweep that is continued changes nothing"
    assert view_state(state, (), None) == state, "nor does a training beside it"


def test_the_keys_of_the_newest_sweep_come_before_those_of_older_ones():
    state = view_state(view_state(None, ("a.old",), "sweep1"), ("b.new", "assigner.name"), "sweep2")
    assert columns(state)[2:4] == ["params.`b.new`", "params.`a.old`"]
    assert columns(state).count("params.`assigner.name`") == 1
    assert list(json.loads(state)["runsExpanded"]) == ["sweep1", "sweep2"]


def test_a_view_fits_into_a_tag_of_an_experiment():
    state = None
    for sweep in range(30):
        state = view_state(state, [f"{key:03d}.{'å' * 300}" for key in range(sweep, sweep + 30)], f"{sweep:032x}")
        assert len(state) <= 5000
    assert columns(state)[2].startswith("params.`029.")
    assert list(json.loads(state)["runsExpanded"])[-1] == f"{29:032x}"
    assert columns(view_state("no JSON", (), None))[0] == "metrics.`val/AP`"


@pytest.mark.slow
def test_runs_give_their_experiment_the_view_and_what_the_user_chose_or_wrote_stays(tmp_path):
    from mlflow import MlflowClient

    config = Mlflow(uri=f"sqlite:///{tmp_path}/mlflow.db")
    first = config.start(NewRun("first", headlines=HEADLINES))
    client = MlflowClient(config.uri)
    for text in ("AP 0.1", "AP 0.2"):
        config.note(first, "report.html", text)
        note = client.get_run(first.run_id).data.tags["mlflow.note.content"]
        place = f"#/experiments/{first.group}/runs/{first.run_id}/artifacts/report.html"
        assert note == f"{text}\n\n[report.html]({place})"
    client.set_tag(first.run_id, "mlflow.note.content", "mine")
    config.note(first, "report.html", "AP 0.3")
    assert client.get_run(first.run_id).data.tags["mlflow.note.content"] == "mine"
    tags = client.get_experiment(first.group).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags[VIEW_TAG] == view_state(None, (), None)
    client.set_experiment_tag(first.group, "mlflow.experimentKind", "genai_development")
    sweep = config.start(NewRun("sweep", headlines=HEADLINES, searched=SEARCHED))
    config.start(NewRun("sweep-000", parent_run_id=sweep.run_id))
    tags = client.get_experiment(first.group).tags
    assert tags["mlflow.experimentKind"] == "genai_development"
    assert tags[VIEW_TAG] == view_state(None, SEARCHED, sweep.run_id)


# --- the command and the links


def test_the_last_table_names_the_command_the_run_and_all_runs():
    table = how_to_see(STORE, "7", "r1")
    runs = f"{LOCAL_ADDRESS}/#/experiments/7/runs"
    assert table == (
        ("see it in MLflow", ui_command(STORE)),
        ("this run", f"{runs}/r1?workflowType=machine_learning"),
        ("all runs", f"{runs}?workflowType=machine_learning&viewStateShareKey=mgdet"),
    )
    assert VIEW_TAG.endswith(".mgdet"), "the key that MLflow looks up"


def test_a_server_needs_no_command_and_its_links_hold_no_password():
    table = how_to_see("https://me:hunter2@mlflow.example:5000/", "7", "r1")
    assert [what for what, _ in table] == ["this run", "all runs"]
    for _, link in table:
        assert "hunter2" not in link
        assert "mlflow.example:5000/#/experiments/7/runs" in link
        assert "workflowType=machine_learning" in link


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The entry points of pyproject.toml, installed as those of a wheel are, whatever this environment has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / "installed" / "mgdet-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mgdet\nVersion: 0\n")
    lines = [f"{name} = {value}" for name, value in project["entry-points"]["mlflow.app"].items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[mlflow.app]", *lines]) + "\n")
    monkeypatch.syspath_prepend(str(metadata.parent))
    return metadata.parent


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment with the command `mlflow` that is in no PATH; gives its directory of commands."""
    commands = tmp_path / "project" / ".venv" / "bin"
    commands.mkdir(parents=True)
    (commands / "mlflow").write_text("#!/bin/sh\n")
    (commands / "mlflow").chmod(0o755)
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(commands))
    monkeypatch.setattr(sys, "prefix", str(commands.parent))
    return commands


def test_the_app_is_named_only_where_it_is_installed(environment, installed, monkeypatch):
    (found,) = importlib.metadata.entry_points(group="mlflow.app", name="mgdet")
    assert importlib.util.find_spec(found.module) is not None
    assert ui_command(STORE).endswith(f"/mlflow ui --backend-store-uri {STORE} --app-name mgdet")
    monkeypatch.setattr(views, "entry_points", lambda group: importlib.metadata.EntryPoints())
    assert ui_command(STORE).endswith(f"/mlflow ui --backend-store-uri {STORE}")


def test_the_command_works_as_typed_in_the_environment_where_it_was_printed(environment, monkeypatch):
    assert ui_command(STORE).startswith(f"{environment}/mlflow ui ")
    monkeypatch.setenv("PATH", f"{environment}:/usr/bin")
    assert ui_command(STORE).startswith("mlflow ui "), "the environment is activated"
    project = environment.parents[1]
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert ui_command(STORE).startswith(f"{environment}/mlflow ui "), "uv run set PATH for this process alone"
    (project / "pyproject.toml").write_text("")
    monkeypatch.chdir(project)
    assert ui_command(STORE).startswith("uv run mlflow ui ")
    monkeypatch.chdir("/")
    assert ui_command(STORE).startswith(f"{environment}/mlflow ui "), "uv run finds no project here"
    (environment / "mlflow").unlink()
    assert ui_command(STORE).startswith(f"{sys.executable} -m mlflow ui ")


def test_a_command_quotes_the_path_and_hides_the_password(environment):
    assert shlex.split(ui_command("sqlite:////my data/mlflow.db"))[3] == "sqlite:////my data/mlflow.db"
    assert "hunter2" not in ui_command("postgresql://me:hunter2@host/mlflow")


# --- the table of runs, in a browser


@pytest.fixture
def browser(tmp_path):
    with chromium(tmp_path / "profile", "1920,1080") as browser:
        yield browser


def record(config, directory, name, ap, parent=None, **params):
    handle = config.start(NewRun(name, headlines=HEADLINES, params=params, config_yaml="a: 1\n", parent_run_id=parent))
    tracker = config(handle, directory / name)
    for step in (4, 8):
        metrics = {"val/AP": ap * step / 8, "val/divergence": 1 - ap, "val/AP50": ap, "val/AP75": ap}
        tracker.log({"train/loss": 1 / step, **metrics}, step)
    tracker.close()
    config.end(handle, "FINISHED")
    return handle


def record_sweep(config, directory, name, key, values):
    sweep = config.start(
        NewRun(name, headlines=HEADLINES, params={"trials": len(values)}, config_yaml="a: 1\n", searched=(key,))
    )
    for number, value in enumerate(values):
        record(config, directory, f"{name}-{number:03d}", 0.3, sweep.run_id, **{key: value})
    config.end(sweep, "FINISHED")
    return sweep


@pytest.fixture
def store(tmp_path, installed):
    """The settings of a store with a training and a sweep of four trials, and the training's handle."""
    config = Mlflow(uri=f"sqlite:///{tmp_path}/a store/mlflow.db", send_every_s=0.05)
    training = record(config, tmp_path, "quickstart", 0.5, **{"assigner.name": "mutual_guidance"})
    record_sweep(config, tmp_path, "quick", "assigner.sigma", [1.25, 1.75, 2.25, 3.75])
    return config, training


@pytest.fixture
def started(installed):
    """Starts a printed command on a free port and gives its address."""
    processes = []

    def start(command):
        port = free_port()
        paths = os.pathsep.join([str(installed), str(ROOT), os.environ.get("PYTHONPATH", "")])
        more = {"PYTHONPATH": paths, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        line = [*shlex.split(command), "--port", str(port), "--workers", "1"]
        processes.append(subprocess.Popen(line, env=os.environ | more, start_new_session=True))
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(processes[-1], address), 240)
        return address

    yield start
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(process, address):
    assert process.poll() is None, "the command ended"
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=2).status == 200
    except OSError:
        return False


def wait_for_texts(browser, name, *texts):
    """Wait until all of these texts can be seen on the page; what lies behind a pop-up or outside does not count."""
    script = """
        const shown = [];
        for (const e of document.querySelectorAll("body *")) {
          if (e.children.length || !e.textContent.trim()) continue;
          const box = e.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
          const top = document.elementFromPoint(x, y);
          if (top && (top === e || e.contains(top) || top.contains(e))) shown.push(e.textContent.trim());
        }
        return shown;"""
    seen = []

    def all_there():
        seen[:] = browser.execute_script(script)
        return all(any(text == s or s.endswith(text) for s in seen) for text in texts)

    try:
        wait_for(all_there, 120)
    except AssertionError:
        raise AssertionError(f"{browser.current_url} shows {seen}") from None
    finally:
        screenshot(browser, name)


def fresh_page(browser, address):
    browser.get("about:blank")  # a change behind the # alone would not load MLflow's page again
    browser.get(address)


def click_the_experiment(browser, address):
    fresh_page(browser, f"{address}/#/experiments")
    link = "[data-testid=experiment-list-item-link]"
    wait_for(lambda: browser.find_elements("css selector", link), 120)
    next(e for e in browser.find_elements("css selector", link) if e.text == "mgdet").click()


RUNS = ("quickstart", "quick", "quick-000", "quick-001", "quick-002", "quick-003")
TABLE = (*RUNS, "val/AP", "val/divergence", "assigner.sigma", "1.25", "3.75")
FOLDED = ("quickstart", "quick", "val/AP", "val/divergence", "assigner.sigma")  # a shared view unfolds nothing


@pytest.mark.exhaustive
def test_every_way_into_mlflow_shows_the_runs(browser, store, started, tmp_path):
    config, training = store
    links = dict(training.see)
    address = started(links["see it in MLflow"])

    click_the_experiment(browser, address)
    wait_for_texts(browser, "click", *TABLE)
    fresh_page(browser, links["this run"].replace(LOCAL_ADDRESS, address))
    wait_for_texts(browser, "run", "quickstart", "Finished", "Metrics (5)")
    fresh_page(browser, links["all runs"].replace(LOCAL_ADDRESS, address))
    wait_for_texts(browser, "runs", *FOLDED)

    record_sweep(config, tmp_path, "later", "train.optimizer.lr", [0.015, 0.025])
    click_the_experiment(browser, address)
    wait_for_texts(browser, "later", *TABLE, "later-000", "later-001", "train.optimizer.lr", "0.015", "0.025")


@pytest.mark.exhaustive
def test_links_into_an_mlflow_that_knows_nothing_of_mgdet_show_the_runs(browser, store, started):
    links = dict(store[1].see)
    command = links["see it in MLflow"].removesuffix(" --app-name mgdet")
    assert command != links["see it in MLflow"]
    address = started(command)
    fresh_page(browser, links["all runs"].replace(LOCAL_ADDRESS, address))
    wait_for_texts(browser, "plain", *FOLDED)
