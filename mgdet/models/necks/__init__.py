"""Necks: from a backbone's maps to a pyramid. Adding one takes its file and its place in the union below."""

from typing import Annotated

from mgdet.config_base import ByName
from mgdet.models.necks.base import Neck
from mgdet.models.necks.fpn import FPN
from mgdet.models.necks.fssd import FSSD
from mgdet.models.necks.pafpn import PAFPN

NeckConfig = Annotated[FPN | FSSD | PAFPN, ByName()]

__all__ = ["FPN", "FSSD", "PAFPN", "Neck", "NeckConfig"]
