"""Import annotations of any format, with their images, as a data set of mgdet."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mgdet.data.decode import decode_image
from mgdet.data.formats.base import AnnotatedImage, AnnotatedObject, AnnotatedSplit, DataFormat
from mgdet.data.schema import Changes, DroppedBox, Manifest, Progress, Record
from mgdet.data.writer import write_dataset
from mgdet.errors import DataError
from mgdet.files import read_regular
from mgdet.storage import is_taken, locate
from mgdet.structures import Category
from mgdet.text import first_of

logger = logging.getLogger(__name__)

MOST_WORKERS = 256

LISTED = 1000
"""How many dropped boxes, and how many dropped images, the manifest names at most; it counts all of them."""
BORDER_TOLERANCE = 1e-3
"""Pixels by which a box may cross the image's border before it is clipped: less is taken for rounding and kept."""

Size = tuple[int, int]
"""(height, width) in pixels."""


class _Source(NamedTuple):
    split: str
    content: AnnotatedSplit
    sizes: list[Size | None]  # of the decoded file of each image; None: it cannot be used

    def path(self, image: AnnotatedImage) -> Path:
        return self.content.directory / image.file_name

    def images(self) -> Iterator[tuple[AnnotatedImage, Size | None]]:
        return zip(self.content.images, self.sizes, strict=True)


class _Log:
    """Counts and names everything that the import changes or drops."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.boxes: list[DroppedBox] = []
        self.images: list[str] = []
        self.resized: list[str] = []

    def drop(self, kind: str, split: str, image: AnnotatedImage, thing: AnnotatedObject, reason: str) -> None:
        self.counts[kind] += 1
        if len(self.boxes) < LISTED:
            reason = f"bbox {list(thing.box)} {reason}"
            self.boxes.append(
                DroppedBox(split=split, image=image.file_name, image_id=image.id, annotation=thing.id, reason=reason)
            )

    def changes(self) -> Changes:
        return Changes(**self.counts, dropped_boxes=tuple(self.boxes), dropped_images=tuple(self.images[:LISTED]))


def import_annotations(
    uri: str | os.PathLike[str],
    data_format: DataFormat,
    splits: Sequence[tuple[str, Sequence[str | os.PathLike[str]]]],
    *,
    name: str | None = None,
    overwrite: bool = False,
    skip_bad_images: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Convert annotations and their images to a data set at `uri`.

    Category ids become `0..C-1` in order of id. Crowd flags, areas and images without boxes are kept. Boxes without
    area or outside their image are dropped, boxes over the border are clipped, all counted and listed in the manifest.
    Every image is decoded before anything is written; its size is the file's (see `mgdet.data.decode` for EXIF).

    Args:
        uri: destination.
        data_format: reads the annotations.
        splits: the name of each split and its paths, one for each of `data_format.places`.
        name: of the data set; by default the last part of `uri`.
        overwrite: replace a data set at `uri`.
        skip_bad_images: leave out images that are missing or undecodable instead of refusing them all.
        workers: decoding threads, by default one per CPU that this process may use.
        progress: called now and then with what is being done, how many images are done, and of how many.

    Raises:
        DataError: the destination is taken, annotations are malformed, the splits disagree about the categories, or
            images are missing or undecodable.
    """
    _check_splits(data_format, splits)
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise DataError(f"There cannot be {workers} decoding threads; allowed are 1 to {MOST_WORKERS}.")
    if not overwrite and is_taken(uri):  # before minutes of decoding; the writer looks again
        raise DataError(f"{uri} exists already and nothing was written. Choose another place or pass --overwrite.")
    contents = [data_format.read([Path(place) for place in places]) for _, places in splits]
    categories = _common_categories(contents)
    log = _Log()
    sources = [
        _Source(split, content, _verify(split, content, workers, progress))
        for (split, _), content in zip(splits, contents, strict=True)
    ]
    _refuse_bad_images(sources, log, skip_bad_images)
    labels = {category.name: label for label, category in enumerate(categories)}
    manifest = write_dataset(
        uri,
        {source.split: _records(source, data_format, labels, log, progress) for source in sources},
        name=name or locate(uri).name,
        categories=categories,
        changes=log.changes,
        source={
            "importer": data_format.name,
            "annotations": {source.split: source.content.annotations.name for source in sources},
        },
        overwrite=overwrite,
    )
    _report(manifest.changes, log.resized)
    return manifest


def _check_splits(data_format: DataFormat, splits: Sequence[tuple[str, Sequence[str | os.PathLike[str]]]]) -> None:
    expected = data_format.places
    if not splits:
        raise DataError(f"No splits were given. Give at least one: its name, then {', '.join(expected)}.")
    repeated = [s for s, n in Counter(split for split, _ in splits).items() if n > 1]
    if repeated:
        raise DataError(f"Split {repeated[0]!r} is given twice. Give each split its own name.")
    for split, places in splits:
        if isinstance(places, str | os.PathLike) or len(places) != len(expected):
            raise DataError(
                f"Split {split!r} of {data_format.name} is {places!r}: expected {len(expected)} in a list: "
                f"{', '.join(expected)}."
            )


