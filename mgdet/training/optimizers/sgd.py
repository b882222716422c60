"""Stochastic gradient descent."""

from typing import Literal

from pydantic import Field
from torch import optim

from mgdet.training.optimizers.base import Optimizer, ParameterGroups


class SGD(Optimizer):
    """SGD with momentum; the usual choice for COCO (0.01 for a batch of 16)."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.01, gt=0, le=1e30, description="learning rate for this global batch size")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="share of the last step that goes on")
    weight_decay: float = Field(default=1e-4, ge=0, le=1e6, description="factor of the weights in their gradient")
    decay_norm_and_bias: bool = Field(default=True, description="false: no weight decay on biases and norm layers")

    def __call__(self, groups: ParameterGroups) -> optim.Optimizer:
        """See `Optimizer`."""
        return optim.SGD(groups, lr=self.lr, momentum=self.momentum, fused=True)
