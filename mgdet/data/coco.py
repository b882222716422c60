"""Import annotation files in COCO's JSON format, with their images, as a data set of mgdet."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mgdet.data.coco_json import CocoFile, CocoImage, CocoObject, read_coco_json
from mgdet.data.decode import decode_image
from mgdet.data.schema import Changes, DroppedBox, Manifest, Progress, Record
from mgdet.data.writer import write_dataset
from mgdet.errors import DataError
from mgdet.storage import locate
from mgdet.structures import Category
from mgdet.text import first_of

logger = logging.getLogger(__name__)

LISTED = 1000
"""How many dropped boxes, and how many dropped images, the manifest names at most; it counts all of them."""
BORDER_TOLERANCE = 1e-3
"""Pixels by which a box may cross the image's border before it is clipped: less is taken for rounding and kept."""


class CocoSplit(NamedTuple):
    """The source of one split."""

    name: str  # of the split, such as "train"
    annotations: str | os.PathLike[str]  # a file in COCO's JSON format
    images: str | os.PathLike[str]  # the directory to which its `file_name`s are relative


class _Source(NamedTuple):
    split: str
    images: Path
    content: CocoFile
    sizes: dict[int, tuple[int, int]]  # image id -> (height, width) of the decoded file; bad images are absent


class _Log:
    """Counts and names everything that the import changes or drops."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.boxes: list[DroppedBox] = []
        self.images: list[str] = []
        self.resized: list[str] = []

    def drop(self, kind: str, split: str, image: CocoImage, thing: CocoObject, reason: str) -> None:
        self.counts[kind] += 1
        if len(self.boxes) < LISTED:
            self.boxes.append(
                DroppedBox(split=split, image=image.file_name, image_id=image.id, annotation=thing.id, reason=reason)
            )

    def changes(self) -> Changes:
        return Changes(**self.counts, dropped_boxes=tuple(self.boxes), dropped_images=tuple(self.images[:LISTED]))


def import_coco(
    uri: str | os.PathLike[str],
    splits: Sequence[CocoSplit],
    *,
    name: str | None = None,
    overwrite: bool = False,
    skip_bad_images: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Convert COCO annotation files and their images to a data set at `uri`.

    Category ids become `0..C-1` in order of id. Crowd flags, areas and images without boxes are kept. Boxes without
    area or outside their image are dropped, boxes over the border are clipped, all counted and listed in the manifest.
    Every image is decoded before anything is written; its size is the file's (see `mgdet.data.decode` for EXIF).

    Args:
        uri: destination.
        splits: the annotation file and image directory of each split.
        name: of the data set; by default the last part of `uri`.
        overwrite: replace a data set at `uri`.
        skip_bad_images: leave out images that are missing or undecodable instead of refusing them all.
        workers: decoding threads, by default one per CPU that this process may use.
        progress: called now and then with what is being done, how many images are done, and of how many.

    Raises:
        DataError: the destination is taken, an annotation file is malformed, the splits disagree about the categories,
            or images are missing or undecodable.
    """
    if not splits:
        raise DataError("No splits were given. Give at least one: a name, an annotation file and an image directory.")
    repeated = [s for s, n in Counter(split.name for split in splits).items() if n > 1]
    if repeated:
        raise DataError(f"Split {repeated[0]!r} is given twice. Give each split its own name.")
    if not overwrite and not locate(uri).is_empty():  # before minutes of decoding; the writer looks again
        raise DataError(f"{uri} exists already and nothing was written. Choose another place or pass --overwrite.")
    contents = [read_coco_json(split.annotations) for split in splits]
    categories = _common_categories(splits, contents)
    log = _Log()
    sources = [
        _Source(s.name, Path(s.images), content, _verify(s, content, workers, progress))
        for s, content in zip(splits, contents, strict=True)
    ]
    _refuse_bad_images(sources, log, skip_bad_images)
    labels = {category.id: label for label, category in enumerate(categories)}
    manifest = write_dataset(
        uri,
        {source.split: _records(source, labels, log, progress) for source in sources},
        name=name or locate(uri).name,
        categories=categories,
        changes=log.changes,
        source={"importer": "coco", "annotations": {s.name: Path(s.annotations).name for s in splits}},
        overwrite=overwrite,
    )
    _report(manifest.changes, log.resized)
    return manifest


def _common_categories(splits: Sequence[CocoSplit], contents: Sequence[CocoFile]) -> list[Category]:
    first = contents[0].categories
    for split, content in zip(splits[1:], contents[1:], strict=True):
        here, there = (set(categories.items()) for categories in (first, content.categories))
        if here != there:
            raise DataError(
                f"The splits have different categories: only in {splits[0].annotations}: "
                f"{sorted(here - there) or 'none'}; only in {split.annotations}: {sorted(there - here) or 'none'}. "
                "Every split must list the same ids and names, also of classes without boxes. Correct the files."
            )
    return [Category(i, first[i]) for i in sorted(first)]


