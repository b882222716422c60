"""Write a prepared data set in a format that other tools read: images and annotations in a new directory.

    %(prog)s data/mine --format yolo --out exported
    %(prog)s s3://bucket/data/mine --format coco --split val --out exported

Exit status 0: written; 2 and one paragraph: something you can mend; 130: interrupted.
"""

import argparse

from mgdet.cli.prepare import ProgressLine, add_plugin_option, load_formats
from mgdet.cli.run import Command
from mgdet.data.formats import FORMATS, WrittenFormat


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_plugin_option(parser)
    written = list(_written())
    parser.add_argument("uri", metavar="URI", help="of the data set: a path, or s3://, gs://, file://")
    parser.add_argument("--format", required=True, choices=written, help="what to write")
    parser.add_argument("--out", required=True, metavar="DIRECTORY", help="where to write; it must not be there yet")
    parser.add_argument(
        "--split", action="append", default=[], metavar="NAME", help="only this one; once for each (default: all)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the data set and print the paths of its splits."""
    from mgdet.data.export import export_dataset

    data_format = _written()[args.format]()
    places = export_dataset(args.uri, data_format, args.out, splits=args.split, progress=ProgressLine())
    for split, paths in places.items():
        print(f"{split:<12}{' '.join(map(str, paths))}")
    return 0


def _written() -> dict[str, type[WrittenFormat]]:
    return {each.name: each for each in FORMATS if issubclass(each, WrittenFormat)}


COMMAND = Command("export-data", __doc__, add_arguments, run, "nothing appeared at the target", load_formats)
