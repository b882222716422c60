"""The command `mgdet`: what it starts, how fast it answers, what it lists, what a shell completes."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mgdet import __version__
from mgdet.cli import complete, main
from mgdet.cli.keys import PAGE, SHIPPED, as_json, as_page, current, shipped
from mgdet.config import Experiment, load
from mgdet.config_files import EXPERIMENTS, PAPERS, SWEEPS, find, names, summary
from mgdet.errors import ConfigError
from mgdet.host import command, require_linux
from mgdet.sweep.config import Sweep, load_sweep

ROOT = Path(__file__).parents[1]
SMALL = ["data.generate.train=4", "data.generate.val=2", "data.generate.size=64"]
QUICK_ENOUGH = 0.6  # seconds of CPU


def mgdet(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m mgdet ARGUMENTS` in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **environment}
    return subprocess.run([sys.executable, "-m", "mgdet", *arguments], cwd=cwd, env=env, capture_output=True, text=True)


FEW_SHAPES = ["--train", "4", "--val", "2", "--size", "48"]


def cpu_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = mgdet(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# --- help, at once


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([name, "--help"] for name in main.COMMANDS), ["prepare", "shapes", "--help"], ["--keys", "train"]],
    ids=" ".join,
)
def test_help_is_there_at_once(arguments):
    assert min(cpu_seconds(*arguments) for _ in range(2)) < QUICK_ENOUGH


def test_help_names_every_command_and_importing_it_imports_nothing_heavy():
    code = "import sys, mgdet.cli.main; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "pydantic", "numpy", "yaml", "ray", "mlflow", "pyarrow", "PIL", "argcomplete"}
    assert not heavy & set(done.stdout.split())
    said = mgdet("--help").stdout
    assert all(f"\n    {name} " in said for name in main.COMMANDS)


def test_without_a_command_it_says_what_there_is():
    done = mgdet()
    assert done.returncode == 2
    assert "mgdet train" in done.stderr
    assert mgdet("--version").stdout == f"mgdet {__version__}\n"


def test_another_system_is_refused(monkeypatch, capsys):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert main.main(["configs"]) == 2
    assert "mgdet runs on Linux only" in capsys.readouterr().err
    with pytest.raises(Exception, match="Linux only"):
        require_linux()


@pytest.mark.parametrize(
    ("started", "typed"),
    [("jobs/train.py", "python jobs/replay.py"), ("/venv/bin/mgdet", "mgdet replay"), ("/x/train.py", "mgdet replay")],
)
def test_messages_name_the_command_as_it_can_be_typed(monkeypatch, started, typed):
    monkeypatch.setattr(sys, "argv", [started])
    assert command("replay") == typed


@pytest.mark.parametrize(
    "name", ["train", "tune", "prepare", "evaluate", "predict", "replay", "reproduce", "visualize"]
)
def test_scripts_of_jobs_have_the_options_of_the_command(name):
    script = subprocess.run(
        [sys.executable, f"jobs/{name}.py", "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=True,
    )
    of_command = mgdet(name, "--help").stdout
    assert f"python jobs/{name}.py" in script.stdout
    options = re.compile(r"\n(?:positional arguments|options):\n.*", re.S)
    assert options.search(script.stdout)[0] == options.search(of_command)[0]
    assert len((ROOT / "jobs" / f"{name}.py").read_text().splitlines()) < 16


# --- how much is said


@pytest.mark.parametrize("options", [["-q", "shapes"], ["shapes", "--quiet"]], ids=" ".join)
def test_quiet_says_the_result_only(tmp_path, capsys, options):
    assert main.main(["prepare", *options, "--out", str(tmp_path / "shapes"), *FEW_SHAPES]) == 0
    said = capsys.readouterr()
    assert "drawing" not in said.out + said.err
    assert "Written to" in said.out
    assert main.main(["prepare", "shapes", "--out", str(tmp_path / "again"), *FEW_SHAPES]) == 0
    assert "drawing" in capsys.readouterr().err  # of the run before it is nothing left


@pytest.mark.slow
def test_verbose_says_where_an_error_is(tmp_path):
    done = mgdet("replay", "--verbose", str(tmp_path / "none.pt"))
    assert done.returncode == 2
    assert "Traceback" in done.stdout
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in mgdet("replay", str(tmp_path / "none.pt")).stdout


def test_quiet_and_verbose_exclude_each_other():
    done = mgdet("evaluate", "-q", "-v", "runs/x")
    assert done.returncode == 2
    assert "not allowed with argument" in done.stderr


# --- configurations by name


def test_every_configuration_is_listed_and_loads_by_its_name():
    done = mgdet("configs")
    listed = re.findall(r"^  (\S+) +(\S.*)$", done.stdout, re.M)
    assert [name for name, _ in listed] == [*names(EXPERIMENTS), *names(PAPERS), *names(SWEEPS)]
    assert all(line == summary(name) and len(line) > 10 for name, line in listed)
    for name in names(EXPERIMENTS):
        assert load(name) == load(ROOT / "configs" / f"{name}.yaml")
    assert load_sweep("quick", ["trials=4"]) == load_sweep("sweeps/quick.yaml", {"trials": 4})
    assert find("sweeps/quick", SWEEPS) == find("quick", SWEEPS) == find(ROOT / "configs/sweeps/quick.yaml", SWEEPS)


def test_a_path_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("{name: mine, data: {uri: d}}")
    assert load("quickstart").name == "mine"
    Path("quick").mkdir()
    assert find("quick", SWEEPS).is_file()


def test_a_file_anywhere_starts_from_a_configuration_of_mgdet(tmp_path):
    (tmp_path / "a.yaml").write_text("{base: bccd_fcos_atss, name: mine}")
    experiment = load(tmp_path / "a.yaml")
    assert (experiment.name, experiment.assigner.name) == ("mine", "atss")
    (tmp_path / "copied.yaml").write_text(find("bccd_fcos_atss", EXPERIMENTS).read_text())
    assert load(tmp_path / "copied.yaml") == load("bccd_fcos_atss")
    (tmp_path / "s.yaml").write_text(
        "{name: s, base: quickstart, trials: 2, space: {assigner.sigma: {uniform: [1, 4]}}}"
    )
    assert load_sweep(tmp_path / "s.yaml").base["name"] == "quickstart"


@pytest.mark.parametrize(
    ("name", "kinds", "said"),
    [
        ("quickstrat", [EXPERIMENTS], "Did you mean quickstart?"),
        ("bccd_fcos_ats.yaml", [EXPERIMENTS], "Did you mean bccd_fcos_atss?"),
        ("quik", [SWEEPS], "Did you mean quick?"),
        ("quick", [EXPERIMENTS], "run it with `mgdet tune quick`"),
        ("quickstart", [SWEEPS], "run it with `mgdet train quickstart`"),
        ("../configs/quickstart", [EXPERIMENTS], "cannot be read"),
    ],
)
def test_a_name_that_there_is_not(name, kinds, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        find(name, *kinds)


def test_a_configuration_is_printed():
    assert mgdet("configs", "quick").stdout == (ROOT / "configs/sweeps/quick.yaml").read_text()
    refused = mgdet("configs", "quik")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def test_a_configuration_may_be_a_mapping():
    experiment = load({"base": "quickstart", "name": "mine"}, {"train.epochs": 3, "assigner.sigma": 3})
    assert (experiment.name, experiment.train.epochs, experiment.assigner.sigma) == ("mine", 3, 3)
    assert experiment == load("quickstart", ["name=mine", "train.epochs=3", "assigner.sigma=3"])
    with pytest.raises(ConfigError, match=r"unknown key train.epoch. Did you mean train.epochs\?"):
        load({"base": "quickstart"}, {"train.epoch": 3})


# --- keys


def test_generated_files_are_fresh():
    """`python -m mgdet.cli.keys` writes them again."""
    keys = current()
    assert SHIPPED.read_text() == as_json(keys)
    assert PAGE.read_text() == as_page(keys)


def test_every_key_has_a_meaning_and_a_type():
    for keys in current().values():
        assert not [k.key for k in keys if not k.meaning or not k.type]


def test_keys_are_those_of_the_models():
    """Every key of a resolved experiment is listed, and each that is listed is known."""
    experiment = {k.key for k in shipped()}
    for name in names(EXPERIMENTS):
        flat = load(name).identity()
        flat = {k if f"{k}.name" not in experiment else f"{k}.name" for k in flat}  # a name alone or null stands there
        missing = {k for k in flat if k not in experiment and not k.startswith("data.generate")}
        assert not missing
    assert {k.partition(".")[0] for k in experiment} == set(Experiment.model_fields)
    assert {k.key.partition(".")[0] for k in shipped("sweep")} == set(Sweep.model_fields)
    sigma = [(k.only, k.default, k.type) for k in shipped() if k.key == "assigner.sigma"]
    assert ("assigner.name=mutual_guidance", "2", "number >= 1, <= 1e+30") in sigma


def test_keys_are_printed(capsys):
    assert main.main(["--keys", "train.optimizer"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^train\.optimizer\.name = sgd\n    one of sgd, adamw", said, re.M)
    assert "with train.optimizer.name=adamw:" in said
    assert "train.epochs" not in said
    assert main.main(["train", "quickstart", "--keys", "train.optimizer"]) == 0
    assert capsys.readouterr().out == said
    assert main.main(["configs", "--keys", "asigner"]) == 2
    assert "Did you mean assigner" in capsys.readouterr().err


def test_a_reader_may_leave():
    command = f"{sys.executable} -m mgdet --keys | head -2"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 2)


def test_a_key_of_older_configurations_is_left_out():
    """`data.loader.pin_memory` had no effect: old files, checkpoints and command lines still work."""
    new = load("quickstart")
    assert load("quickstart", ["data.loader.pin_memory=true"]) == new
    assert load({**new.shown(), "data": {**new.shown()["data"], "loader": {"pin_memory": False}}}) == new
    assert "pin_memory" not in new.to_yaml()


# --- completion


def completions(line: str, tmp_path: Path) -> list[str]:
    """What bash would offer behind `line`."""
    answer = tmp_path / "answer"
    script = f"exec 8>{answer}; exec {sys.executable} -m mgdet"
    environment = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><;|&(",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    subprocess.run(["bash", "-c", script], env=env, cwd=tmp_path, capture_output=True, check=True)
    return [word.strip() for word in answer.read_text().split("\n")]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mgdet t", ["train", "tune"]),
        ("mgdet train --dr", ["--dry-run"]),
        ("mgdet train bccd_fcos_a", ["bccd_fcos_atss"]),
        ("mgdet train m", ["model.", "mine.yaml"]),
        ("mgdet tune qu", ["quick"]),
        ("mgdet train quickstart train.epo", ["train.epochs="]),
        ("mgdet train quickstart assigner.name=mu", ["assigner.name=mutual_guidance", "assigner.name=mutual_labeling"]),
        ("mgdet --keys assigner.si", ["assigner.sigma"]),
        ("mgdet --completion z", ["zsh"]),
    ],
)
def test_a_shell_completes(line, offered, tmp_path):
    pytest.importorskip("argcomplete", reason="a dependency of mgdet that this environment is older than")
    (tmp_path / "mine.yaml").touch()
    found = completions(line, tmp_path)
    for word in offered:
        assert any(f.startswith(word) for f in found) if word.endswith(".") else word in found
    assert all(f.startswith(line.rpartition(" ")[2]) for f in found)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_registration_of_a_shell(shell):
    pytest.importorskip("argcomplete", reason="a dependency of mgdet that this environment is older than")
    done = mgdet("--completion", shell)
    assert done.returncode == 0
    assert "mgdet" in done.stdout


def test_yaml_files_and_directories_are_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("sub/a.yaml", "sub/b.txt", "sub/.hidden.yaml", "s.yml"):
        (tmp_path / name).touch()
    assert list(complete._yaml_files("s")) == ["s.yml", "sub/"]
    assert list(complete._yaml_files("sub/")) == ["sub/a.yaml"]
    assert list(complete._yaml_files(f"{tmp_path}/sub/a")) == [f"{tmp_path}/sub/a.yaml"]
    assert complete._yaml_files("nowhere/") == {}
