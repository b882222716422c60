"""Show who learns what: which priors of an image learn which task from which object, and why.

    %(prog)s runs/quickstart --out seen                        # the kept checkpoints of a run, seven assigners
    %(prog)s bccd_fcos_atss --out seen                         # a configuration alone: its untrained network
    %(prog)s runs/x --images 206,207 --checkpoints best --assigners max_iou,mutual_guidance --out seen
    %(prog)s my.yaml --augment --out seen                      # images with their boxes as the training sees them
    %(prog)s runs/x --assigners max_iou,max_iou:force_match=false,mutual_guidance:sigma=1:count=dynamic_k --out seen

Writes DIR/index.html, an interactive page that needs no network, DIR/pictures/*.png, DIR/summary.json (counts) and
DIR/assignments.parquet (a row for each pair of a prior and an object, assigner and task). With --augment it writes
DIR/augmented.png alone: images of the training as evaluation and as the first epochs see them, with their boxes.
Exit status 0: written; 2: something you can mend, such as an unknown image; 130: interrupted.
"""

import argparse

from mgdet.cli.complete import add_overrides, complete_configs
from mgdet.cli.run import Command, add_plugins
from mgdet.config_files import EXPERIMENTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument("source", help="directory of a run or a .pt file; else a YAML file or configuration")
    complete_configs(source, EXPERIMENTS)
    add_overrides(parser, "of a configuration any key; of a run those that leave the weights what they are")
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write; must be empty or absent")
    parser.add_argument(
        "--images", type=_numbers, metavar="ID,...", help="ids in the data set (default: the first 8 with objects)"
    )
    parser.add_argument(
        "--assigners",
        type=_words,
        metavar="NAME,...",
        help="each with options as name:key=value (default: its own, then the two papers' and the established ones)",
    )
    parser.add_argument(
        "--checkpoints",
        type=_words,
        default=["all"],
        metavar="WHICH,...",
        help="of a run: all, best, last, start (before the first step), or numbers of steps (default: all)",
    )
    parser.add_argument("--data", metavar="URI", help="prepared data set (default: that of the training)")
    parser.add_argument("--split", metavar="NAME", help="default: the one evaluated on, with --augment trained on")
    parser.add_argument("--augment", action="store_true", help="show the images of the training, and no assigners")
    parser.add_argument(
        "--near", type=int, default=50, metavar="N", help="priors of each object shown by each criterion (default 50)"
    )
    parser.add_argument("--overwrite", action="store_true", help="DIR may hold files; those of the same names go")
    add_plugins(parser)


def run(args: argparse.Namespace) -> int:
    """Write everything and say where the page is."""
    common = {name: getattr(args, name) for name in ("overrides", "images", "data", "split", "overwrite")}
    if args.augment:
        from mgdet.microscope.augmented import show_augmented

        print(f"picture   {show_augmented(args.source, args.out, plugins=args.plugin, **common)}")
        return 0
    from mgdet.microscope.visualize import visualize

    written = visualize(
        args.source,
        args.out,
        assigners=args.assigners,
        checkpoints=args.checkpoints,
        near=args.near,
        plugins=args.plugin,
        **common,
    )
    print(f"page      {written.page}")
    print(f"pictures  {written.pictures[0].parent} ({len(written.pictures)})")
    print(f"numbers   {written.summary}, {written.table}")
    return 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected ids of images with commas, such as 206,207") from None


COMMAND = Command("visualize", __doc__, add_arguments, run, "the page, which is written last, may be missing")
