"""Compare runs on the same images: where one wins, by how much, and whether that is more than chance.

    %(prog)s runs/max-iou runs/mine                            # the first one is the base
    %(prog)s judged/a judged/b --out compared                  # what `mgdet evaluate --out` wrote
    %(prog)s --group base runs/b0 runs/b1 --group mine runs/m0 runs/m1 --json x.json
    %(prog)s runs/a runs/b --data data/other --split test --track

A run stands for its best checkpoint, which is evaluated first. Runs of a group differ in their seed. AP, AP50, AP75,
AP by size and by class, the divergence, and the AP50 that each type of error costs get an interval from a paired
bootstrap over images, and from the variance between the runs of a group.
Exit status 0: compared; 2: something you can mend; 130: interrupted.
"""

import argparse

from mgdet.cli.run import Command, add_plugins
from mgdet.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="a run, a .pt file or the directory of an evaluation: each for itself"
    )
    parser.add_argument(
        "--group",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "RUN"),
        help="runs of one configuration with several seeds, under a name; once for each group",
    )
    parser.add_argument("--data", metavar="URI", help="what runs are evaluated on (default: that of their training)")
    parser.add_argument("--split", metavar="NAME", help="default: the one that the training evaluated on")
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="of the bootstrap (default 1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default 0)")
    parser.add_argument("--json", metavar="FILE", help="write everything there")
    parser.add_argument("--out", metavar="DIRECTORY", help="write compare.html, compare.json and compare.txt there")
    parser.add_argument("--track", action="store_true", help="log them to MLflow, as artifacts of a run of its own")
    add_plugins(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, write the files that were asked for, and print the tables."""
    from mgdet.comparison.compare import compare
    from mgdet.comparison.publish import files_of, track
    from mgdet.comparison.report import as_text
    from mgdet.inference.output import JsonFile, OutputFile
    from mgdet.provenance import made_by
    from mgdet.storage import child_uri

    groups = named_groups(args.runs, args.group)
    json_file = JsonFile(args.json) if args.json else None
    names = ("compare.txt", "compare.json", "compare.html") if args.out else ()
    out = {name: OutputFile(child_uri(args.out, name)) for name in names}
    found = compare(groups, data=args.data, split=args.split, samples=args.samples, seed=args.seed, plugins=args.plugin)
    files = files_of(found, made_by()["command"])
    if json_file:
        json_file.write_bytes(files["compare.json"])
    for name, file in out.items():
        file.write_bytes(files[name])
    if args.track:
        for label, where in track(found, files):
            print(f"{label:<17} {where}")
    print(as_text(found))
    return 0


def named_groups(runs: list[str], groups: list[list[str]]) -> dict[str, list[str]]:
    """The sources of each group by its name: single runs under their last part, where that tells them apart."""
    lasts = [run.rstrip("/").rpartition("/")[2] for run in runs]
    found = {last if lasts.count(last) == 1 and last else run: [run] for run, last in zip(runs, lasts, strict=True)}
    if len(found) < len(runs):
        raise ConfigError("the same run is given twice; what it is compared with has to be another one")
    for name, *members in groups:
        if name in found:
            raise ConfigError(f"two groups are named {name}; give each --group a name of its own")
        found[name] = members
    return found


COMMAND = Command("compare", __doc__, add_arguments, run, "nothing was written")
