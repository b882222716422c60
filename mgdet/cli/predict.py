"""Detect in images and videos with a trained detector.

    %(prog)s runs/quickstart photos/ --out found --draw
    %(prog)s runs/x/checkpoints/step-00001234.pt a.jpg b.jpg --out found --score 0.5
    %(prog)s runs/x street.mp4 --every 5 --out found --draw
    %(prog)s runs/x s3://bucket/photos --out found --tta flip,scales --parquet
    %(prog)s runs/x aerial.tif --tile 1024 --overlap 0.2 --out found
    %(prog)s runs/x --follow /srv/camera --out found
    %(prog)s runs/x s3://bucket/photos --out s3://bucket/found --workers 8 --address 10.0.0.1:6379

Writes detections.json, a list in COCO's results format with boxes (x, y, width, height) in pixels of the upright
original, images.json, which says what its image ids mean, and with --draw a picture of each image and a video of each
video. Frames are called clip.mp4#000123. Videos need the extra `video`: pip install 'mgdet[video]'. Parquet files are
tables of images, such as the shards of a prepared data set: a row each, with its file in the column `image`.
--follow detects in each file that appears in a directory as soon as it is finished, until Ctrl-C; the same command
then goes on. Every file found so far is a line of DIR/followed.jsonl, the other files are written at the end.
--workers detects in so many processes of a Ray cluster. Which of them end on the way does not matter: the same command
goes on after a stop, and the results are the same.
Exit status 0: written; 2: something you can mend, such as no readable image; 130: interrupted.
"""

import argparse
import logging
from typing import TYPE_CHECKING

from mgdet.cli.fleet import add_fleet, fleet_of
from mgdet.cli.run import Command, add_plugins

if TYPE_CHECKING:  # both import PyTorch
    from mgdet.inference.predict import Options, Predicted
    from mgdet.runs.config import ClusterConfig

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a .pt file, or the directory of a run: path or URI")
    parser.add_argument(
        "images", nargs="*", help="images, videos, and directories that are searched with all below them: paths or URIs"
    )
    parser.add_argument(
        "--follow", metavar="DIR", help="instead: a directory in which files appear, such as a camera's"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write; must be empty or absent")
    parser.add_argument("--score", type=float, default=0.3, help="least score that is written (default 0.3)")
    parser.add_argument("--draw", action="store_true", help="also write DIR/<name>.png, or .mp4, with the boxes")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time (default 1)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each Nth frame of a video (default 1: all)")
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
    parser.add_argument("--tile", type=int, default=0, metavar="N", help="cut larger images into tiles of N x N pixels")
    parser.add_argument("--overlap", type=float, default=0.2, metavar="F", help="of neighbouring tiles (default 0.2)")
    add_fleet(parser, "detect")
    add_plugins(parser)


def run(args: argparse.Namespace) -> int:
    """Detect, write the JSON files and the pictures, and say how many."""
    from mgdet.errors import DataError

    if bool(args.images) == (args.follow is not None):
        raise DataError("Give images, videos or directories, or --follow with one directory, and not both.")
    if args.follow is not None and (args.ids or args.overwrite):
        raise DataError(
            "--follow goes on with what is in --out, under ids of its own: leave out --ids and --overwrite."
        )
    fleet = fleet_of(args)
    if fleet and (args.follow is not None or args.overwrite):
        raise DataError("--workers goes on with what is in --out: leave out --follow and --overwrite.")
    from mgdet.inference.predict import Options

    given = {name: getattr(args, name) for name in Options._fields if name != "views"}
    options = Options(**given, views=tuple(word.strip() for word in args.tta.split(",") if word.strip()))
    done = _on_cluster(args, options, fleet) if fleet else _here(args, options)
    frames = f", {done.frames} of them frames of videos" if done.frames else ""
    left_out = f", {len(done.unreadable)} left out as unreadable (named above)" if done.unreadable else ""
    passed_over = f"; {'; '.join(done.passed_over)}" if done.passed_over else ""
    print(f"{done.detections} detections in {done.images} images{frames}{left_out}; written to {args.out}{passed_over}")
    return 0


def _here(args: argparse.Namespace, options: "Options") -> "Predicted":
    from mgdet.inference.follow import follow
    from mgdet.inference.load import load_detector
    from mgdet.inference.predict import predict

    trained = load_detector(args.checkpoint, plugins=args.plugin)
    logger.info("%s", trained)
    if args.follow is not None:
        follow(trained, args.follow, args.out, options)
    return predict(trained, args.images, args.out, overwrite=args.overwrite, ids=args.ids, options=options)


def _on_cluster(args: argparse.Namespace, options: "Options", config: "ClusterConfig") -> "Predicted":
    from mgdet.cluster.fleet import predict_on_cluster

    named = {"ids": args.ids, "options": options, "plugins": args.plugin}
    return predict_on_cluster(args.checkpoint, args.images, args.out, config, **named)


COMMAND = Command(
    "predict",
    __doc__,
    add_arguments,
    run,
    "there is no detections.json of this prediction; with --follow, what was found is in followed.jsonl, and the same "
    "command goes on",
)