def _verify(
    split: CocoSplit, content: CocoFile, workers: int | None, progress: Progress | None
) -> dict[int, tuple[int, int]]:
    """Decode every image of a split: (height, width) by image id, without the images that cannot be decoded."""
    root = Path(split.images)
    if not root.is_dir():
        raise DataError(f"The image directory of split {split.name!r}, {root}, does not exist. Correct the path.")
    sizes = {}
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        results = pool.map(lambda image: _decoded_size(root / image.file_name), content.images)
        for done, (image, size) in enumerate(zip(content.images, results, strict=True), start=1):
            if size is not None:
                sizes[image.id] = size
            if progress is not None and (done % 100 == 0 or done == len(content.images)):
                progress(f"checking {split.name}", done, len(content.images))
    return sizes


def _decoded_size(path: Path) -> tuple[int, int] | None:
    try:
        image = decode_image(path.read_bytes(), str(path))
    except (DataError, OSError, ValueError) as error:
        logger.debug("%s", error)
        return None
    return image.shape[1], image.shape[2]


def _refuse_bad_images(sources: Sequence[_Source], log: _Log, skip: bool) -> None:
    bad = [
        source.images / image.file_name
        for source in sources
        for image in source.content.images
        if image.id not in source.sizes
    ]
    log.counts["bad_images"] = len(bad)
    log.images = [path.name for path in bad]
    if not bad:
        return
    missing = sum(not path.exists() for path in bad)
    counts = f"{missing} missing, {len(bad) - missing} undecodable"
    text = f"{len(bad)} image files cannot be used ({counts}):\n  " + first_of(bad, separator="\n  ")
    if not skip:
        raise DataError(f"{text}\nNothing was written. Correct the files or the directory, or pass --skip-bad-images.")
    logger.warning("Left out: %s", text)


def _records(source: _Source, labels: dict[int, int], log: _Log, progress: Progress | None) -> Iterator[Record]:
    total = len(source.content.images)
    for done, image in enumerate(source.content.images, start=1):
        if image.id in source.sizes:
            yield _record(source, image, labels, log)
        if progress is not None and (done % 100 == 0 or done == total):
            progress(f"writing {source.split}", done, total)


def _record(source: _Source, image: CocoImage, labels: dict[int, int], log: _Log) -> Record:
    height, width = source.sizes[image.id]
    path = source.images / image.file_name
    if image.size is not None and image.size != (height, width):
        log.counts["resized"] += 1
        log.resized.append(f"{image.file_name}: {width} x {height}, annotated {image.size[1]} x {image.size[0]}")
    kept: list[tuple[NDArray[np.float64], CocoObject]] = []
    for thing in source.content.objects.get(image.id, ()):
        box = _fitted(thing, image, source.split, (height, width), log)
        if box is not None:
            kept.append((box, thing))
            log.counts["filled_iscrowd"] += thing.iscrowd is None
            log.counts["filled_area"] += thing.area is None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} was readable a moment ago and is not now: {error}. Start again.") from error
    areas = [thing.area if thing.area is not None else float(np.prod(box[2:] - box[:2])) for box, thing in kept]
    return Record(
        image_id=image.id,
        file_name=image.file_name,
        width=width,
        height=height,
        image=data,
        boxes=np.array([box for box, _ in kept], dtype=np.float64).reshape(-1, 4),
        labels=np.array([labels[thing.category_id] for _, thing in kept], dtype=np.int32),
        iscrowd=np.array([bool(thing.iscrowd) for _, thing in kept], dtype=np.bool_),
        area=np.array(areas, dtype=np.float64),
    )


def _fitted(
    thing: CocoObject, image: CocoImage, split: str, size: tuple[int, int], log: _Log
) -> NDArray[np.float64] | None:
    """The corners [x1, y1, x2, y2] of the object's box within the image; None, noted in `log`, if nothing is left."""
    x, y, w, h = thing.bbox
    corners = np.array([x, y, x + w, y + h])
    if not (np.isfinite(corners).all() and w > 0 and h > 0 and corners[2] > x and corners[3] > y):
        log.drop("degenerate", split, image, thing, f"bbox {list(thing.bbox)} has no area")
        return None
    limit = np.array([size[1], size[0]] * 2, dtype=np.float64)
    clipped = corners.clip(0, limit)
    if not (clipped[2:] - clipped[:2] > BORDER_TOLERANCE).all() and not np.array_equal(clipped, corners):
        reason = f"bbox {list(thing.bbox)} is outside the image of {size[1]} x {size[0]} pixels"
        log.drop("outside", split, image, thing, reason)
        return None
    if np.abs(clipped - corners).max() <= BORDER_TOLERANCE:
        return corners
    log.counts["clipped"] += 1
    return clipped


def _report(changes: Changes, resized: list[str]) -> None:
    if changes.filled_iscrowd or changes.filled_area:
        logger.warning(
            "Filled in what annotations lack: iscrowd=0 in %d, area=width*height in %d",
            changes.filled_iscrowd,
            changes.filled_area,
        )
    if changes.degenerate or changes.outside or changes.clipped:
        logger.warning(
            "Boxes: %d without area dropped, %d outside their image dropped, %d clipped at the border",
            changes.degenerate,
            changes.outside,
            changes.clipped,
        )
    if changes.resized:
        logger.warning(
            "%d images have another size than their annotations say. The file's size is kept; check that the boxes fit "
            "(they must refer to the picture with its EXIF orientation applied): %s",
            changes.resized,
            first_of(resized, separator="; "),
        )
