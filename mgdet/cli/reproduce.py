"""Train a finished run again and compare its metrics, bit for bit.

    %(prog)s runs/quickstart                    # trains runs/quickstart-reproduced, where what made it is here
    %(prog)s runs/quickstart --compare-only     # only compares what made it with what is here
    %(prog)s s3://bucket/runs/x --storage runs --data data/mine

Compared are: version and commit of mgdet and whether the checkout was changed, versions of Python and of the libraries,
hardware and threads, every key that decides the weights, the content of the data set, and the command. A row is marked
DECIDES where another result has to be expected; then nothing is trained, unless with --anyway. The run itself is never
changed, and nothing is fetched or installed.
Exit status 0: all metrics are equal (--compare-only: nothing that decides differs); 1: they are not, with the first
step and metric (--compare-only: something that decides differs); 2: something you can mend; 130: Ctrl-C; 143: SIGTERM.
"""

import argparse
import sys

from mgdet.cli.run import Command, add_plugins


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the directory of a run that has come to its end: path or URI")
    parser.add_argument("--compare-only", action="store_true", help="train nothing")
    parser.add_argument("--anyway", action="store_true", help="train in spite of differences that decide")
    parser.add_argument("--name", help="of the run that is trained (default: that of the run and -reproduced)")
    parser.add_argument("--storage", metavar="URI", help="where it is kept (default: where the run is)")
    parser.add_argument("--data", metavar="URI", help="where the run's data set is now (default: where it was)")
    add_plugins(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table of what was compared, train, and print what came out."""
    from mgdet.errors import ConfigError
    from mgdet.runs.compare import table
    from mgdet.runs.reproduce import compare_with_here, decisive, read_original, reproduce, reproduction

    original = read_original(args.run, args.data, args.plugin)
    rows = compare_with_here(original)
    print(table(rows))
    differing = decisive(rows)
    if args.compare_only:
        print(f"differs and decides: {', '.join(differing) or 'nothing'}")
        return 1 if differing else 0
    if differing and not args.anyway:
        raise ConfigError(
            f"another result has to be expected, because these differ: {', '.join(differing)}. Nothing was trained. "
            "Bring them to what the run had, or train all the same with --anyway"
        )
    again = reproduction(original, args.name, args.storage)
    from mgdet.cluster.train import run as train

    found = reproduce(original, again, train)
    print(f"\n{'-' * 60}\n{'reproduced in':<22} {again.run_uri}\n{'values compared':<22} {found.values}")
    print(f"{'different':<22} {found.different}")
    if found.first:
        print(f"error: the metrics are not equal. The first difference, {found.first}", file=sys.stderr)
        return 1
    print("all metrics are equal, bit for bit")
    return 0


COMMAND = Command("reproduce", __doc__, add_arguments, run, "the same command continues the reproduction")
