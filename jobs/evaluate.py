"""Evaluate a checkpoint: average precision and divergence on a split of a prepared data set.

    python jobs/evaluate.py runs/quickstart                                   # the best checkpoint of a run
    python jobs/evaluate.py runs/x/checkpoints/step-00001234.pt --data data/other --split test
    python jobs/evaluate.py runs/x model.postprocess.nms_iou=0.6 evaluation.backend=pycocotools --json x.json

One process, on a GPU if there is one. Overrides are those that leave the weights what they are: evaluation.*,
model.rescoring.*, model.postprocess.*, data.transform.resize.*, data.loader.*, train.batch_size, train.precision.
"""

import argparse
import logging
import sys

from mgdet.cli.run import arguments, run_cli
from mgdet.inference.evaluate import HEADLINE, PER_CLASS, evaluate_trained
from mgdet.inference.load import load_detector
from mgdet.inference.output import JsonFile

logger = logging.getLogger("mgdet.jobs")


def main() -> int:
    """Exit status 0: evaluated; 2: something the user can mend; 130: interrupted."""
    parser = arguments(__doc__)
    parser.add_argument("checkpoint", help="a .pt file, or the directory of a run: path or URI")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as model.postprocess.nms_iou=0.6")
    parser.add_argument("--data", metavar="URI", help="prepared data set (default: that of the training)")
    parser.add_argument("--split", metavar="NAME", help="default: the one that the training evaluated on")
    parser.add_argument("--json", metavar="FILE", help="write all metrics there, as JSON")
    args = parser.parse_intermixed_args()
    return run_cli(lambda: evaluate(args), "nothing was written")


def evaluate(args: argparse.Namespace) -> int:
    trained = load_detector(args.checkpoint, args.overrides)
    target = JsonFile(args.json) if args.json else None
    logger.info("%s", trained)
    done = evaluate_trained(trained, args.data, args.split)
    if target:
        source = {"checkpoint": trained.path, "epoch": trained.epoch, "step": trained.step}
        target.write({**source, **done._asdict()})

    print(f"\n{'-' * 60}")
    per_class = [key for key in done.metrics if key.startswith(PER_CLASS)]
    width = max(22, *(len(key) for key in per_class)) if per_class else 22
    for key in (*HEADLINE, *per_class):
        if key in done.metrics:
            print(f"{key:<{width}} {done.metrics[key]:.4f}")
    print(f"{'images':<{width}} {done.images} ({done.data}, {done.split})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
