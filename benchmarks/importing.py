"""Importing annotations of many images: seconds, and the peak memory of the process that does it.

python benchmarks/importing.py                             # 10,000 and 100,000 images, in one process and in portions
python benchmarks/importing.py --images 1000000
python benchmarks/importing.py --images 118287 --boxes 7.27 --segmentations     # as large as COCO's train2017

All images are hard links to a few JPEGs of 96 x 72 pixels, so that disk and decoder count for little, and memory
is that of the annotations. In portions everything is done in this one process: with `--cluster` other processes decode
and write. `read` is the reading of the annotation file alone.
"""

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path

HOW = ("read", "one process", "portions")
LINKS = 20_000
"""Hard links of a file at most: file systems allow some tens of thousands."""


def make(directory: Path, images: int, boxes: float, segmentations: bool) -> int:
    """Write `train.json` and the directory `images`; the number of boxes."""
    import numpy as np
    from PIL import Image

    rng, draw = np.random.default_rng(0), random.Random(0)
    encoded = []
    for _ in range(8):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (72, 96, 3), dtype=np.uint8)).save(out, "JPEG", quality=50)
        encoded.append(out.getvalue())
    with (directory / "train.json").open("w") as file:
        file.write('{"images": [')
        for number in range(images):
            folder, name = f"{number // 10_000:04d}", f"{number:012d}.jpg"
            source = directory / "sources" / f"{number % 8}-{number // 8 // LINKS}.jpg"
            if not source.exists():
                source.parent.mkdir(exist_ok=True)
                source.write_bytes(encoded[number % 8])
            (directory / "images" / folder).mkdir(parents=True, exist_ok=True)
            os.link(source, directory / "images" / folder / name)
            entry = {"id": number, "file_name": f"{folder}/{name}", "width": 96, "height": 72}
            file.write(f"{', ' if number else ''}{json.dumps(entry)}")
        file.write('], "annotations": [')
        total = round(images * boxes)
        for number in range(total):
            x, y, w, h = draw.random() * 60, draw.random() * 40, 5 + draw.random() * 30, 5 + draw.random() * 25
            entry = {
                "id": number,
                "image_id": number % images,
                "category_id": draw.randint(1, 80),
                "bbox": [round(value, 2) for value in (x, y, w, h)],
                "area": round(w * h, 4),
                "iscrowd": 0,
            }
            if segmentations:
                entry["segmentation"] = [[round(draw.random() * 90, 2) for _ in range(40)]]
            file.write(f"{', ' if number else ''}{json.dumps(entry)}")
        categories = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    return total


def imported(directory: Path, how: str) -> None:
    """Do it in this process, and print seconds of the clock and of processors, and MiB before and at the peak."""
    from mgdet.data.formats.coco import Coco
    from mgdet.data.import_shared import ImportPlan
    from mgdet.data.importer import import_annotations
    from mgdet.portions import Done, Portion, Work

    def here(work: Work, portions: Sequence[Portion]) -> Generator[Done, None, None]:
        for portion in portions:
            yield work(portion)

    places = directory / "train.json", directory / "images"
    before, begin, cpu = peak(), time.perf_counter(), time.process_time()
    if how == "read":
        Coco().read(places)
    elif how == "portions":
        ImportPlan(directory / how, Coco(), [("train", places)], name="made").run(here)
    else:
        import_annotations(directory / how, Coco(), [("train", places)], name="made")
    print(time.perf_counter() - begin, time.process_time() - cpu, before, peak())


def peak() -> float:
    """MiB of this process so far, at most."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, action="append", help="how many, once for each measurement")
    parser.add_argument("--boxes", type=float, default=7.3, help="of an image, on average")
    parser.add_argument("--segmentations", action="store_true", help="each box has a polygon of 20 points")
    parser.add_argument("--how", choices=HOW, action="append", help="default: all of them")
    parser.add_argument("--directory", help="where to make the files: a file system with hard links and room")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        imported(Path(args.child[0]), args.child[1])
        return
    columns = f"{'seconds':>8}{'CPU':>8}{'MiB before':>12}{'peak':>8}{'B/image':>9}"
    print(f"{'images':>10}{'boxes':>12}  {'how':<12}{columns}")
    for images in args.images or [10_000, 100_000]:
        with tempfile.TemporaryDirectory(dir=args.directory) as directory:
            boxes = make(Path(directory), images, args.boxes, args.segmentations)
            for how in args.how or HOW:
                command = [sys.executable, __file__, "--child", directory, how]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                seconds, cpu, before, most = map(float, done.stdout.splitlines()[-1].split())
                share = (most - before) * 2**20 / images
                numbers = f"{seconds:>8.1f}{cpu:>8.1f}{before:>12.0f}{most:>8.0f}{share:>9.0f}"
                print(f"{images:>10,}{boxes:>12,}  {how:<12}{numbers}", flush=True)


if __name__ == "__main__":
    main()
