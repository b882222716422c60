"""Reading COCO's annotations beside `json.load`, each in a process of its own: seconds of the processor, peak memory.

python benchmarks/annotations.py  # 118,000 images and 860,000 boxes, as train2017 has
python benchmarks/annotations.py --file instances_train2017.json
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np


def generated(path: Path, images: int, boxes: int) -> None:
    """A file with the keys and about the size of COCO's."""
    rng = np.random.default_rng(0)
    numbers = rng.permutation(images * 5)[:images].tolist()
    listed = [
        {
            "id": number,
            "file_name": f"{number:012d}.jpg",
            "width": 640,
            "height": 480,
            "license": 3,
            "coco_url": f"http://example.org/train2017/{number:012d}.jpg",
            "date_captured": "2013-11-14 17:02:52",
        }
        for number in numbers
    ]
    corners, sides = (rng.random((boxes, 2)) * (500, 360)).round(2), (rng.random((boxes, 2)) * 119 + 1).round(2)
    annotations = [
        {
            "segmentation": [(rng.random(int(rng.choice([16, 24, 40, 60]))) * 480).round(2).tolist()],
            "area": float(w * h * 0.6),
            "iscrowd": 0,
            "image_id": numbers[k % images],
            "bbox": [x, y, w, h],
            "category_id": k % 80 + 1,
            "id": k + 1,
        }
        for k, ((x, y), (w, h)) in enumerate(zip(corners.tolist(), sides.tolist(), strict=True))
    ]
    categories = [{"id": k, "name": f"class {k}", "supercategory": "thing"} for k in range(1, 81)]
    path.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": categories}))


def plainly(path: Path) -> object:
    """What Python alone makes of it."""
    with open(path) as file:
        return json.load(file)


def checked(path: Path) -> object:
    """What `mgdet prepare` makes of it: every value is checked."""
    from mgdet.data.formats.coco import Coco

    return Coco().read([path, path.parent])


def measured(reader: str, path: Path, out: "multiprocessing.Queue[tuple[float, float]]") -> None:
    """Put the seconds and the MiB above those of an empty process into `out`."""
    read = {"json.load": plainly, "mgdet": checked}[reader]
    if reader == "mgdet":
        pass  # its import is not what is measured
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = read(path)
    seconds = time.process_time() - begin
    out.put((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))
    del found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="instead of a generated one")
    parser.add_argument("--images", type=int, default=118_000, help="that are generated (default 118,000)")
    parser.add_argument("--boxes", type=int, default=860_000, help="likewise (default 860,000)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each reader (default 3)")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        path = args.file or Path(directory) / "annotations.json"
        if args.file is None:
            maker = context.Process(target=generated, args=(path, args.images, args.boxes))
            maker.start()  # elsewhere, since a process begins with the peak memory of the one that starts it
            maker.join()
        print(f"{path.stat().st_size / 2**20:.0f} MiB\n")
        print("| reader | CPU s, each round | peak memory, MiB |\n|---|---|---|")
        seconds: dict[str, list[float]] = {"json.load": [], "mgdet": []}
        peak: dict[str, float] = {}
        for _ in range(args.rounds):
            for reader, taken in seconds.items():
                out: multiprocessing.Queue[tuple[float, float]] = context.Queue()
                process = context.Process(target=measured, args=(reader, path, out))
                process.start()
                one, peak[reader] = out.get()
                process.join()
                taken.append(one)
        for reader, taken in seconds.items():
            print(f"| {reader} | {', '.join(f'{one:.1f}' for one in taken)} | {peak[reader]:.0f} |")
        ratios = [mine / theirs for theirs, mine in zip(*seconds.values(), strict=True)]
        print(f"\nmedian ratio of the seconds {statistics.median(ratios):.2f}, of the memory ", end="")
        print(f"{peak['mgdet'] / peak['json.load']:.2f}")


if __name__ == "__main__":
    main()
