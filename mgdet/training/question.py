"""When the workers of a training ask each other whether to stop, or to save."""

import time

import torch

from mgdet.training.distributed import World

MOST_STEPS = 10
"""Optimizer steps between two questions, at most, each of which costs two small collectives."""
SECONDS = 2.0
"""Fewer steps where they would take longer: a machine that goes away gives some seconds of notice."""


class Question:
    """Which step is the next after which all workers ask: the same one on all of them.

    Args:
        world: the workers.
        step: the one at which they begin.
    """

    def __init__(self, world: World, step: int) -> None:
        self._world, self._next = world, 0
        self._step, self._at = step, time.perf_counter()

    def due(self, step: int) -> bool:
        """Whether to ask after this step."""
        return step >= self._next

    def agree(self, step: int, most: int, save: bool = False, answers: bool = False) -> tuple[bool, bool]:
        """Agree on the next step, from how long one takes: `most` of them later at the latest. A collective.

        Returns whether any worker wishes to `save` now, and whether any has `answers`, the same on all of them.
        """
        now = time.perf_counter()
        wishes = [(now - self._at) / max(1, step - self._step), float(save), float(answers)]
        pace, saves, answered = self._world.mean(torch.tensor(wishes, device=self._world.device)).tolist()
        self._next = step + max(1, min(MOST_STEPS, most, int(SECONDS / max(pace, 1e-6))))
        self._step, self._at = step, now
        return bool(saves), bool(answered)
