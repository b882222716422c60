"""Assigners: who is positive for which task. Adding one takes its file and its place in the union below."""

from typing import Annotated

from pydantic import Field

from mgdet.assign.base import Assigner
from mgdet.assign.max_iou import MaxIoU
from mgdet.assign.mutual_guidance import MutualGuidance

AssignerConfig = Annotated[MaxIoU | MutualGuidance, Field(discriminator="name")]

__all__ = ["Assigner", "AssignerConfig", "MaxIoU", "MutualGuidance"]
