"""A schedule that does not fit into the training is refused or told, in the dry run and before the first step."""

import logging
import math
from typing import Literal

import pytest
import torch

from mgdet.errors import ConfigError
from mgdet.runs.dry_run import dry_run
from mgdet.runs.launch import prepare
from mgdet.runs.resolve import out_of_reach, resolve
from mgdet.tracking import NullTracker
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.schedules import Constant, Cosine, MultiStep, Schedule, Span
from tests.small import small_experiment


def span(epochs, steps=10):
    return Span(steps, epochs * steps)


# --- milestones that were not set


@pytest.mark.parametrize(
    ("epochs", "expected"), [(12, (8, 11)), (36, (24, 33)), (6, (4, 5.5)), (16, (10.67, 14.67)), (1, (0.67, 0.92))]
)
def test_milestones_follow_the_epochs(epochs, expected):
    assert MultiStep().resolved_for(span(epochs)).milestones == expected
    assert MultiStep(milestones=(8, 11)).resolved_for(span(epochs)).milestones == (8, 11)


def test_the_milestones_are_printed_with_their_reason(tmp_path):
    experiment = small_experiment(tmp_path, train__epochs=16, train__schedule={"name": "multistep"})
    resolved, reasons = resolve(experiment, num_images=100, cpus=2, gpus=0)
    assert resolved.train.schedule.milestones == (10.67, 14.67)
    assert "train.schedule.milestones = (10.67, 14.67) (16 epochs of 50 optimizer steps)" in reasons


# --- a warm-up that does not end


@pytest.mark.parametrize("kind", [Cosine, MultiStep, Constant])
@pytest.mark.parametrize(("warmup", "said"), [(500, "1.5 %"), (8, "87.5 %"), (9, "77.8 %")])
def test_a_warmup_that_does_not_end_is_refused(kind, warmup, said):
    with pytest.raises(ConfigError, match=rf"warmup_steps = {warmup}: .*8 steps \(2 epochs of 4\).*{said}"):
        kind(warmup_steps=warmup).resolved_for(Span(4, 8))


@pytest.mark.parametrize("kind", [Cosine, MultiStep, Constant])
def test_the_longest_warmup_that_is_allowed(kind):
    schedule = kind(warmup_steps=7).resolved_for(Span(4, 8))
    assert schedule.warmup_steps == 7


# --- what is told


@pytest.mark.parametrize(
    ("milestones", "expected"),
    [
        ((8, 11), ["milestone 8 never comes", "milestone 11 never comes", "never changes"]),
        ((4, 6), ["milestone 6 never comes"]),
        ((5.99,), ["milestone 5.99 never comes", "never changes"]),
        ((0.5, 3), ["milestone 0.5 comes within the warm-up"]),
        ((0,), ["milestone 0 comes within the warm-up", "reaches 91.7 %", "never changes"]),
        ((3, 5), []),
        ("auto", []),
    ],
)
def test_milestones_out_of_reach_are_told(milestones, expected):
    found = MultiStep(milestones=milestones, warmup_steps=6, warmup_factor=0.5).cautions(span(6))
    assert len([f for f in found if "reaches" not in f]) == len([e for e in expected if "reaches" not in e])
    for text in expected:
        assert any(text in f for f in found), (text, found)


@pytest.mark.parametrize(
    "schedule", [MultiStep(), Cosine(), Constant(), Cosine(final_factor=1.0), Cosine(warmup_steps=1)]
)
@pytest.mark.parametrize("epochs", [1, 2, 3, 12, 40])
@pytest.mark.parametrize("steps", [2, 7])
def test_what_fits_is_not_told(schedule, epochs, steps):
    assert schedule.cautions(span(epochs, steps)) == []


class OneCycle(Schedule):
    """A schedule of someone else's: one file, `factor` and what it names."""

    name: Literal["one_cycle"] = "one_cycle"
    peak: int = 100
    height: float = 1.0

    def factor(self, step, warmup, span):
        return self.height * (1 - abs(step - self.peak) / (self.peak + 50))

    def turns(self, span):
        return {f"peak {self.peak}": self.peak}


