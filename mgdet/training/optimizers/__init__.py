"""Optimizers: how a gradient becomes a step. Adding one takes its file and its place in the union below."""

from typing import Annotated

from mgdet.config_base import ByName
from mgdet.training.optimizers.adam import Adam, AdamW
from mgdet.training.optimizers.base import Optimizer, ParameterGroups
from mgdet.training.optimizers.sgd import SGD

OptimizerConfig = Annotated[SGD | AdamW | Adam, ByName()]

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "OptimizerConfig", "ParameterGroups"]
