"""A training that loses random parts ends as an undisturbed one; the script that does this leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.exhaustive

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


def test_two_faults_in_a_training(tmp_path):
    command = [sys.executable, str(SCRIPT), "train", "--kills", "2", "--every", "3", "--epochs", "8"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [*command, "--directory", str(tmp_path)], capture_output=True, text=True, env=environment, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "chaos-train.md").read_text()
    assert report in done.stdout
    assert "equal: weights (482 tensors), metrics (" in report
    assert "| all | 2 |" in report
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
