"""Every key of a configuration, as `--keys` prints it, and the generated files that it comes from.

    python -m mgdet.cli.keys                       # write docs/configuration.md and mgdet/cli/keys.json again

`keys.json` is what `mgdet.config_keys` finds in the models of the configuration, kept so that `--keys` and completion
need not import them (torch and others stand behind them, and cost seconds).
"""

import argparse
import difflib
import json
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from mgdet.cli.run import reader_may_leave
from mgdet.errors import ConfigError

SHIPPED = Path(__file__).with_name("keys.json")
PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


class Key(NamedTuple):
    """One key of a configuration."""

    key: str  # dotted: train.optimizer.lr
    type: str  # in words: integer >= 1, or auto
    default: str | None  # as YAML; None: it must be given
    meaning: str
    allowed: dict[str, str]  # the words that it may be, each with its meaning ("": it says enough)
    only: str = ""  # the choices beside which it exists, such as assigner.name=atss; "": always

    def lines(self) -> Iterator[str]:
        """As text for a terminal."""
        yield f"{self.key}" + (" (must be given)" if self.default is None else f" = {self.default}")
        yield from textwrap.wrap(f"{self.type}. {self.meaning}", 116, initial_indent="    ", subsequent_indent="    ")
        for value, meaning in self.allowed.items():
            if meaning:
                indent = " " * 6
                yield from textwrap.wrap(
                    f"{value}: {meaning}", 114, initial_indent=indent, subsequent_indent=indent + "  "
                )

    def row(self) -> str:
        """As a row of a Markdown table."""
        default = "must be given" if self.default is None else f"`{self.default}`"
        choices = "".join(f"<br>`{v}`: {meaning}" for v, meaning in self.allowed.items() if meaning)
        cells = (f"`{self.key}`", self.type, default, self.meaning + choices)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add `--keys [PREFIX]`; it is None where it is not given."""
    action = parser.add_argument(
        *("--keys",),
        nargs="?",
        const="",
        metavar="PREFIX",
        help="print every key (that begins with PREFIX) with type, default, allowed values and meaning, then exit",
    )
    action.completer = _complete_prefix  # type: ignore[attr-defined]  # argcomplete looks for it


def show(prefix: str, keys: Iterable[Key] | None = None) -> int:
    """Print the keys that begin with `prefix`, by default those of an experiment; returns exit status 0.

    Raises:
        ConfigError: there is none; the message names the nearest one.
    """
    keys = list(shipped() if keys is None else keys)
    found = [k for k in keys if k.key.startswith(prefix)]
    if not found:
        near = difflib.get_close_matches(prefix, dict.fromkeys(k.key for k in keys), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        top = ", ".join(dict.fromkeys(k.key.partition(".")[0] for k in keys))
        raise ConfigError(f"--keys {prefix}: no key begins so.{hint} At the top there are {top}.")
    with reader_may_leave():
        for only, group in groupby(found, key=lambda k: k.only):
            print(f"\nwith {only}:\n" if only else "")
            for key in group:
                print("\n".join(("  " if only else "") + line for line in key.lines()))
    return 0


@cache
def shipped(root: str = "experiment") -> tuple[Key, ...]:
    """The keys of an `experiment` or of a `sweep`, without those that plugins add."""
    return tuple(Key(**key) for key in json.loads(SHIPPED.read_text())[root])


def current() -> dict[str, list[Key]]:
    """The same, read from the models themselves; imports them."""
    from mgdet.config import Experiment
    from mgdet.config_keys import keys_of
    from mgdet.sweep.config import Sweep

    return {"experiment": list(keys_of(Experiment)), "sweep": list(keys_of(Sweep))}


def as_json(keys: dict[str, list[Key]]) -> str:
    """The content of `keys.json`."""
    return json.dumps({root: [k._asdict() for k in found] for root, found in keys.items()}, indent=1) + "\n"


def as_page(keys: dict[str, list[Key]]) -> str:
    """The content of `docs/configuration.md`."""
    lines = [
        "# Configuration\n",
        "Every key, as `mgdet --keys` prints it. This page is made by `python -m mgdet.cli.keys`; the meanings stand",
        "beside the code that reads the keys.\n",
        "A file is YAML, with the dots as levels (`train: {epochs: 24}`); on the command line a key is set as",
        "`train.epochs=24`. What is left out has its default. `auto` becomes a number at the start, and the log says",
        "which and why. `base: other.yaml` starts from another file, relative to this one, or from a configuration",
        "that comes with mgdet. A key that stands under *With* exists beside that choice only.\n",
    ]
    sections = groupby(keys["experiment"], key=lambda k: k.key.partition(".")[0])
    lines += ["## The experiment\n"]
    pending: list[Key] = []
    for name, group in sections:
        found = list(group)
        if len(found) == 1 and found[0].key == name:
            pending.append(found[0])
            continue
        if pending:
            lines += _tables(pending)
            pending = []
        lines += [f"## {name}\n", *_tables(found)]
    lines += ["## The sweep\n", "The keys of a file for `mgdet tune`, beside which it may set any key above.\n"]
    return "\n".join([*lines, *_tables(pending), *_tables(keys["sweep"])]).rstrip() + "\n"


def _tables(keys: Iterable[Key]) -> Iterator[str]:
    for i, (only, group) in enumerate(groupby(keys, key=lambda k: k.only)):
        if only or i:
            yield f"With `{only}`:\n" if only else "In every case:\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        yield from (key.row() for key in group)
        yield ""


def _complete_prefix(prefix: str, **_: object) -> list[str]:
    return [key for key in dict.fromkeys(k.key for k in shipped()) if key.startswith(prefix)]


def main() -> None:
    """Write both generated files again."""
    keys = current()
    SHIPPED.write_text(as_json(keys))
    PAGE.write_text(as_page(keys))


if __name__ == "__main__":
    main()
