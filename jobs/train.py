"""Train a detector, or continue a training.

    python jobs/train.py                                            # configs/quickstart.yaml
    python jobs/train.py configs/x.yaml train.epochs=24 assigner.sigma=3
    python jobs/train.py configs/x.yaml --dry-run                   # one batch through everything, then exit

The same storage and name continue an existing run from its last checkpoint.
"""

import argparse
import sys
from pathlib import Path

from mgdet.cli.run import arguments, run_cli
from mgdet.config import load
from mgdet.inference.evaluate import HEADLINE

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"


def main() -> int:
    """Exit status 0: trained to the end; 2: something the user can mend; 130: Ctrl-C; 143: SIGTERM."""
    parser = arguments(__doc__)
    parser.add_argument("config", nargs="?", help="YAML file; default: configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override any key, such as train.epochs=24")
    parser.add_argument("--dry-run", action="store_true", help="build everything, run one batch, report, exit")
    args = parser.parse_intermixed_args()
    return run_cli(lambda: train(args), "the same command continues from the last checkpoint")


def train(args: argparse.Namespace) -> int:
    config, overrides = args.config or str(QUICKSTART), args.overrides
    if "=" in config and not Path(config).exists():  # only overrides were given
        config, overrides = str(QUICKSTART), [config, *overrides]
    experiment = load(config, overrides)
    if args.dry_run:
        from mgdet.runs.dry_run import dry_run

        print(dry_run(experiment))
        return 0
    from mgdet.cluster.train import run

    summary, handle = run(experiment)
    print(f"\n{'-' * 60}")
    for key in HEADLINE:
        if key in summary.metrics:
            print(f"{key:<22} {summary.metrics[key]:.4f}")
    print(f"{'best epoch':<22} {summary.epoch}")
    print(f"{'best checkpoint':<22} {summary.checkpoint}")
    if handle:
        print(f"{'see it in MLflow':<22} {handle.ui_command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
