"""What a shell may complete: names of configurations, files, and keys with their values. Imports nothing heavy."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mgdet.config_files import names


def complete_configs(action: argparse.Action, *kinds: str, files: bool = True) -> None:
    """Let an argument complete to the names of these kinds of configurations, and to YAML files and overrides."""

    def complete(prefix: str, **_: Any) -> list[str]:
        known = [name for kind in kinds for name in names(kind)]
        found = [*known, *(name.removeprefix("sweeps/") for name in known)]
        return [*_starting(found, prefix), *(_yaml_files(prefix) if files else ())]

    action.completer = complete  # type: ignore[attr-defined]  # argcomplete looks for it


def add_overrides(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the positional arguments `key=value`, which complete to keys and their allowed values."""
    action = parser.add_argument("overrides", nargs="*", metavar="key=value", help=what)
    action.completer = complete_override  # type: ignore[attr-defined]  # argcomplete looks for it


def complete_override(prefix: str, **_: Any) -> list[str]:
    """The keys that begin with `prefix`; after `=` the values that the key allows."""
    from mgdet.cli.keys import shipped

    key, equals, _value = prefix.partition("=")
    if not equals:
        return _starting(dict.fromkeys(f"{k.key}=" for k in shipped()), prefix)
    allowed = dict.fromkeys(value for k in shipped() if k.key == key for value in k.allowed)
    return _starting((f"{key}={value}" for value in allowed), prefix)


def _starting(words: Iterable[str], prefix: str) -> list[str]:
    return [word for word in words if word.startswith(prefix)]


def _yaml_files(prefix: str) -> list[str]:
    """YAML files, and directories to look further in, whose path begins with `prefix`."""
    head, _, tail = prefix.rpartition("/")
    directory = Path(f"{head}/") if head or prefix.startswith("/") else Path()
    if not directory.is_dir():
        return []
    found = []
    for path in sorted(directory.iterdir()):
        if path.name.startswith(tail) and (not path.name.startswith(".") or tail.startswith(".")):
            name = prefix[: len(prefix) - len(tail)] + path.name
            if path.is_dir():
                found.append(f"{name}/")
            elif path.suffix in (".yaml", ".yml"):
                found.append(name)
    return found
