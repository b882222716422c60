"""What the workers of a trial report to Tune, and when. No Ray is started here."""

import threading
from types import SimpleNamespace

import pytest
import ray.train
import ray.train.torch
import torch

from mgdet.cluster.train import _train
from mgdet.runs.launch import prepare
from mgdet.training.checkpoint import CheckpointStore
from tests.small import small_experiment


@pytest.mark.slow
@pytest.mark.parametrize("trial", [True, pytest.param(False, marks=pytest.mark.exhaustive)], ids=["trial", "training"])
def test_the_evaluation_of_a_trial_is_reported_when_its_checkpoint_is_written(tmp_path, monkeypatch, trial):
    """A scheduler may end the trial at that report; nobody relies on the checkpoint of a training at that moment."""
    e = prepare(small_experiment(tmp_path), 1, 0)[0]
    store, reported, commit = CheckpointStore(e.run_uri), [], CheckpointStore._commit
    told = threading.Event()

    def slow(*args):
        told.wait(0.3)  # until it is reported, if it is reported before
        return commit(*args)

    def report(metrics):
        reported.append((metrics["epoch"], [info.epoch for info in store.committed()]))
        told.set()

    monkeypatch.setattr(CheckpointStore, "_commit", slow)
    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_local_rank=lambda: 0))
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    about = {"trial": trial, "handle": None, "owner": None, "screen": False, "judge": ""}
    task = {"experiment": e.model_dump(mode="json"), **about}
    try:
        _train(task, SimpleNamespace(show=None))
    finally:
        torch.use_deterministic_algorithms(False)
    assert reported == ([(1, [1])] if trial else [(1, []), (2, [1, 2])])
