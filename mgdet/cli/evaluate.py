"""Evaluate a checkpoint: average precision and divergence on a split of a prepared data set.

    %(prog)s runs/quickstart                                   # the best checkpoint of a run
    %(prog)s runs/x/checkpoints/step-00001234.pt --data data/other --split test
    %(prog)s runs/x model.postprocess.nms_iou=0.6 evaluation.backend=pycocotools --json x.json
    %(prog)s runs/x --out judged                               # a page on its errors, detections, tables
    %(prog)s runs/x --out judged --workers 2                   # in two processes of a Ray cluster

One process, on a GPU if there is one, unless --workers says how many; the numbers are the same. Overrides are those
that leave the weights what they are: evaluation.*, model.rescoring.*, model.postprocess.*, data.transform.resize.*,
data.loader.*, train.batch_size, train.precision.
Exit status 0: evaluated; 2: something you can mend; 130: interrupted.
"""

import argparse
import logging

from mgdet.cli.complete import add_overrides
from mgdet.cli.fleet import add_fleet, fleet_of
from mgdet.cli.run import Command, add_plugins
from mgdet.text import printable

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a .pt file, or the directory of a run: path or URI")
    add_overrides(parser, "such as model.postprocess.nms_iou=0.6")
    parser.add_argument("--data", metavar="URI", help="prepared data set (default: that of the training)")
    parser.add_argument("--split", metavar="NAME", help="default: the one that the training evaluated on")
    parser.add_argument("--json", metavar="FILE", help="write all metrics there, as JSON")
    parser.add_argument(
        "--out",
        metavar="DIRECTORY",
        help="write report.html there, a page on what it does wrong, the detections (COCO's results and Parquet), the "
        "objects (COCO's annotations), AP and the score of the best F1 of each class, precision-recall curves, and all "
        "metrics: a path or URI",
    )
    add_fleet(parser, "evaluate")
    add_plugins(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the table of the training and the AP of each class."""
    from mgdet.errors import DataError
    from mgdet.inference.evaluate import described, evaluate_trained
    from mgdet.inference.load import load_detector
    from mgdet.inference.output import JsonFile
    from mgdet.inference.results import ResultFiles

    target = JsonFile(args.json) if args.json else None
    if fleet := fleet_of(args):
        from mgdet.cluster.fleet import evaluate_on_cluster

        if not args.out:
            raise DataError("--workers keeps what is done in --out: give it, a directory that all nodes see or a URI.")
        where = {"overrides": args.overrides, "data": args.data, "split": args.split, "plugins": args.plugin}
        trained, done = evaluate_on_cluster(args.checkpoint, args.out, fleet, **where)
    else:
        trained = load_detector(args.checkpoint, args.overrides, plugins=args.plugin)
        files = ResultFiles.below(args.out) if args.out else None
        logger.info("%s", trained)
        done = evaluate_trained(trained, args.data, args.split, files)
    if target:
        target.write(described(trained, done))
    print_table(done.metrics, f"{done.images} ({done.data}, {done.split})", done.protocol)
    return 0


def print_table(metrics: dict[str, float], images: str, protocol: str) -> None:
    """Print the headline metrics and the AP of each class, on what images they stand and by which rule of AP."""
    from mgdet.evaluation.evaluator import headlines
    from mgdet.inference.evaluate import PER_CLASS
    from mgdet.text import metric_text

    print(f"\n{'-' * 60}")
    per_class = [key for key in metrics if key.startswith(PER_CLASS)]
    rows = {key: printable(key) for key in (*headlines(metrics), *per_class)}
    width = max(22, *map(len, rows.values()))
    for key, shown in rows.items():
        print(f"{shown:<{width}} {metric_text(metrics[key])}")
    print(f"{'AP by the rule of':<{width}} {protocol}")
    print(f"{'images':<{width}} {images}")


COMMAND = Command("evaluate", __doc__, add_arguments, run, "nothing was written")
