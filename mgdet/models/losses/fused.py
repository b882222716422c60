"""Class losses without a matrix of targets: all but one of a prior's targets are 0, and the derivative is written out.

The formula as PyTorch differentiates it keeps some ten matrices `[B, A, C]` until the backward pass. Here only the
logits are kept, and on a CPU both passes go over a few thousand of them at a time, so that intermediate values stay in
the cache. Each element is computed by the same operations in the same order: on one thread losses and gradients are
equal to the bit. Only where the last elements of a tensor fill no vector register do PyTorch's sigmoid and power round
otherwise, and with several threads or broken exponents these are not always the same elements.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

PIECE = 2**15
"""Logits that one thread works on at a time."""
REGISTERS = 64
"""Pieces are multiples of so many logits: in none but the last do elements fill no vector register."""


class Elementwise(Protocol):
    """A loss of a score p = sigmoid(x) and its cross-entropy against a target y in [0, 1], element by element.

    All tensors of a call have the same shape. y None stands for 0 everywhere.
    """

    def value(self, entropy: Tensor, p: Tensor, y: Tensor | None) -> Tensor:
        """The loss."""

    def slopes(self, gradient: Tensor, entropy: Tensor, p: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """The derivatives of the loss by `entropy` and by `p`, both times `gradient`."""


def fused(loss: Elementwise, logits: Tensor, column: Tensor, y: Tensor) -> Tensor:
    """The loss of each prior, summed over its classes, `[B, A]`; it can be differentiated once, by the logits.

    Args:
        loss: of one element.
        logits: `[B, A, C]`, float32 or float64.
        column: the class `[B, A]` int64 whose target is `y`.
        y: that target `[B, A]`; the targets of all other classes are 0.
    """
    classes, flat = logits.shape[2], y.reshape(-1).to(logits.dtype)
    place = column.reshape(-1) + torch.arange(len(flat), device=flat.device) * classes
    if _on_host(flat):  # elsewhere the host would have to wait to learn which these are
        chosen = torch.from_numpy(np.flatnonzero(flat.numpy()))
        place, flat = place[chosen], flat[chosen]
    value: Tensor = _Fused.apply(logits.reshape(-1, classes), place, flat, loss)
    return value.view(y.shape)


class _Logits(NamedTuple):
    """What both passes need of some logits x, `[n]`."""

    x: Tensor
    p: Tensor  # sigmoid(x)
    log: Tensor  # log sigmoid(x)

    @classmethod
    def of(cls, x: Tensor) -> "_Logits":
        return cls(x, x.sigmoid(), logsigmoid(x))

    def at(self, place: Tensor) -> "_Logits":
        """Those at some places."""
        return _Logits(*(values.index_select(0, place) for values in self))

    def value(self, loss: Elementwise, y: Tensor | None) -> Tensor:
        return loss.value(self._entropy(y), self.p, y)

    def gradient(self, loss: Elementwise, y: Tensor | None, gradient: Tensor) -> Tensor:
        """The derivative of the loss by x, times `gradient`."""
        by_entropy, by_p = loss.slopes(gradient, self._entropy(y), self.p, y)
        direct = by_entropy.mul_(self.p if y is None else self.p - y)
        return by_p.mul_(1 - self.p).mul_(self.p).add_(direct)

    def _entropy(self, y: Tensor | None) -> Tensor:
        """-(y log p + (1 - y) log(1 - p))."""
        return (self.x if y is None else (1 - y) * self.x) - self.log


class _Fused(torch.autograd.Function):
    """Sums over the classes `[N]` of the loss of logits `[N, C]`; targets are `y` `[P]` at `place` `[P]`, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor, y: Tensor, loss: Elementwise) -> Tensor:
        ctx.save_for_backward(x, place, y)
        ctx.loss = loss
        out = x.new_empty(len(x))
        for rows, some in _pieces(x, place):
            logits, own = _Logits.of(x[rows].flatten()), place[some] - rows.start * x.shape[1]
            value = logits.value(loss, None)
            value.scatter_(0, own, logits.at(own).value(loss, y[some]))
            torch.sum(value.view(-1, x.shape[1]), 1, out=out[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,), (x, place, y) = gradients, ctx.saved_tensors
        out = torch.empty_like(x)
        for rows, some in _pieces(x, place):
            logits, own = _Logits.of(x[rows].flatten()), place[some] - rows.start * x.shape[1]
            each = gradient[rows, None].expand(-1, x.shape[1]).flatten()
            value = logits.gradient(ctx.loss, None, each)
            value.scatter_(0, own, logits.at(own).gradient(ctx.loss, y[some], each[own]))
            out[rows] = value.view(-1, x.shape[1])
        return out, None, None, None


def _on_host(values: Tensor) -> bool:
    return values.device.type == "cpu"


def _pieces(x: Tensor, place: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows of `[N, C]`, some at a time on a CPU, and which of the ascending places lie in them."""
    if not _on_host(x):
        yield slice(0, len(x)), slice(0, len(place))
        return
    size = max(1, PIECE * torch.get_num_threads() // (x.shape[1] * REGISTERS)) * REGISTERS
    starts = torch.arange(0, len(x), size)
    edges = [*torch.searchsorted(place, starts * x.shape[1]).tolist(), len(place)]
    for start, first, last in zip(starts.tolist(), edges, edges[1:], strict=False):
        yield slice(start, start + size), slice(first, last)
