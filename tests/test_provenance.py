"""What makes a result is written down with it."""

import json
import subprocess
import sys
from pathlib import Path

import torch

import mgdet
from mgdet import provenance
from mgdet.provenance import as_tags, made_by


def test_versions_command_and_machine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mgdet", "train", "a file.yaml", "tracking.uri=http://me:hunter2@host:5000"])
    made = json.loads(json.dumps(made_by()))
    assert made["mgdet"] == mgdet.__version__
    assert made["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert made["versions"].keys() >= {"python", "ray", "optuna", "cuda", "mlflow"}
    assert made["command"] == "mgdet train 'a file.yaml' tracking.uri=http://host:5000"
    assert made["hardware"]["cpus"] >= 1
    assert all(isinstance(v, str) and v for v in as_tags(made).values())


def git(directory, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(directory), *who, *arguments], check=True, capture_output=True)


def test_the_commit_of_a_checkout_and_whether_it_was_changed(tmp_path):
    assert provenance._git(tmp_path) == (None, None)
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a")
    commit, dirty = provenance._git(tmp_path)
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "a").write_text("2")
    assert provenance._git(tmp_path) == (commit, True)


def test_an_installed_package_is_not_the_checkout_that_it_lies_in(tmp_path):
    git(tmp_path, "init", "-q")
    inside = tmp_path / ".venv" / "lib"
    inside.mkdir(parents=True)
    assert provenance._git(inside) == (None, None)
    assert provenance._git(Path("/nowhere")) == (None, None)
