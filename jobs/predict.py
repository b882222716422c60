"""Detect in image files with a trained detector.

    python jobs/predict.py runs/quickstart photos/ --out found --draw
    python jobs/predict.py runs/x/checkpoints/step-00001234.pt a.jpg b.jpg --out found --score 0.5

Writes detections.json, a list in COCO's results format with boxes (x, y, width, height) in pixels of the upright
original, images.json, which says what its image ids mean, and with --draw a picture of each image.
"""

import argparse
import logging
import sys

from mgdet.cli.run import arguments, run_cli
from mgdet.inference.load import load_detector
from mgdet.inference.predict import predict

logger = logging.getLogger("mgdet.jobs")


def main() -> int:
    """Exit status 0: written; 2: something the user can mend, such as no readable image; 130: interrupted."""
    parser = arguments(__doc__)
    parser.add_argument("checkpoint", help="a .pt file, or the directory of a run: path or URI")
    parser.add_argument("images", nargs="+", help="files, and directories that are searched with all below them")
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write; must be empty or absent")
    parser.add_argument("--score", type=float, default=0.3, help="least score that is written (default 0.3)")
    parser.add_argument("--draw", action="store_true", help="also write DIR/<name>.png with the boxes")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time (default 1)")
    parser.add_argument("--overwrite", action="store_true", help="DIR may hold files; those of the same names go")
    args = parser.parse_intermixed_args()
    return run_cli(lambda: detect(args), "there is no detections.json of this prediction")


def detect(args: argparse.Namespace) -> int:
    trained = load_detector(args.checkpoint)
    logger.info("%s", trained)
    options = {"score": args.score, "draw": args.draw, "batch_size": args.batch_size, "overwrite": args.overwrite}
    done = predict(trained, args.images, args.out, **options)
    left_out = f", {len(done.unreadable)} left out as unreadable (named above)" if done.unreadable else ""
    print(f"{done.detections} detections in {done.images} images{left_out}; written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
