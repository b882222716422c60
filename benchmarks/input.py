"""Reading training images beside torchvision's reference recipe: the same files, size and flips, in one process.

    python benchmarks/input.py                                        # 200 generated JPEGs of 640 x 480, to 320 x 320
    python benchmarks/input.py --coco BCCD/train.json BCCD/images --size 320

Both take turns, and the time is that of the processor on one thread, so that other work on the machine changes seconds
but hardly ratios. The reference is `CocoDetection` with transforms v2, as in torchvision's references/detection. Prints
images per second of each round, the median ratio, where the time of an image goes, and the memory that an epoch over
ten times as many images takes.
"""

import argparse
import contextlib
import io
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from mgdet.data import CocoSplit, ShardedDataset, import_coco
from mgdet.data.collate import Collate
from mgdet.data.dataset import CACHE_BYTES
from mgdet.data.decode import decode_image
from mgdet.data.loader import LoaderConfig, TrainImages, build_train_loader
from mgdet.data.order import SampleKey
from mgdet.data.transforms import TrainTransform, TransformConfig

BATCH = 8


def generated(directory: Path, images: int, height: int = 480, width: int = 640) -> tuple[Path, Path]:
    """JPEGs as compressible as photographs are, with 12 boxes each: the annotation file and the directory."""
    rng, content = np.random.default_rng(0), {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (directory / "images").mkdir()
    tables: dict[str, list[Any]] = content
    for number in range(1, images + 1):
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        pixels = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(directory / "images" / f"{number}.jpg", quality=90)
        tables["images"].append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
        for _ in range(12):
            w, h = rng.integers(16, 120, 2).tolist()
            box = [*(rng.random(2) * (width - w, height - h)).tolist(), w, h]
            shown = {"id": len(tables["annotations"]) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            tables["annotations"].append({**shown, "bbox": box, "area": w * h})
    (directory / "annotations.json").write_text(json.dumps(content))
    return directory / "annotations.json", directory / "images"


def torchvisions(annotations: Path, images: Path, size: int) -> Iterable[Any]:
    """The loader of torchvision's recipe."""
    steps = [v2.ToImage(), v2.Resize((size, size), antialias=True), v2.RandomHorizontalFlip(0.5)]
    steps += [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools says what it does
        source = CocoDetection(str(images), str(annotations), transforms=v2.Compose(steps))
    kept = [row for row, image in enumerate(source.ids) if source.coco.getAnnIds(image)]  # it fails on empty ones
    wrapped = wrap_dataset_for_transforms_v2(source, target_keys=("boxes", "labels", "image_id"))
    order = torch.utils.data.SubsetRandomSampler(kept)

    def collate(samples: list[Any]) -> tuple[torch.Tensor, list[Any]]:
        return torch.stack([image for image, _ in samples]), [target for _, target in samples]

    return torch.utils.data.DataLoader(wrapped, batch_size=BATCH, sampler=order, collate_fn=collate)


def ours(prepared: Path, size: int, cache_bytes: int = CACHE_BYTES) -> Iterable[Any]:
    """The loader of a training, which decodes in the training's own process."""
    source = ShardedDataset(str(prepared), "train", cache_bytes)
    loader = build_train_loader(source, transform(size), LoaderConfig(workers=0), batch_size=BATCH, seed=0)
    loader.start(0)
    return loader


def transform(size: int) -> TransformConfig:
    return TransformConfig.model_validate({"resize": {"name": "fixed", "height": size, "width": size}})


def images_per_second(loader: Iterable[Any]) -> float:
    """Of processor time, without the first batch."""
    begin, batches = 0.0, -1
    for _ in loader:
        batches += 1
        if not batches:
            begin = time.process_time()
    return batches * BATCH / (time.process_time() - begin)


def parts(prepared: Path, size: int) -> dict[str, float]:
    """Milliseconds of processor time that each part of an image takes."""
    source, config = ShardedDataset(str(prepared), "train"), transform(size)
    change, whole, collate = TrainTransform(config, 0), TrainImages(source, config, 0), Collate(32)
    rows = range(min(200, len(source)))
    spent: dict[str, float] = {}

    def timed(part: str, action: Callable[..., Any], *given: Any, **named: Any) -> Any:
        begin = time.process_time()
        found = action(*given, **named)
        spent[part] = spent.get(part, 0.0) + time.process_time() - begin
        return found

    for row in rows:
        data = timed("read from the shard", source.read_image, row)
        pixels = timed("decode", decode_image, data)
        found = source.annotation(row)
        boxes, labels = torch.from_numpy(found.boxes).float(), torch.from_numpy(found.labels)
        timed("resize alone", v2.functional.resize_image, pixels, [size, size])
        timed("resize, flips and boxes", change, pixels, boxes, labels, epoch=0, position=row)
        timed("all of a sample", whole.__getitem__, SampleKey(0, row))
    samples = [whole[SampleKey(0, row)] for row in rows[:BATCH]]
    for _ in range(len(rows) // BATCH):
        timed("collate", collate, samples)
    return {part: 1000 * seconds / len(rows) for part, seconds in spent.items()}


def growth(prepared: Path, size: int, times: int = 10) -> tuple[float, float]:
    """MiB that an epoch over all images adds to this process, and one over `times` as many, with a cache of 8 MiB."""
    import pyarrow.parquet as pq

    process, found = psutil.Process(), []
    for count in (1, times):
        with tempfile.TemporaryDirectory() as directory:
            source = ShardedDataset(str(prepared), "train")
            table = pq.read_table(next(Path(prepared, "train").glob("*.parquet")))
            records = (row for _ in range(count) for row in table.to_pylist())
            write(Path(directory), records, source)
            before = process.memory_info().rss
            for _ in ours(Path(directory), size, 8 * 2**20):
                pass
            found.append((process.memory_info().rss - before) / 2**20)
    return found[0], found[1]


def write(directory: Path, rows: Iterable[dict[str, Any]], like: ShardedDataset) -> None:
    """A data set of these rows, numbered anew."""
    from mgdet.data.schema import Record
    from mgdet.data.writer import write_dataset

    def records() -> Iterable[Record]:
        for number, row in enumerate(rows, start=1):
            arrays = {
                "boxes": np.array(row["boxes"], dtype=np.float64).reshape(-1, 4),
                "labels": np.array(row["labels"], dtype=np.int32),
                "iscrowd": np.array(row["iscrowd"], dtype=np.bool_),
                "area": np.array(row["area"], dtype=np.float64),
            }
            yield Record(**{**row, **arrays, "image_id": number})

    write_dataset(directory, {"train": records()}, name="copies", categories=like.categories, overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--coco", nargs=2, type=Path, metavar=("ANNOTATIONS", "IMAGES"), help="instead of generated ones"
    )
    parser.add_argument("--images", type=int, default=200, help="that are generated (default 200)")
    parser.add_argument("--size", type=int, default=320, help="of the network's input (default 320)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each loader (default 5)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("mgdet").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        annotations, images = args.coco or generated(Path(directory), args.images)
        prepared = Path(directory) / "prepared"
        import_coco(prepared, [CocoSplit("train", annotations, images)])
        ratios = []
        print("| round | torchvision, images/s | mgdet, images/s | ratio |\n|---|---|---|---|")
        for number in range(1, args.rounds + 1):
            theirs = images_per_second(torchvisions(annotations, images, args.size))
            mine = images_per_second(ours(prepared, args.size))
            ratios.append(mine / theirs)
            print(f"| {number} | {theirs:.0f} | {mine:.0f} | {ratios[-1]:.2f} |", flush=True)
        print(f"\nmedian ratio {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}\n")
        print("| part of an image | ms |\n|---|---|")
        for part, milliseconds in parts(prepared, args.size).items():
            print(f"| {part} | {milliseconds:.2f} |")
        once, ten_times = growth(prepared, args.size)
        print(f"\nan epoch adds {once:.0f} MiB to the process, one over ten times as many images {ten_times:.0f} MiB")
        print(f"(with a cache of 8 MiB of encoded images; data.loader.cache_mib is {CACHE_BYTES // 2**20} otherwise)")


if __name__ == "__main__":
    main()
