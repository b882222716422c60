"""Random inputs of the losses."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgdet.boxes import decode_deltas
from mgdet.models.coder import AnchorCoder
from mgdet.models.losses import LossConfig, Losses
from mgdet.structures import Assignment, Labels, Predictions, Priors, Targets

CODER = AnchorCoder((10.0, 10.0, 5.0, 5.0))
LEAVES = ("logits", "deltas", "quality")
EMPTY = {
    "no columns": lambda n: Targets(torch.zeros(n, 0, 4), torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0) > 0),
    "only padding": lambda n: Targets(
        torch.zeros(n, 2, 4), torch.zeros(n, 2, dtype=torch.int64), torch.zeros(n, 2) > 0
    ),
}
"""Targets without an object, for a number of images."""


def identity(value: Tensor) -> Tensor:
    return value


class Problem(NamedTuple):
    """Inputs of the losses; `logits`, `deltas` and `quality` are leaves that require gradients."""

    priors: Priors
    logits: Tensor
    deltas: Tensor
    quality: Tensor
    targets: Targets
    assignment: Assignment

    @property
    def tasks(self) -> tuple[Labels, Labels]:
        """The labels of classification and of localization."""
        return self.assignment.cls, self.assignment.loc

    @property
    def predictions(self) -> Predictions:
        boxes = decode_deltas(self.deltas, self.priors.boxes, CODER.weights)
        return Predictions(self.priors, self.logits, self.deltas, boxes, self.quality)

    def losses(self, config: LossConfig, mean=identity, quality="none") -> Losses:
        return config(self.predictions, self.targets, self.assignment, CODER, mean, quality=quality)

    def gradients(self, value: Tensor) -> list[Tensor]:
        """With respect to logits, deltas and quality; zeros where `value` does not depend on them."""
        return list(torch.autograd.grad(value, self[1:4], materialize_grads=True))

    def with_leaves(self, logits: Tensor, deltas: Tensor, quality: Tensor) -> "Problem":
        """Other values of what requires gradients."""
        leaves = [t.detach().clone().requires_grad_() for t in (logits, deltas, quality)]
        return self._replace(**dict(zip(LEAVES, leaves, strict=True)))

    def part(self, rows: slice | Tensor) -> "Problem":
        """Some images of it, with leaves of their own."""
        chosen = self._replace(
            targets=self.targets[rows],
            assignment=self.assignment[rows],
        )
        return chosen.with_leaves(self.logits[rows], self.deltas[rows], self.quality[rows])

    def labelled(self, **tasks: Labels) -> "Problem":
        """With other labels of `cls`, `loc` or both."""
        return self._replace(assignment=self.assignment.replace(**tasks))

    def without_positives(self, owner: int = -1) -> "Problem":
        """All samples background, or all ignored."""
        shape = self.assignment.cls.gt_index.shape
        labels = Labels(torch.full(shape, owner), torch.zeros(shape))
        return self.labelled(cls=labels, loc=labels)


def random_boxes(generator: Any, *shape: int) -> Tensor:
    corner = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 40
    return torch.cat([corner, corner + 5 + torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 30], -1)


def random_problem(
    seed: int = 0, images: int = 3, samples: int = 7, objects: int = 3, classes: int = 4, hard: bool = False
) -> Problem:
    """float64. The last image holds one object less; every kind of sample stands in both tasks, at other places.

    Weights are random unless `hard`.
    """
    g = torch.Generator().manual_seed(seed)
    count = torch.full((images,), objects)
    count[-1] -= 1
    valid = torch.arange(objects) < count[:, None]

    def labels() -> Labels:
        owner = torch.stack([torch.randint(-2, int(n), (samples,), generator=g) for n in count])
        weight = torch.rand(images, samples, generator=g)
        return Labels(owner, torch.where(owner >= 0, torch.ones_like(weight) if hard else weight, 0.0))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    assignment = Assignment(labels(), labels())
    return Problem(
        Priors(random_boxes(g, samples), torch.ones(samples), (samples,)),
        normal(images, samples, classes),
        normal(images, samples, 4),
        normal(images, samples),
        Targets(random_boxes(g, images, objects), torch.randint(0, classes, (images, objects), generator=g), valid),
        assignment,
    )


def assert_two_workers_are_one(problem: Problem, config: LossConfig, cut: int, quality: str = "none") -> list[Tensor]:
    """The gradient averaged over workers with images `[:cut]` and `[cut:]` is that of the whole; returns their sums."""
    whole = problem.losses(config, quality=quality)
    workers = [problem.part(slice(None, cut)), problem.part(slice(cut, None))]
    sums: list[Tensor] = []
    for worker in workers:
        worker.losses(config, lambda own: sums.append(own) or own, quality)
    assert len(sums) == 2, "one collective for each worker"
    assert float(sum(sums).sum()) > 0
    results = [worker.losses(config, lambda own: (sums[0] + sums[1]) / 2, quality) for worker in workers]
    single = {"rtol": 1e-5, "atol": 1e-9}  # the sums of the assigned weights are taken in float32
    torch.testing.assert_close((results[0].total + results[1].total) / 2, whole.total, **single)
    gradients = [worker.gradients(result.total) for worker, result in zip(workers, results, strict=True)]
    for mine, *parts in zip(problem.gradients(whole.total), *gradients, strict=True):
        torch.testing.assert_close(torch.cat(parts) / 2, mine, **single)
    return sums
