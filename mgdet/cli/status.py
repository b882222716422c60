"""List the runs and sweeps under a storage: state, progress, best value, and which need a person.

    %(prog)s runs
    %(prog)s s3://bucket/runs --json

A damaged record is named and does not end the list. Nothing is written.
Exit status 0: listed; 1: with --strict, something needs a person; 2: something you can mend; 130: interrupted.
"""

import argparse
import json

from mgdet.cli.run import Command, reader_may_leave


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("storage", nargs="?", default="runs", help="path or URI of the storage, or of one run in it")
    parser.add_argument("--json", action="store_true", help="print JSON: a list with one object for each")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if something needs a person")


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    from mgdet.runs.status import as_json, lines, status_of

    found = status_of(args.storage)
    with reader_may_leave():
        print(json.dumps(as_json(found), indent=1) if args.json else "\n".join(lines(found)))
    return int(args.strict and any(each.problems for each in found))


COMMAND = Command("status", __doc__, add_arguments, run, "nothing was written")
