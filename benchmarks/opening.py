"""Opening the annotations of a large split in each of several processes: seconds, and memory that is not shared.

python benchmarks/opening.py                       # 1,000,000 images with 10 boxes each, 4 processes
python benchmarks/opening.py --images 100000
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MEMORY, FILES = "in memory", "mapped"


def records(images: int, boxes: int) -> Iterator[object]:
    """Images of a few bytes: they are not read here."""
    from mgdet.data.schema import Record

    rng = np.random.default_rng(0)
    for number in range(images):
        low = rng.random((boxes, 2)) * 500
        corners = np.concatenate([low, low + 1 + rng.random((boxes, 2)) * 100], axis=1)
        labels, crowd = rng.integers(0, 80, boxes, dtype=np.int32), np.zeros(boxes, dtype=np.bool_)
        areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
        yield Record(number, f"{number:012d}.jpg", 640, 640, b"image", corners, labels, crowd, areas)


def opened(uri: str, how: str, answers: object) -> None:
    """Open it and look at all boxes; tell the seconds and MiB of anonymous memory that this took."""
    from mgdet.data import ShardedDataset, mapped

    if how == MEMORY:
        mapped.LEAST_BYTES = 1 << 60
    before, begin, cpu = anonymous(), time.perf_counter(), time.process_time()
    dataset = ShardedDataset(uri, "train")
    taken = time.perf_counter() - begin, time.process_time() - cpu
    assert float(dataset._boxes.sum()) > 0
    answers.put((*taken, anonymous() - before))  # type: ignore[attr-defined]  # a queue


def anonymous() -> float:
    """MiB of this process that it shares with no other one and that come from no file."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--boxes", type=int, default=10, help="in each image")
    parser.add_argument("--processes", type=int, default=4, help="that open it one after another")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_CACHE_HOME"] = f"{directory}/cache"
        from mgdet.data.writer import write_dataset
        from mgdet.structures import Category

        uri, classes = f"{directory}/large", [Category(k, f"class {k}") for k in range(80)]
        begin = time.perf_counter()
        write_dataset(uri, {"train": records(args.images, args.boxes)}, name="large", categories=classes)  # type: ignore[dict-item]
        count = f"{args.images:,} images, {args.images * args.boxes:,} boxes"
        print(f"{count}; written in {time.perf_counter() - begin:.0f} s")
        context = multiprocessing.get_context("spawn")
        print(f"{'':<12}{'process':>8}{'seconds':>9}{'CPU':>7}{'MiB of its own':>16}")
        for how in (MEMORY, FILES):
            for number in range(2 if how == MEMORY else args.processes):
                answers = context.Queue()
                process = context.Process(target=opened, args=(uri, how, answers))
                process.start()
                seconds, cpu, own = answers.get()
                process.join()
                print(f"{how:<12}{number + 1:>8}{seconds:>9.2f}{cpu:>7.2f}{own:>16.0f}")


if __name__ == "__main__":
    main()
