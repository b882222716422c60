"""Optimizers: how a gradient becomes a step. Adding one takes its file and its place in the union below."""

from typing import Annotated

from pydantic import Field

from mgdet.training.optimizers.adam import Adam, AdamW
from mgdet.training.optimizers.base import Optimizer, ParameterGroups
from mgdet.training.optimizers.sgd import SGD

OptimizerConfig = Annotated[SGD | AdamW | Adam, Field(discriminator="name")]

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "OptimizerConfig", "ParameterGroups"]
