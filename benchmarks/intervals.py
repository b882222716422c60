"""How often the intervals of `mgdet compare` hold 0 where there is no difference, on simulated detections.

    python benchmarks/intervals.py --trials 500 --runs 1 --out coverage-1.jsonl

Each trial draws images with objects, and two groups of detectors that are equally good; the runs of a group differ by
`--spread` in their skill. A line of the file is a trial, so that the same command goes on where it stopped. What is
printed is the share of trials in which the interval held 0, with its own interval of 95 % (Clopper and Pearson), and in
how many trials the difference was exactly 0.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from scipy.stats import binomtest

from mgdet.comparison.bootstrap import Difference, difference, image_weights
from mgdet.comparison.judged import Judged
from mgdet.comparison.statistics import statistics
from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Category

CELL = 200.0
"""Pixels from one place of an object to the next; an image has three times three."""


def scenes(rng: Generator, images: int = 80, classes: int = 2) -> GroundTruth:
    """Objects of some classes and of all of COCO's sizes, one to five in an image, no two of them near each other."""
    counts = rng.integers(1, 6, images)
    image = np.repeat(np.arange(images), counts)
    place = np.concatenate([rng.permutation(9)[:n] for n in counts])
    corner = np.stack([place % 3, place // 3], axis=1) * CELL + rng.uniform(0, 20, (len(image), 2))
    boxes = np.concatenate([corner, corner + np.exp(rng.uniform(np.log(18), np.log(160), (len(image), 2)))], axis=1)
    return GroundTruth(
        image_ids=np.arange(images) + 1,
        heights=np.full(images, 3 * CELL),
        widths=np.full(images, 3 * CELL),
        box_image=image,
        boxes=boxes,
        labels=rng.integers(0, classes, len(image)),
        iscrowd=np.zeros(len(image), dtype=np.bool_),
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        categories=tuple(Category(k + 1, f"c{k}") for k in range(classes)),
    )


def detector(rng: Generator, gt: GroundTruth, skill: float = 0.0, name: str = "a") -> Judged:
    """Finds most objects, the better placed ones with higher scores, and makes errors of all types.

    Of what it finds a tenth lies badly, a tenth has another class, and an eighth is found twice; two wrong detections
    an image are added.
    """
    quality = rng.normal(skill, 1, len(gt.boxes))
    rows = np.flatnonzero(quality > -1)
    rows = np.concatenate([rows, rows[rng.random(len(rows)) < 0.125]])
    found = len(rows)
    size = np.tile(gt.boxes[rows, 2:] - gt.boxes[rows, :2], 2)
    spread = 0.08 * np.exp(-0.4 * quality[rows]) + 0.2 * (rng.random(found) < 0.1)
    shifted = gt.boxes[rows] + rng.normal(0, 1, (found, 4)) * size * spread[:, None]
    shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 1)
    wrong = 2 * len(gt.image_ids)
    corner = rng.uniform(0, 3 * CELL - 80, (wrong, 2))
    boxes = np.concatenate([shifted, np.concatenate([corner, corner + 80], axis=1)])
    scores = 1 / (1 + np.exp(-np.r_[quality[rows] + rng.normal(0, 0.7, found), rng.normal(-1, 1, wrong)]))
    image = np.r_[gt.box_image[rows], rng.integers(0, len(gt.image_ids), wrong)]
    classes = len(gt.categories)
    labels = np.r_[
        (gt.labels[rows] + (rng.random(found) < 0.1)) % classes,
        rng.integers(0, classes, wrong),
    ]
    files = tuple(f"{i}.jpg" for i in gt.image_ids)
    return Judged(name, gt, files, DetectionArrays(image, boxes, scores, labels), {})


def trial(number: int, runs: int, spread: float, images: int, samples: int) -> dict[str, Difference]:
    """The differences of two groups that do not differ, by the name of the statistic."""
    rng = np.random.default_rng([number, runs])
    gt = scenes(rng, images)
    weights = image_weights(images, samples, rng)
    groups = [[statistics(detector(rng, gt, spread * rng.normal()), weights) for _ in range(runs)] for _ in range(2)]
    found = {}
    for name in groups[0][0]:
        base, other = (np.stack([run[name] for run in group]) for group in groups)
        found[name] = difference(base, other, images)
    return found


def shares(lines: Sequence[dict[str, list[float]]]) -> Iterator[tuple[str, int, int, int]]:
    """By statistic: trials in which it is defined, in which its interval held 0, and in which nothing differed."""
    for name in dict.fromkeys(name for line in lines for name in line):
        known = [line[name] for line in lines if name in line]
        held = sum(low <= 0 <= high for _, low, high in known)
        yield name, len(known), held, sum(value == 0 for value, _, _ in known)


def main() -> None:
    """Run the trials that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--runs", type=int, default=1, help="of each group")
    parser.add_argument(
        "--spread", type=float, default=0.3, help="deviation of the skill of runs, if there are several"
    )
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True, help="file to which a line is appended for each trial")
    args = parser.parse_args()
    spread = args.spread if args.runs > 1 else 0.0
    settings = {"runs": args.runs, "spread": spread, "images": args.images, "samples": args.samples}
    known = args.out.read_text().splitlines(keepends=True) if args.out.exists() else []
    known = [line for line in known if line.endswith("\n")]  # the last one may be half written
    if known and json.loads(known[0]) != settings:
        parser.error(f"{args.out} has trials with {known[0].strip()}; give another file for {json.dumps(settings)}")
    args.out.write_text("".join(known or [json.dumps(settings) + "\n"]))
    with args.out.open("a") as file:
        for number in range(max(0, len(known) - 1), args.trials):
            found = trial(number, args.runs, spread, args.images, args.samples)
            line = {name: [d.value, d.low, d.high] for name, d in found.items() if d.low == d.low}
            file.write(json.dumps(line) + "\n")
            file.flush()
    lines = [json.loads(line) for line in args.out.read_text().splitlines()[1 : args.trials + 1]]
    print(json.dumps(settings))
    print(f"{'':<26}{'trials':>7}{'held 0':>9}{'interval of 95 %':>20}{'nothing differed':>18}")
    for name, count, held, nothing in shares(lines):
        low, high = binomtest(held, count).proportion_ci()
        print(f"{name:<26}{count:>7}{held / count:>8.1%}{f'{low:.1%} to {high:.1%}':>21}{nothing / count:>17.1%}")


if __name__ == "__main__":
    main()
