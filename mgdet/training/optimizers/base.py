"""What every optimizer is: a frozen set of hyperparameters that can be called for one of torch's optimizers."""

from abc import abstractmethod
from typing import Any, TypeAlias

from pydantic import Field
from torch import optim

from mgdet.config_base import Config

ParameterGroups: TypeAlias = list[dict[str, Any]]
"""As torch's optimizers take them: each with `params` and a `weight_decay` of its own."""


class Optimizer(Config):
    """How a gradient becomes a step. Subclasses have a `name`, defaults for these keys, and keys of their own."""

    name: str
    lr: float = Field(gt=0, le=1e30, description="learning rate for this global batch size")
    weight_decay: float = Field(ge=0, le=1e6)
    decay_norm_and_bias: bool = Field(description="false: no weight decay on biases and norm layers")

    @abstractmethod
    def __call__(self, groups: ParameterGroups) -> optim.Optimizer:
        """torch's optimizer of these parameters."""
