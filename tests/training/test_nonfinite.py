"""A gradient that is not finite stops the training with everything that is needed to see why."""

import time

import pytest
import torch

from mgdet.errors import NonFiniteError
from mgdet.runs.launch import prepare
from mgdet.tracking import NullTracker
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.nonfinite import load_capture
from tests.faults import note
from tests.small import small_experiment
from tests.trained_runs import call, import_job


@pytest.mark.slow
def test_capture_and_replay(tmp_path):
    experiment, _ = prepare(small_experiment(tmp_path), cpus=1, gpus=0)
    worker = Worker(experiment, World(0, 1, torch.device("cpu")), NullTracker())
    with torch.no_grad():
        worker.detector.head.regression_head.bbox_reg.weight[0, 0, 0, 0] = float("nan")
    before = {k: v.clone() for k, v in worker.detector.state_dict().items()}
    begin = time.monotonic()
    with pytest.raises(NonFiniteError, match=r"mgdet replay") as error:
        worker.run()
    note("loss is NaN: captured, training stops", steps_repeated=0, seconds=time.monotonic() - begin)
    assert worker.position.step == 0
    after = worker.detector.state_dict()
    assert all(torch.equal(a.nan_to_num(), after[k].nan_to_num()) for k, a in before.items()), "no step was taken"

    path = next(word for word in str(error.value).split() if word.endswith(".pt"))
    assert len(load_capture(path)["batches"]) == 1
    answer = call(import_job("replay"), path)
    assert answer.status == 0, answer.err
    out = answer.out
    assert "not finite before the step: head.regression_head.bbox_reg.weight" in out
    assert out.count("first layer not finite: head.regression_head.bbox_reg") == 2

    whole = torch.load(path, weights_only=True)
    for changes, said in {
        "no step": ({"step": None}, "not a capture of a non-finite step: expected model, config, step, epoch"),
        "another network": ({"model": {}}, "its weights do not fit its own configuration"),
        "a network cut short": ({"model": dict(list(whole["model"].items())[9:])}, "do not fit its own configuration"),
        "no configuration": ({"config": []}, "not a capture of a non-finite step"),
    }.values():
        torch.save({**whole, **changes}, tmp_path / "changed.pt")
        answer = call(import_job("replay"), str(tmp_path / "changed.pt"))
        assert (answer.status, said in answer.err) == (2, True), answer.err
