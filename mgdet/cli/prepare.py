"""Turn annotations and images into a data set of mgdet: Parquet shards at a local path or a URI (s3://, gs://, ...).

    %(prog)s shapes --out data/shapes
    %(prog)s coco --split train ann/train.json images --split val ann/val.json images --out data/mine
    %(prog)s mine --plugin my_package.my_format --split train a.txt images --out data/mine   # a format of your own
    %(prog)s coco --split train s3://bucket/train.json s3://bucket/train --out s3://bucket/coco --cluster --workers 8

The result appears only when it is complete; an existing one is replaced only with --overwrite.
--cluster converts in processes of a Ray cluster. The result is the same, and the same command goes on after a stop:
what is done is kept in .NAME.prepare beside the destination until then.
Exit status 0: written; 2 and one paragraph: something you can mend; 130: interrupted.
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdet.cli.fleet import MOST_WORKERS, add_where, cluster_of, refuse_where
from mgdet.cli.keys import shipped
from mgdet.cli.run import Command, common_options
from mgdet.data.choices import Choices
from mgdet.data.formats import FORMATS, DataFormat, Option
from mgdet.errors import MgdetError
from mgdet.text import printable
from mgdet.training.progress import Progress, show

if TYPE_CHECKING:
    from mgdet.data import Manifest
    from mgdet.runs.config import ClusterConfig

SHAPES = "data.generate."
"""The keys below it are the options of `shapes`."""


def load_formats(arguments: Sequence[str]) -> int:
    """Load the plugins that the arguments name, so that their formats are among the sub-commands."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_plugin_option(parser)
    if names := getattr(parser.parse_known_args(arguments)[0], "plugin", ()):
        from mgdet.plugins import load_plugins

        load_plugins(names, (Path(),))
    return 0


def add_plugin_option(parser: argparse.ArgumentParser) -> None:
    text = "a module or an entry point of mgdet.plugins that brings formats of its own; once for each"
    parser.add_argument("--plugin", action="append", default=argparse.SUPPRESS, metavar="NAME", help=text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_plugin_option(parser)
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False, parents=[common_options()])
    add_plugin_option(common)
    common.add_argument("--out", required=True, metavar="URI", help="where to write: a path, or s3://, gs://, file://")
    common.add_argument("--overwrite", action="store_true", help="replace a data set that is there")

    for data_format in FORMATS:
        summary = data_format.summary.replace("%", "%%")
        add_import_arguments(verbs.add_parser(data_format.name, parents=[common], help=summary), data_format)

    shapes = verbs.add_parser("shapes", parents=[common], help="draw the generated data set")
    for key in shipped():
        if key.key.startswith(SHAPES):
            option = key.key.removeprefix(SHAPES).replace("_", "-")
            text = f"{key.meaning} (default {key.default})".replace("%", "%%")
            shapes.add_argument(f"--{option}", default=argparse.SUPPRESS, help=text)


def add_import_arguments(parser: argparse.ArgumentParser, data_format: type[DataFormat]) -> None:
    """Add what all imports have in common, and the format's own options."""
    paths = ("NAME", *data_format.places)
    parser.add_argument(
        "--split",
        nargs=len(paths),
        action="append",
        required=True,
        metavar=paths,
        help="once for each split; again: more annotations of it",
    )
    parser.add_argument("--name", help="of the data set (default: the last part of --out)")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=_workers,
        help="decoding threads (default: the CPUs of this process); with --cluster processes (default auto: the CPUs "
        "of the cluster)",
    )
    parser.add_argument("--cluster", action="store_true", help="convert in processes of a Ray cluster")
    add_where(parser)
    add_options(parser, (*Choices.options(), *data_format.options()))


