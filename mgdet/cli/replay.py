"""Find out why a step was not finite: run its captured batch through its captured weights again.

    %(prog)s runs/x/nonfinite/step-00001234-rank-0.pt

Prints which image, which term of the loss and which layer are not finite first.
Exit status 0: the capture was read; 2: it could not be.
"""

import argparse

from mgdet.cli.run import Command, add_plugins


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("capture", help="a file that the training wrote when it stopped: runs/<name>/nonfinite/*.pt")
    add_plugins(parser)


def run(args: argparse.Namespace) -> int:
    """Print one line for the weights and one for each image."""
    from mgdet.runs.replay import replay

    for line in replay(args.capture, args.plugin):
        print(line)
    return 0


COMMAND = Command("replay", __doc__, add_arguments, run, "nothing was written")
