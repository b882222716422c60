"""Detect in image files with a trained detector.

    %(prog)s runs/quickstart photos/ --out found --draw
    %(prog)s runs/x/checkpoints/step-00001234.pt a.jpg b.jpg --out found --score 0.5
    %(prog)s runs/x photos/ --out found --tta flip,scales --parquet

Writes detections.json, a list in COCO's results format with boxes (x, y, width, height) in pixels of the upright
original, images.json, which says what its image ids mean, and with --draw a picture of each image.
Exit status 0: written; 2: something you can mend, such as no readable image; 130: interrupted.
"""

import argparse
import logging

from mgdet.cli.run import Command, add_plugins

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a .pt file, or the directory of a run: path or URI")
    parser.add_argument("images", nargs="+", help="files, and directories that are searched with all below them")
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write; must be empty or absent")
    parser.add_argument("--score", type=float, default=0.3, help="least score that is written (default 0.3)")
    parser.add_argument("--draw", action="store_true", help="also write DIR/<name>.png with the boxes")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time (default 1)")
    parser.add_argument("--overwrite", action="store_true", help="DIR may hold files; those of the same names go")
    parser.add_argument(
        "--ids", metavar="FILE", help="write the image ids of this COCO file; only its images are taken"
    )
    parser.add_argument("--parquet", action="store_true", help="also write DIR/detections.parquet")
    parser.add_argument(
        "--tta",
        metavar="WORDS",
        default="",
        help="test-time augmentation: flip, scales (0.75,1.25) and other factors of the size, with commas",
    )
    parser.add_argument("--max-pixels", type=int, metavar="N", help="width times height of an image, at most")
    add_plugins(parser)


def run(args: argparse.Namespace) -> int:
    """Detect, write the JSON files and the pictures, and say how many."""
    from mgdet.inference.load import load_detector
    from mgdet.inference.predict import predict

    trained = load_detector(args.checkpoint, plugins=args.plugin)
    logger.info("%s", trained)
    options = {"score": args.score, "draw": args.draw, "batch_size": args.batch_size, "overwrite": args.overwrite}
    options |= {"ids": args.ids, "max_pixels": args.max_pixels, "parquet": args.parquet}
    options["views"] = [word.strip() for word in args.tta.split(",") if word.strip()]
    done = predict(trained, args.images, args.out, **options)
    left_out = f", {len(done.unreadable)} left out as unreadable (named above)" if done.unreadable else ""
    passed_over = f"; {'; '.join(done.passed_over)}" if done.passed_over else ""
    print(f"{done.detections} detections in {done.images} images{left_out}; written to {args.out}{passed_over}")
    return 0


COMMAND = Command("predict", __doc__, add_arguments, run, "there is no detections.json of this prediction")
