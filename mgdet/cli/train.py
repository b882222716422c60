"""Train a detector, or continue a training.

    %(prog)s                                              # quickstart
    %(prog)s bccd_fcos_atss data.uri=data/mine            # a configuration that comes with mgdet
    %(prog)s my.yaml train.epochs=24 assigner.sigma=3
    %(prog)s my.yaml --dry-run                            # one batch through everything, then exit
    torchrun --nproc-per-node 2 -m mgdet train my.yaml    # without Ray, on these processes

The same storage and name continue an existing run from its last checkpoint.
Exit status 0: trained to the end; 2: something you can mend; 130: Ctrl-C; 143: SIGTERM.
"""

import argparse

from mgdet.cli import keys
from mgdet.cli.complete import add_overrides, complete_configs
from mgdet.cli.run import Command
from mgdet.config_files import EXPERIMENTS, PAPERS, is_override

QUICKSTART = "quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config = parser.add_argument(
        "config", nargs="?", help="YAML file, or the name of a configuration that comes with mgdet; default: quickstart"
    )
    complete_configs(config, EXPERIMENTS, PAPERS)
    add_overrides(parser, "override any key, such as train.epochs=24")
    parser.add_argument("--dry-run", action="store_true", help="build everything, run one batch, report, exit")
    keys.add_option(parser)


def run(args: argparse.Namespace) -> int:
    """Train to the end and print a table."""
    config, overrides = args.config or QUICKSTART, args.overrides
    if is_override(config):  # only overrides were given
        config, overrides = QUICKSTART, [config, *overrides]
    if args.keys is not None:
        return keys.show(args.keys)
    from mgdet.config import load
    from mgdet.host import speaks

    experiment = load(config, overrides)
    if args.dry_run:
        from mgdet.runs.dry_run import dry_run

        print(dry_run(experiment))
        return 0
    from mgdet.cluster.train import run as train
    from mgdet.evaluation.evaluator import headlines
    from mgdet.text import metric_text

    summary, handle = train(experiment)
    if not speaks():
        return 0
    print(f"\n{'-' * 60}")
    for key in headlines(summary.metrics):
        print(f"{key:<22} {metric_text(summary.metrics[key])}")
    print(f"{'AP by the rule of':<22} {experiment.evaluation.protocol}")
    print(f"{'best epoch':<22} {summary.epoch}")
    print(f"{'best checkpoint':<22} {summary.checkpoint}")
    if handle:
        for what, how in handle.see:
            print(f"{what:<22} {how}")
    return 0


COMMAND = Command("train", __doc__, add_arguments, run, "the same command continues from the last checkpoint")
