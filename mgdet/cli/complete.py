"""What a shell may complete: names of configurations, files, and keys with their values. Imports nothing heavy."""

import argparse
from pathlib import Path
from typing import Any

from mgdet.config_files import names, summary


def complete_configs(action: argparse.Action, *kinds: str, files: bool = True) -> None:
    """Let an argument complete to the names of these kinds of configurations, and to YAML files and overrides."""

    def complete(prefix: str, **_: Any) -> dict[str, str]:
        known = [name for kind in kinds for name in names(kind)]
        found = {short: summary(name) for name in known for short in (name, name.removeprefix("sweeps/"))}
        return _starting(found, prefix) | (_yaml_files(prefix) if files else {})

    action.completer = complete  # type: ignore[attr-defined]  # argcomplete looks for it


def add_overrides(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the positional arguments `key=value`, which complete to keys and their allowed values."""
    action = parser.add_argument("overrides", nargs="*", metavar="key=value", help=what)
    action.completer = complete_override  # type: ignore[attr-defined]  # argcomplete looks for it


def complete_override(prefix: str, **_: Any) -> dict[str, str]:
    """The keys that begin with `prefix`, or after `=` the values that the key allows, each with its meaning."""
    from mgdet.cli.keys import shipped

    key, equals, _value = prefix.partition("=")
    if not equals:
        return _starting({f"{k.key}=": k.meaning for k in shipped()}, prefix)
    allowed = {f"{key}={v}": meaning for k in shipped() if k.key == key for v, meaning in k.allowed.items()}
    return _starting(allowed, prefix)


def _starting(words: dict[str, str], prefix: str) -> dict[str, str]:
    return {word: meaning for word, meaning in words.items() if word.startswith(prefix)}


def _yaml_files(prefix: str) -> dict[str, str]:
    """YAML files, and directories to look further in, whose path begins with `prefix`."""
    head, _, tail = prefix.rpartition("/")
    directory = Path(f"{head}/") if head or prefix.startswith("/") else Path()
    if not directory.is_dir():
        return {}
    found = {}
    for path in sorted(directory.iterdir()):
        if path.name.startswith(tail) and (not path.name.startswith(".") or tail.startswith(".")):
            name = prefix[: len(prefix) - len(tail)] + path.name
            if path.is_dir():
                found[f"{name}/"] = ""
            elif path.suffix in (".yaml", ".yml"):
                found[name] = ""
    return found
