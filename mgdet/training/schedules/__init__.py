"""Schedules: the learning rate of each step. Adding one takes its file and its place in the union below."""

from typing import Annotated

from mgdet.config_base import ByName
from mgdet.training.schedules.base import Schedule, Span
from mgdet.training.schedules.constant import Constant
from mgdet.training.schedules.cosine import Cosine
from mgdet.training.schedules.multistep import MultiStep

ScheduleConfig = Annotated[MultiStep | Cosine | Constant, ByName()]

__all__ = ["Constant", "Cosine", "MultiStep", "Schedule", "ScheduleConfig", "Span"]