def test_a_schedule_of_ones_own_is_looked_at_too():
    found = OneCycle(warmup_steps=0).cautions(span(3))
    assert [f for f in found if "peak 100 never comes, because the training ends after 30 steps" in f]
    assert [f for f in found if "the learning rate reaches 52.7 % of train.optimizer.lr at most" in f]
    assert OneCycle(warmup_steps=0, peak=20).cautions(span(3)) == []
    with pytest.raises(ConfigError, match="warmup_steps = 30"):
        OneCycle(warmup_steps=30).cautions(span(3))


@pytest.mark.parametrize("height", [math.nan, math.inf, -1.0])
def test_a_rate_that_is_no_rate_is_refused(height, monkeypatch):
    monkeypatch.setattr(OneCycle, "factor", lambda self, step, warmup, span: height)
    with pytest.raises(ConfigError, match=r"\(one_cycle\) gives step 0 a learning rate of"):
        OneCycle(warmup_steps=0, peak=20).cautions(span(3))


@pytest.mark.parametrize("milestones", [[-1], [math.nan], [math.inf]])
def test_impossible_milestones(tmp_path, milestones):
    with pytest.raises(ConfigError, match="milestones"):
        small_experiment(tmp_path, train__schedule={"name": "multistep", "milestones": milestones})


def test_an_assigner_that_never_ends_its_warmup_is_told(tmp_path):
    def told(epochs):
        assigner = {"name": "task_aligned", "warmup_epochs": epochs}
        experiment = small_experiment(tmp_path, assigner=assigner, train__epochs=4)
        return out_of_reach(experiment, resolve(experiment, num_images=20, cpus=1, gpus=0)[0], 20)

    assert told(3) == []
    assert told(4) == ["assigner: task_aligned is still warming up when the training ends, after 4 epochs"]


# --- where it is said


BEYOND = {"train__schedule": {"name": "multistep", "milestones": [8, 11]}}


def test_it_is_told_before_the_first_step(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        prepare(small_experiment(tmp_path, **BEYOND), cpus=1, gpus=0)
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told[0].startswith("train.schedule: milestone 8 never comes, because the training ends after 6 steps")
    assert told[-1] == "train.schedule: after the warm-up the learning rate never changes"


@pytest.mark.slow
def test_the_dry_run_tells_and_refuses(tmp_path, caplog):
    with pytest.raises(ConfigError, match="warmup_steps = 500"):
        dry_run(small_experiment(tmp_path, train__schedule={"name": "cosine", "warmup_steps": 500}))
    with caplog.at_level(logging.WARNING):
        assert "everything works" in dry_run(small_experiment(tmp_path, **BEYOND))
    assert "milestone 8 never comes" in caplog.text


# --- the rate that is tracked


class Noting(NullTracker):
    """Keeps the learning rates."""

    def __init__(self):
        self.rates = {}

    def log(self, metrics, step):
        if "train/lr" in metrics:
            self.rates[step] = metrics["train/lr"]


@pytest.mark.slow
def test_the_tracked_rate_is_that_of_the_step(tmp_path):
    """After step n, the rate that step n was taken with; after the last one not the one of a step that never comes."""
    schedule = {"name": "multistep", "milestones": [1], "gamma": 0.5, "warmup_steps": 2, "warmup_factor": 0.5}
    experiment = small_experiment(
        tmp_path, train__schedule=schedule, train__log_every=1, train__optimizer={"name": "sgd", "lr": 0.4e-3}
    )
    tracker, used = Noting(), []
    worker = Worker(prepare(experiment, cpus=1, gpus=0)[0], World(0, 1, torch.device("cpu")), tracker)
    step = worker.optimizer.step
    worker.optimizer.step = lambda: (used.append([g["lr"] for g in worker.optimizer.param_groups]), step())
    worker.run()
    assert [u[0] for u in used] == pytest.approx([0.2e-3, 0.3e-3, 0.4e-3, 0.2e-3, 0.2e-3, 0.2e-3])
    assert all(u[0] == u[1] for u in used), "both groups of parameters"
    assert tracker.rates == {i + 1: u[0] for i, u in enumerate(used)}