def add_options(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Add a flag for each option of a format or of all formats."""
    for own in options:
        flag, text = f"--{own.name.replace('_', '-')}", own.meaning.replace("%", "%%")
        if own.default is False:
            parser.add_argument(flag, action="store_true", help=text)
        else:
            text += "" if own.default == "" else " (default %(default)s)"
            parser.add_argument(flag, default=own.default, type=type(own.default), help=text)


def run(args: argparse.Namespace) -> int:
    """Write the data set and print a table of its splits."""
    print_table(prepare(args), args.out)
    return 0


class ProgressLine:
    """A bar on a terminal, plain lines every 10 seconds elsewhere."""

    def __init__(self) -> None:
        self.said = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if show(Progress(what, done, total, "images")) or not logging.getLogger("mgdet").isEnabledFor(logging.INFO):
            return
        if done == total or time.monotonic() - self.said > 10:
            self.said = time.monotonic()
            print(f"{what}: {done}/{total} images", file=sys.stderr, flush=True)


def prepare(args: argparse.Namespace) -> "Manifest":
    """The data set that the arguments ask for, written."""
    from pydantic import ValidationError

    from mgdet.data import ShapesConfig, generate_shapes, import_annotations

    progress = ProgressLine()
    if args.verb == "shapes":
        given = {field: getattr(args, field) for field in ShapesConfig.model_fields if hasattr(args, field)}
        try:
            config = ShapesConfig.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise MgdetError(f"--{first['loc'][0]} is {first['input']!r}: {first['msg']}") from error
        return generate_shapes(args.out, config, overwrite=args.overwrite, progress=progress)
    data_format = next(each for each in FORMATS if each.name == args.verb)
    fleet = _fleet_of(args)
    read = data_format(**{own.name: getattr(args, own.name) for own in data_format.options()})
    splits = [(name, places) for name, *places in args.split]
    options: dict[str, Any] = {each.name: getattr(args, each.name) for each in Choices.options()}
    options |= {"name": args.name, "overwrite": args.overwrite}
    if fleet is None:
        return import_annotations(args.out, read, splits, workers=args.workers, progress=progress, **options)
    from mgdet.cluster.fleet import prepare_on_cluster

    return prepare_on_cluster(args.out, read, splits, fleet, **options)


def _workers(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, or auto with --cluster") from None


def _fleet_of(args: argparse.Namespace) -> "ClusterConfig | None":
    """The cluster that `--cluster` asks for. Raises `DataError` or `ConfigError`."""
    from mgdet.errors import DataError

    if not args.cluster:
        refuse_where(args, "--cluster")
        if args.workers == "auto":
            raise DataError("--workers auto is for a cluster: give --cluster too, or a number of threads.")
        return None
    if args.workers not in (None, "auto") and not 1 <= args.workers <= MOST_WORKERS:
        raise DataError(f"There cannot be {args.workers} processes; allowed are 1 to {MOST_WORKERS}, and auto.")
    return cluster_of(args, args.workers or "auto", gpu=False)


def print_table(manifest: "Manifest", uri: str) -> None:
    """Print what each split holds, the classes, and what the import changed."""
    print(f"\n{'split':<12}{'images':>10}{'boxes':>10}{'crowd':>8}{'without boxes':>15}{'shards':>8}")
    for name, split in manifest.splits.items():
        counts = f"{split.images:>10}{split.boxes:>10}{split.crowd:>8}{split.negatives:>15}{len(split.shards):>8}"
        print(f"{name:<12}{counts}")
    changes = manifest.changes.model_dump(exclude={"dropped_boxes", "dropped_images"})
    print(f"\n{len(manifest.categories)} classes: {', '.join(printable(c.name) for c in manifest.categories)}")
    print("Changed: " + (", ".join(f"{k} {v}" for k, v in changes.items() if v) or "nothing"))
    print(f"Written to {uri}")


COMMAND = Command(
    "prepare",
    __doc__,
    add_arguments,
    run,
    "nothing appeared at the target; with --cluster, what is done is kept, and the same command goes on",
    load_formats,
)
