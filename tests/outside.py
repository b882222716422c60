"""Components from outside the package: one to load, and a fixture after which none is loaded."""

import sys

import pytest

from mgdet import plugins
from mgdet.cli import prepare
from mgdet.config_base import ByField, ByName
from mgdet.data import formats
from mgdet.evaluation import evaluator

BEST_K = """
from typing import Literal

from pydantic import Field

from mgdet.assign.atss import ATSS
from mgdet.config_base import Config


class BestK(ATSS):
    name: Literal["best_few"] = "best_few"
    k: int = Field(default=9, ge=1)
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Path, modules, unions, loss terms, metrics and formats are afterwards what they were."""
    monkeypatch.setattr(evaluator, "METRICS", list(evaluator.METRICS))
    monkeypatch.setattr(formats, "FORMATS", list(formats.FORMATS))
    monkeypatch.setattr(prepare, "FORMATS", formats.FORMATS)
    members = {union: union.members for union in ByName.unions}
    modules, path = set(sys.modules), list(sys.path)
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(plugins, "_brought", {})
    yield
    for union, before in members.items():
        union.set_members(before)
    for node in ByField.nodes:
        node.set_added(())
    sys.path[:] = path
    for name in [n for n in sys.modules if n.startswith(("outside", "my_"))]:
        if name not in modules:
            del sys.modules[name]
