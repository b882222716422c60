"""The progress bar on a terminal, and what stands in its place elsewhere."""

import io
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mgdet.cli.screen import AboveTheBar, Bar
from mgdet.training.progress import Progress, ProgressLog, show, shown_by, training_progress

ROOT = Path(__file__).parents[1]


def on_a_terminal(*arguments):
    """What `python -m mgdet ARGUMENTS` writes to a terminal of 100 columns."""
    ours, its = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "LINES": "24"}
    process = subprocess.Popen([sys.executable, "-m", "mgdet", *arguments], stdout=its, stderr=its, env=env)
    os.close(its)
    written = b""
    try:
        while piece := os.read(ours, 1 << 16):
            written += piece
    except OSError:  # the terminal is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    return written.decode()


def prepare(directory, *options):
    return ["prepare", "shapes", "--out", str(directory), "--train", "120", "--val", "2", "--size", "48", *options]


@pytest.mark.slow
def test_a_terminal_gets_a_bar(tmp_path):
    written = on_a_terminal(*prepare(tmp_path / "shapes"))
    assert re.search(r"\rdrawing train +\d+%\|.*\| (50|100)/120", written)
    assert re.search(r"\rdrawing train 100%\|.*\| 120/120.*\n", written)
    assert "Written to" in written


@pytest.mark.slow
def test_quiet_draws_no_bar(tmp_path):
    assert "drawing" not in on_a_terminal(*prepare(tmp_path / "shapes", "--quiet"))


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self):
        """Its lines; what was written over, and spaces that only erase, are left out."""
        return [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in self.getvalue().split("\n")]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr("mgdet.cli.screen.SECONDS_BETWEEN_DRAWINGS", 0)
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_line_of_the_log_stands_above_the_bar(terminal):
    bar, handler = Bar(terminal), AboveTheBar(terminal)
    metrics = {"train/loss": 1.25, "train/images_per_s": 12.0}
    bar(training_progress(0, 2, 10, 40, metrics, 61))
    handler.emit(logging.makeLogRecord({"msg": "epoch 1: val/AP 0.100"}))
    bar(training_progress(1, 2, 40, 40, metrics, 0))
    above, below, *_ = terminal.screen()
    assert above == "epoch 1: val/AP 0.100"
    assert below.startswith("epoch 2/2 100%|")
    assert below.endswith("| 40/40, loss 1.2500, 12.0 img/s, 0 s left")
    assert "| 10/40, loss 1.2500, 12.0 img/s, 1 min 01 s left" in terminal.getvalue()


def test_each_piece_of_work_has_a_bar_of_its_own(terminal):
    bar = Bar(terminal)
    for what, total in (("checking", 2), ("writing", 3)):
        for done in range(1, total + 1):
            bar(Progress(what, done, total, ""))
    assert [line.partition("%")[0] for line in terminal.screen() if line] == ["checking 100", "writing 100"]


def test_a_screen_replaces_the_lines(caplog, monkeypatch):
    monkeypatch.setattr("mgdet.training.progress.SECONDS_BETWEEN_LINES", 0)
    caplog.set_level("INFO", logger="mgdet")
    seen = []
    with shown_by(seen.append):
        ProgressLog("evaluated", 10).add(5)
    assert [(p.what, p.done, p.total) for p in seen] == [("evaluated", 5, 10)]
    assert not caplog.records
    assert not show(seen[0])
    ProgressLog("evaluated", 10).add(5)
    assert len(caplog.records) == 1
