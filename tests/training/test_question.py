"""When the workers of a training ask each other whether to stop."""

import itertools

import pytest
import torch

from mgdet.training import question
from mgdet.training.distributed import World
from mgdet.training.question import Question


@pytest.mark.parametrize(
    ("seconds", "most", "pause"),
    [(0.01, 50, 10), (0.01, 4, 4), (0.5, 50, 4), (1.9, 50, 1), (30.0, 50, 1), (0.0, 1, 1)],
)
def test_it_is_asked_within_two_seconds_and_ten_steps(monkeypatch, seconds, most, pause):
    now = [100.0]
    monkeypatch.setattr(question.time, "perf_counter", lambda: now[0])
    asked, wanted = [], Question(World(0, 1, torch.device("cpu")), step=7)
    for step in range(8, 40):
        now[0] += seconds
        if wanted.due(step):
            asked.append(step)
            wanted.agree(step, most)
    assert asked[0] == 8, "the first question comes after the first step"
    assert {b - a for a, b in itertools.pairwise(asked)} == {pause}
