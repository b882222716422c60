"""The command `mgdet`, and the scripts of `jobs/`, each of which is one of its sub-commands."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from mgdet import __version__
from mgdet.cli import (
    compare,
    configs,
    doctor,
    evaluate,
    export,
    export_data,
    keys,
    papers,
    predict,
    prepare,
    replay,
    reproduce,
    status,
    train,
    tune,
    visualize,
)
from mgdet.cli.run import Command, Parser, common_options, run_cli
from mgdet.errors import ConfigError
from mgdet.host import torchrun_rank

COMMANDS = {
    c.name: c
    for c in (
        *(train.COMMAND, tune.COMMAND, prepare.COMMAND, evaluate.COMMAND, predict.COMMAND, replay.COMMAND),
        *(reproduce.COMMAND, visualize.COMMAND, export.COMMAND, export_data.COMMAND, doctor.COMMAND, configs.COMMAND),
        *(status.COMMAND, compare.COMMAND, papers.COMMAND),
    )
}
DESCRIPTION = """Train dense object detectors whose two tasks choose each other's training samples.

    mgdet train                                  # the quickstart: generated images, about six minutes on two cores
    mgdet train my.yaml assigner.sigma=3         # your configuration, and a key that differs from it
    mgdet evaluate runs/quickstart
    mgdet --keys assigner                        # what can be set below assigner

Completion in your shell: eval "$(mgdet --completion bash)", likewise zsh; fish: mgdet --completion fish | source
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `mgdet ARGUMENTS` (by default those of the process); returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions
        import argcomplete

        argcomplete.autocomplete(whole_parser())
    if arguments and arguments[0] in COMMANDS:
        return run_command(COMMANDS[arguments[0]], arguments[1:], f"mgdet {arguments[0]}")
    parser = whole_parser()
    args = parser.parse_args(arguments)
    if args.completion is not None:
        return run_cli(lambda: print_completion(args.completion), "nothing was written")
    if args.keys is not None:
        return run_cli(lambda: keys.show(args.keys), "nothing was written")
    parser.print_help(sys.stderr)
    return 2


def job(name: str) -> int:
    """Run a sub-command as the script `jobs/<name>.py`, with the arguments of the process."""
    return run_command(COMMANDS[name], sys.argv[1:], f"python jobs/{name}.py")


def run_command(command: Command, arguments: Sequence[str], typed: str) -> int:
    """Parse the arguments of one sub-command and run it; `typed` is how its help calls it."""
    before = command.before
    if before and (status := run_cli(lambda: before(arguments), command.when_interrupted, logging.WARNING)):
        return status
    parser = Parser(prog=typed, description=command.description, parents=[common_options()])
    command.add_arguments(parser)
    args = parser.parse_args(arguments)

    def work() -> int:
        if torchrun_rank() is not None and (command is not train.COMMAND or args.dry_run):
            raise ConfigError(
                f"torchrun has started {typed}, and each of its processes would do the same: only a training shares "
                "its work among them. Start it without torchrun"
            )
        return command.run(args)

    return run_cli(work, command.when_interrupted, getattr(args, "level", logging.INFO))


def whole_parser() -> argparse.ArgumentParser:
    """The parser of `mgdet` with all its sub-commands: for `--help` and completion."""
    parser = Parser(prog="mgdet", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"mgdet {__version__}")
    keys.add_option(parser)
    parser.add_argument(
        "--completion", choices=("bash", "zsh", "fish"), help="print what makes this shell complete, then exit"
    )
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS.values():
        its_parser = commands.add_parser(
            command.name, help=command.summary, description=command.description, parents=[common_options()]
        )
        command.add_arguments(its_parser)
    return parser


def print_completion(shell: str) -> int:
    """Print the shell code that registers completion of `mgdet`."""
    import argcomplete

    print(argcomplete.shellcode(["mgdet"], shell=shell))
    return 0
