"""Examine a data set: what is wrong with its annotations and pictures, by id.

    %(prog)s data/mine                                                   # a data set that `prepare` wrote
    %(prog)s coco --split train train.json images --split val val.json images     # what `prepare` would read
    %(prog)s data/mine --config my.yaml --checkpoint runs/mine --html found.html  # also anchors and labels

Levels: an error makes `prepare` refuse the data or an evaluation worthless, a warning is very likely a fault, a note is
good to know. Nothing is changed.
Exit status 0: examined; 1: with --strict, an error or a warning was found; 2: something you can mend; 130: interrupted.
"""

import argparse

from mgdet.cli.complete import complete_configs
from mgdet.cli.prepare import ProgressLine, add_options, add_plugin_option, load_formats
from mgdet.cli.run import Command
from mgdet.config_files import EXPERIMENTS
from mgdet.data.choices import READING, Choices
from mgdet.data.formats import FORMATS
from mgdet.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_plugin_option(parser)
    names = ", ".join(each.name for each in FORMATS)
    parser.add_argument("data", help=f"a prepared data set (path or URI), or a format of annotations: {names}")
    parser.add_argument(
        "--split",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME PATHS",
        help="of annotations, once for each split: its name and what `prepare` takes for the format",
    )
    complete_configs(
        parser.add_argument(
            "--config", help="compare objects with the anchors of this configuration (default: that of --checkpoint)"
        ),
        EXPERIMENTS,
    )
    parser.add_argument(
        "--checkpoint", metavar="RUN", help="look for wrong labels with this detector: a run, or a .pt file"
    )
    parser.add_argument("--json", metavar="FILE", help="write all findings with all ids there")
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures there, which needs no other file")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if an error or a warning is found")
    parser.add_argument("--workers", type=int, help="decoding threads (default: the CPUs of this process)")
    add_options(parser, [each for each in Choices.options() if each.name in READING])
    add_options(parser, {each.name: each for data_format in FORMATS for each in data_format.options()}.values())


def run(args: argparse.Namespace) -> int:
    """Examine, write the files that were asked for, and print the report."""
    from mgdet.config import load
    from mgdet.diagnosis.examine import examine_dataset
    from mgdet.diagnosis.report import as_json, lines
    from mgdet.inference.load import load_detector
    from mgdet.inference.output import JsonFile, OutputFile

    plugins = getattr(args, "plugin", ())
    experiment = load(args.config) if args.config else None
    trained = load_detector(args.checkpoint, plugins=plugins) if args.checkpoint else None
    json_file = JsonFile(args.json) if args.json else None
    html_file = OutputFile(args.html) if args.html else None
    data_format = next((each for each in FORMATS if each.name == args.data), None)
    if data_format is None and args.split:
        names = ", ".join(each.name for each in FORMATS)
        raise ConfigError(f"--split goes with a format of annotations: {names}; {args.data!r} is none of them")
    own = {each.name: getattr(args, each.name) for each in data_format.options()} if data_format else {}
    found = examine_dataset(
        data_format(**own) if data_format else args.data,
        [(name, places) for name, *places in args.split],
        experiment=experiment,
        trained=trained,
        choices=Choices(**{name: getattr(args, name) for name in READING}),
        workers=args.workers,
        progress=ProgressLine(),
    )
    if json_file:
        json_file.write(as_json(found))
    if html_file:
        from mgdet.diagnosis.page import page

        html_file.write_bytes(page(found).encode())
    print("\n".join(lines(found)))
    return int(args.strict and any(finding.severity != "note" for finding in found.findings))


COMMAND = Command("doctor", __doc__, add_arguments, run, "nothing was written", load_formats)
