"""List the configurations that come with mgdet, or print one of them.

    %(prog)s                                # every name, with a line each
    %(prog)s quickstart > my.yaml           # a file to start from
    %(prog)s --keys assigner                # every key below assigner: type, default, allowed values, meaning

`mgdet train NAME` and `mgdet tune NAME` take these names; `base: NAME` in a file of your own starts from one.
"""

import argparse
import sys

from mgdet.cli import keys
from mgdet.cli.complete import complete_configs
from mgdet.cli.run import Command, reader_may_leave
from mgdet.config_files import EXPERIMENTS, PAPERS, SWEEPS, find, names, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    name = parser.add_argument("name", nargs="?", help="print this one instead of the list")
    complete_configs(name, EXPERIMENTS, PAPERS, SWEEPS, files=False)
    keys.add_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the list, one file, or the keys."""
    if args.keys is not None:
        return keys.show(args.keys)
    if args.name:
        sys.stdout.write(find(args.name, EXPERIMENTS, PAPERS, SWEEPS).read_text())
        return 0
    with reader_may_leave():
        print_list()
    return 0


def print_list() -> None:
    """Print the name and a line of each configuration."""
    kinds = {
        "mgdet train NAME": EXPERIMENTS,
        "mgdet train NAME, published rows (mgdet papers)": PAPERS,
        "mgdet tune NAME": SWEEPS,
    }
    for title, kind in kinds.items():
        found = names(kind)
        print(f"{title}\n")
        width = max(len(name) for name in found)
        for name in found:
            print(f"  {name:<{width}}  {summary(name)}")
        print()


COMMAND = Command("configs", __doc__, add_arguments, run, "nothing was written")
