"""Search hyperparameters with Ray Tune, or continue a search.

    python jobs/tune.py configs/sweeps/quick.yaml                       # ten minutes on two cores
    python jobs/tune.py configs/sweeps/x.yaml trials=40 train.epochs=6  # keys of the sweep, or of its experiment
    python jobs/tune.py configs/sweeps/x.yaml --check                   # validate the whole space, then exit

The same storage and name continue an existing sweep: trials that are done are not run again, others go on from their
last checkpoint. A larger `trials` adds some.
"""

import argparse
import sys

from mgdet.cli.run import arguments, run_cli
from mgdet.sweep.config import load_sweep


def main() -> int:
    """Exit status 0: searched to the end; 1: no trial has a value; 2: something the user can mend; 130: interrupted;
    143: SIGTERM while it waited for nodes."""
    parser = arguments(__doc__)
    parser.add_argument("sweep", help="YAML file, such as configs/sweeps/quick.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the sweep or of its experiment")
    parser.add_argument("--retry-failed", action="store_true", help="run trials that failed in an earlier start again")
    parser.add_argument("--check", action="store_true", help="validate the file and the whole search space, then exit")
    args = parser.parse_intermixed_args()
    return run_cli(lambda: search(args), "the same command continues the sweep")


def search(args: argparse.Namespace) -> int:
    sweep = load_sweep(args.sweep, args.overrides)
    if args.check:
        print(f"{args.sweep}: {sweep.total} trials over {', '.join(sweep.space)}; every one would be valid")
        return 0
    from mgdet.cluster.tune import run_sweep

    outcome = run_sweep(sweep, retry_failed=args.retry_failed)
    print(f"\n{'-' * 60}\n{outcome.table}")
    if outcome.handle:
        print(f"{'see it in MLflow':<22} {outcome.handle.ui_command}")
    if outcome.winner is None:
        print("error: no trial came to a value; the reasons are above", file=sys.stderr)
        return 1
    print(f"{'train the winner':<22} python jobs/train.py {outcome.winner_config}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
