"""Search hyperparameters with Ray Tune, or continue a search.

    %(prog)s quick                                  # a sweep that comes with mgdet: ten minutes on two cores
    %(prog)s my-sweep.yaml trials=40 train.epochs=6 # keys of the sweep, or of its experiment
    %(prog)s my-sweep.yaml --check                  # validate the whole space, then exit

The same storage and name continue an existing sweep: trials that are done are not run again, others go on from their
last checkpoint. A larger `trials` adds some.
Exit status 0: searched to the end; 1: no trial has a value; 2: something you can mend; 130: Ctrl-C; 143: SIGTERM.
"""

import argparse
import sys

from mgdet.cli.complete import add_overrides, complete_configs
from mgdet.cli.run import Command
from mgdet.config_files import SWEEPS
from mgdet.host import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sweep = parser.add_argument("sweep", help="YAML file, or the name of a sweep that comes with mgdet, such as quick")
    complete_configs(sweep, SWEEPS)
    add_overrides(parser, "any key of the sweep or of its experiment")
    parser.add_argument("--retry-failed", action="store_true", help="run trials that failed in an earlier start again")
    parser.add_argument("--check", action="store_true", help="validate the file and the whole search space, then exit")


def run(args: argparse.Namespace) -> int:
    """Search, print the table of trials and how to train the winner."""
    from mgdet.sweep.config import load_sweep

    sweep = load_sweep(args.sweep, args.overrides)
    if args.check:
        print(f"{args.sweep}: {sweep.total} trials over {', '.join(sweep.space)}; every one would be valid")
        return 0
    from mgdet.cluster.tune import run_sweep

    outcome = run_sweep(sweep, retry_failed=args.retry_failed)
    print(f"\n{'-' * 60}\n{outcome.table}")
    if outcome.handle:
        for what, how in outcome.handle.see:
            print(f"{what:<22} {how}")
    if outcome.winner is None:
        print("error: no trial came to a value; the reasons are above", file=sys.stderr)
        return 1
    print(f"{'train the winner':<22} {command('train')} {outcome.winner_config}")
    return 0


COMMAND = Command("tune", __doc__, add_arguments, run, "the same command continues the sweep")
