"""How often the intervals of `mgdet compare` hold 0 where there is no difference, on simulated detections.

    python -m benchmarks.coverage --trials 500 --runs 1 --out coverage-1.jsonl

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
from scipy.stats import binomtest

from benchmarks.simulated import detector, scenes
from mgdet.comparison.bootstrap import Difference, difference, image_weights
from mgdet.comparison.statistics import statistics


def trial(number: int, runs: int, spread: float, images: int, samples: int) -> dict[str, Difference]:
    """The differences of two groups that do not differ, by the name of the statistic."""
    rng = np.random.default_rng([number, runs])
    gt = scenes(rng, images)
    weights = image_weights(images, samples, rng)
    groups = [[statistics(detector(rng, gt, spread * rng.normal()), weights) for _ in range(runs)] for _ in range(2)]
    return {
        name: difference(*(np.stack([run[name] for run in group]) for group in groups), images) for name in groups[0][0]
    }


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
