"""The comparison of `benchmarks/chaos.py` sees what it is there to see."""

import json
from copy import deepcopy

import pytest
import torch

from benchmarks.run_outcome import add, differences, digests, journal_values

STATE = {
    "model": {"w": torch.tensor([[1.0, -0.0], [float("nan"), 2.0]])},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}},
    "generators": [{"torch": torch.arange(4, dtype=torch.uint8)}],
    "format": 1,
}


def outcome(state=STATE, losses=((1, 0.5), (2, 0.25)), status="FINISHED"):
    metrics = {}
    for step, loss in losses:
        add(metrics, {("train/loss", step): loss}, "run, MLflow: ")
    return {"weights": digests(state, "run"), "metrics": metrics, "states": {"run, MLflow": (status,)}}


def changed(change):
    state = deepcopy(STATE)
    change(state)
    return outcome(state)


def test_the_same_is_equal():
    assert list(differences(outcome(), outcome())) == []
    assert len(outcome()["weights"]) == 3


def test_what_is_measured_by_time_is_left_out():
    values = {}
    for metric in ("train/images_per_s", "val/seconds", "time/data", "system/cpu_utilization_percentage"):
        add(values, {(metric, 1): 0.5})
    assert values == {}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (
            lambda s: s["model"]["w"].__setitem__((1, 1), torch.nextafter(torch.tensor(2.0), torch.tensor(3.0))),
            "model/w",
        ),
        (lambda s: s["model"]["w"].__setitem__((0, 1), 0.0), "model/w"),  # zero for minus zero
        (lambda s: s["model"].update(w=s["model"]["w"].double()), "model/w"),
        (lambda s: s["model"].update(w=s["model"]["w"].reshape(4)), "model/w"),
        (lambda s: s["optimizer"]["state"][0]["step"].add_(1), "optimizer/state/0/step"),
        (lambda s: s["generators"][0]["torch"].add_(1), "generators/0/torch"),
    ],
)
def test_a_tensor_that_differs(change, name):
    (found,) = differences(outcome(), changed(change))
    assert found.startswith(f"run/{name} differs: ")


def test_a_tensor_too_few_and_one_too_many():
    other = changed(lambda s: s.update(model={"v": torch.zeros(1)}))
    missing, more = differences(outcome(), other)
    assert missing.startswith("run/model/w is missing")
    assert more.startswith("run/model/v stands 1 times, undisturbed 0 times")


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (((1, 0.5), (2, 0.25 + 2**-54)), "of step 2 differs: 0.25000000000000006 (undisturbed: 0.25)"),
        (((1, 0.5), (2, 0.25), (2, 0.25)), "of step 2 stands 2 times, undisturbed 1 times: 0.25, 0.25"),
        (((1, 0.5),), "of step 2 is missing:  (undisturbed: 0.25)"),
        (((1, 0.5), (2, float("nan"))), "of step 2 differs: nan"),
    ],
)
def test_a_metric_that_differs_stands_twice_or_is_missing(losses, words):
    (found,) = differences(outcome(), outcome(losses=losses))
    assert found.startswith(f"run, MLflow: train/loss {words}")


def test_not_a_number_equals_itself_and_a_state_may_differ():
    nan = outcome(losses=((1, float("nan")),))
    assert not list(differences(nan, deepcopy(nan)))
    assert list(differences(outcome(), outcome(status="RUNNING"))) == [
        "run, MLflow differs: RUNNING (undisturbed: FINISHED)"
    ]


def test_a_journal_without_its_replays():
    lines = [
        json.dumps({"step": 1, "time": 0.0, "metrics": {"train/loss": 0.5, "train/images_per_s": 9.0}}),
        json.dumps({"step": 2, "time": 0.0, "metrics": {"train/loss": "NaN"}}),
        '{"step": 3, "time": 0.0, "metr',  # killed in mid-write
        json.dumps({"step": 2, "time": 0.0, "metrics": {"train/loss": "NaN"}, "replay": True}),
        json.dumps({"step": 2, "time": 0.0, "metrics": {"val/AP": 0.1}, "replay": True}),
        json.dumps({"step": 3, "time": 0.0, "metrics": {"train/loss": 0.25}}),
    ]
    values, replays, last = journal_values(lines)
    assert values == {
        "train/loss of step 1": ("0.5",),
        "train/loss of step 2": ("nan",),
        "train/loss of step 3": ("0.25",),
    }
    assert (replays, last) == (1, 3)
    assert journal_values([*lines, lines[-1]])[0]["train/loss of step 3"] == ("0.25", "0.25")