def _common_categories(contents: Sequence[AnnotatedSplit]) -> list[Category]:
    """The classes in order of their id: what the splits list and agree upon, or else what their objects name."""
    used = [{thing.category for image in content.images for thing in image.objects} for content in contents]
    listed = [(content, content.categories) for content in contents if content.categories is not None]
    if listed:
        first, known = listed[0]
        for content, categories in listed[1:]:
            _refuse_difference(first.annotations, known, content.annotations, categories)
    else:
        known = dict(enumerate(sorted(set().union(*used)), start=1))
    for content, names in zip(contents, used, strict=True):
        if unknown := names - set(known.values()):
            raise DataError(
                f"{content.annotations} has objects of the class {min(unknown)!r}; the list of classes has "
                f"{first_of(list(known.values()))}. Correct either."
            )
    if not known:
        raise DataError(f"{contents[0].annotations}: no object and no class, there is nothing to learn.")
    return [Category(i, known[i]) for i in sorted(known)]


def _refuse_difference(place: Path, known: Mapping[int, str], other: Path, categories: Mapping[int, str]) -> None:
    here, there = (set(each.items()) for each in (known, categories))
    if here != there:
        raise DataError(
            f"The splits have different categories: only in {place}: {sorted(here - there) or 'none'}; only in "
            f"{other}: {sorted(there - here) or 'none'}. Every split must list the same ids and names, also of classes "
            "without boxes. Correct the files."
        )


def _verify(split: str, content: AnnotatedSplit, workers: int | None, progress: Progress | None) -> list[Size | None]:
    """Decode every image of a split: its size, None where it cannot be decoded."""
    root, total = content.directory, len(content.images)
    if not root.is_dir():
        raise DataError(f"The image directory of split {split!r}, {root}, does not exist. Correct the path.")
    repeated = [i for i, n in Counter(image.id for image in content.images).items() if n > 1]
    if repeated:
        raise DataError(f"{content.annotations}: image id {repeated[0]} is used twice. Ids are unique within a split.")
    sizes = []
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        results = pool.map(lambda image: _decoded_size(root / image.file_name), content.images)
        for done, size in enumerate(results, start=1):
            sizes.append(size)
            if progress is not None and (done % 100 == 0 or done == total):
                progress(f"checking {split}", done, total)
    return sizes


def _decoded_size(path: Path) -> Size | None:
    try:
        image = decode_image(read_regular(path), str(path))
    except (DataError, OSError, ValueError) as error:
        logger.debug("%s", error)
        return None
    return image.shape[1], image.shape[2]


def _refuse_bad_images(sources: Sequence[_Source], log: _Log, skip: bool) -> None:
    bad = [source.path(image) for source in sources for image, size in source.images() if size is None]
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


def _records(
    source: _Source, data_format: DataFormat, labels: dict[str, int], log: _Log, progress: Progress | None
) -> Iterator[Record]:
    total = len(source.content.images)
    for done, (image, size) in enumerate(source.images(), start=1):
        if size is not None:
            yield _record(source, image, size, data_format, labels, log)
        if progress is not None and (done % 100 == 0 or done == total):
            progress(f"writing {source.split}", done, total)


def _record(
    source: _Source, image: AnnotatedImage, size: Size, data_format: DataFormat, labels: dict[str, int], log: _Log
) -> Record:
    height, width = size
    if image.size is not None and image.size != size:
        log.counts["resized"] += 1
        log.resized.append(f"{image.file_name}: {width} x {height}, annotated {image.size[1]} x {image.size[0]}")
    kept: list[tuple[NDArray[np.float64], AnnotatedObject]] = []
    for thing in image.objects:
        box = _fitted(data_format, thing, image, source.split, size, log)
        if box is not None:
            kept.append((box, thing))
            log.counts["filled_iscrowd"] += data_format.says_crowd_and_area and thing.iscrowd is None
            log.counts["filled_area"] += data_format.says_crowd_and_area and thing.area is None
    areas = [thing.area if thing.area is not None else float(np.prod(box[2:] - box[:2])) for box, thing in kept]
    return Record(
        image_id=image.id,
        file_name=image.file_name,
        width=width,
        height=height,
        image=_read(source.path(image)),
        boxes=np.array([box for box, _ in kept], dtype=np.float64).reshape(-1, 4),
        labels=np.array([labels[thing.category] for _, thing in kept], dtype=np.int32),
        iscrowd=np.array([bool(thing.iscrowd) for _, thing in kept], dtype=np.bool_),
        area=np.array(areas, dtype=np.float64),
    )


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise DataError(f"{path} was readable a moment ago and is not now: {error}. Start again.") from error


def _fitted(
    data_format: DataFormat, thing: AnnotatedObject, image: AnnotatedImage, split: str, size: Size, log: _Log
) -> NDArray[np.float64] | None:
    """The corners [x1, y1, x2, y2] of the object's box within the image; None, noted in `log`, if nothing is left."""
    corners = np.array(data_format.corners(thing.box, size), dtype=np.float64)
    if not (np.isfinite(corners).all() and corners[2] > corners[0] and corners[3] > corners[1]):
        log.drop("degenerate", split, image, thing, "has no area")
        return None
    limit = np.array([size[1], size[0]] * 2, dtype=np.float64)
    clipped = corners.clip(0, limit)
    if not (clipped[2:] - clipped[:2] > BORDER_TOLERANCE).all() and not np.array_equal(clipped, corners):
        log.drop("outside", split, image, thing, f"is outside the image of {size[1]} x {size[0]} pixels")
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
