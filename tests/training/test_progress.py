"""An evaluation within a training shows how far it is, on a screen or in lines that `-q` silences."""

import logging

import torch

from mgdet.runs.launch import prepare
from mgdet.tracking import NullTracker
from mgdet.training import progress
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.progress import shown_by
from tests.small import small_experiment


def test_an_evaluation_shows_its_images(tmp_path, caplog, monkeypatch):
    experiment = prepare(small_experiment(tmp_path), cpus=1, gpus=0)[0]
    worker = Worker(experiment, World(0, 1, torch.device("cpu")), NullTracker())
    shown = []
    with shown_by(shown.append):
        worker.evaluations.begin(worker.detector, worker.position)
    assert [(p.what, p.done, p.total) for p in shown] == [("epoch 0: evaluated", 2, 3), ("epoch 0: evaluated", 3, 3)]
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    for level, lines in ((logging.INFO, 2), (logging.WARNING, 0)):
        caplog.clear()
        with caplog.at_level(level, logger="mgdet"):
            worker.evaluations.begin(worker.detector, worker.position)
        assert len([r for r in caplog.messages if r.startswith("epoch 0: evaluated")]) == lines
