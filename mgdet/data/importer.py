"""Import annotations of any format, with their images, as a data set of mgdet."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np

from mgdet.data.choices import Choices
from mgdet.data.classes import common_categories, regrouped
from mgdet.data.dataset import ShardedDataset
from mgdet.data.findings import examine
from mgdet.data.fitting import check_units, fit_objects, frames_of_split
from mgdet.data.formats.base import AnnotatedImage, AnnotatedSplit, DataFormat
from mgdet.data.frames import Frame
from mgdet.data.ledger import Ledger
from mgdet.data.schema import Manifest, Progress, Record
from mgdet.data.tiles import Cutter
from mgdet.data.verify import Source, Usable, refuse_unusable, verify
from mgdet.data.writer import write_dataset
from mgdet.errors import DataError
from mgdet.files import read_regular
from mgdet.storage import is_taken, locate
from mgdet.text import first_of

logger = logging.getLogger(__name__)

MOST_WORKERS = 256


def import_annotations(
    uri: str | os.PathLike[str],
    data_format: DataFormat,
    splits: Sequence[tuple[str, Sequence[str | os.PathLike[str]]]],
    *,
    name: str | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    **choices: Any,
) -> Manifest:
    """Convert annotations and their images to a data set at `uri`.

    Category ids become `0..C-1` in order of id. Crowd flags, areas and images without boxes are kept. Boxes without
    area or outside their image are dropped, boxes over the border are clipped, and whatever else differs from the
    source (see `mgdet.data.schema.Changes`) is counted in the manifest and told once.
    Every image is decoded before anything is written; its size is the file's (see `mgdet.data.decode` for EXIF).

    Args:
        uri: destination.
        data_format: reads the annotations.
        splits: the name of each split and its paths, one for each of `data_format.places`; several entries of one name
            make one split, see `united`.
        name: of the data set; by default the last part of `uri`.
        overwrite: replace a data set at `uri`.
        workers: decoding threads, by default one per CPU that this process may use.
        progress: called now and then with what is being done, how many images are done, and of how many.
        choices: see `mgdet.data.choices.Choices`.

    Raises:
        DataError: the destination is taken, annotations are malformed, the splits disagree about the categories,
            images are missing or undecodable, or boxes are certainly in another unit or order than the format's.
    """
    chosen = Choices(**choices)
    check_splits(data_format, splits, several=True)
    check_workers(workers)
    if not overwrite and is_taken(uri):  # before minutes of decoding; the writer looks again
        raise DataError(f"{uri} exists already and nothing was written. Choose another place or pass --overwrite.")
    contents = regrouped([data_format.read([Path(place) for place in places]) for _, places in splits], chosen)
    categories = common_categories(contents)
    if chosen.drop_empty_classes:
        used = {thing.category for content in contents for image in content.images for thing in image.objects}
        categories = [category for category in categories if category.name in used] or categories
    ledger = Ledger()
    parts: dict[str, list[AnnotatedSplit]] = {}
    for (split, _), content in zip(splits, contents, strict=True):
        parts.setdefault(split, []).append(content)
    sources = [
        verify(split, united(split, of_split), chosen, ledger, workers, progress) for split, of_split in parts.items()
    ]
    refuse_unusable(sources, ledger, chosen.skip_bad_images)
    shared = _in_several_splits(sources)
    frames = [frames_of_split(source, data_format, ledger) for source in sources]
    doubts = [
        text for s, f in zip(sources, frames, strict=True) for text in check_units(s, data_format, f, chosen, ledger)
    ]
    labels = {category.name: label for label, category in enumerate(categories)}
    records = {
        source.split: _records(source, frames_of_source, data_format, labels, chosen, ledger, progress)
        for source, frames_of_source in zip(sources, frames, strict=True)
    }
    cutter = None
    if chosen.tile:
        cutter = Cutter(chosen.tile, chosen.overlap, chosen.empty_tiles_dropped(list(records)), chosen.max_pixels)
        records = {split: cutter.cut(split, rows) for split, rows in records.items()}
    manifest = write_dataset(
        uri,
        records,
        name=name or locate(uri).name,
        categories=categories,
        changes=ledger.changes,
        source={
            "importer": data_format.name,
            "annotations": {source.split: source.content.annotations.name for source in sources},
        },
        finish=None if cutter is None else cutter.finish,
        overwrite=overwrite,
    )
    ledger.report(sum(len(image.objects) for source in sources for image in source.images))
    parents = {name: above for content in contents for name, above in content.parents.items()}
    found = examine({s.split: ShardedDataset(os.fspath(uri), s.split) for s in sources}, parents=parents)
    for text in (*doubts, *shared, *found.lines):
        logger.warning("%s", text)
    return manifest


def check_workers(workers: int | None) -> None:
    """Check a number of decoding threads; None means the default. Raises `DataError`."""
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise DataError(f"There cannot be {workers} decoding threads; allowed are 1 to {MOST_WORKERS}.")


def united(split: str, parts: Sequence[AnnotatedSplit]) -> AnnotatedSplit:
    """What several files of annotations say of one image directory.

    An image of the same file name in several files is one image with the objects of all. An image whose id another one
    of an earlier file has gets a new id, which is told.

    Raises:
        DataError: the image directories differ.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if other := next((part for part in parts if part.directory != first.directory), None):
        raise DataError(
            f"Split {split!r} is given twice, with the image directories {first.directory} and {other.directory}. Give "
            "one directory that both lie in, and file names relative to it; or give each split its own name."
        )
    images: dict[str, AnnotatedImage] = {}
    taken: set[int] = set()
    renumbered: list[str] = []
    for part in parts:
        known, new = dict(images), []
        for image in part.images:
            if image.file_name in known:
                known[image.file_name].objects.extend(image.objects)
                continue
            number = image.id
            if number in taken:
                number = next(n for n in count(len(taken) + 1) if n not in taken)
                renumbered.append(image.file_name)
            new.append(image._replace(id=number, objects=list(image.objects)))
            taken.add(number)
        images |= {image.file_name: image for image in new}
    if renumbered:
        logger.warning(
            "%s: %d images have the id of an image of another file and get a new one: %s",
            *(split, len(renumbered), first_of(renumbered)),
        )
    return first._replace(
        annotations=first.annotations.parent / ", ".join(part.annotations.name for part in parts),
        images=list(images.values()),
        parents={name: above for part in parts for name, above in part.parents.items()},
    )


def check_splits(
    data_format: DataFormat, splits: Sequence[tuple[str, Sequence[str | os.PathLike[str]]]], several: bool = False
) -> None:
    """Check that the splits have the paths that the format takes, and each a name of its own.

    With `several` a name may stand again, with other paths. Raises `DataError`.
    """
    expected = data_format.places
    if not splits:
        raise DataError(f"No splits were given. Give at least one: its name, then {', '.join(expected)}.")
    keys = [(split, *(os.fspath(place) for place in places)) if several else (split,) for split, places in splits]
    repeated = [key[0] for key, n in Counter(keys).items() if n > 1]
    if repeated:
        raise DataError(f"Split {repeated[0]!r} is given twice. Give each split its own name.")
    for split, places in splits:
        if isinstance(places, str | os.PathLike) or len(places) != len(expected):
            raise DataError(
                f"Split {split!r} of {data_format.name} is {places!r}: expected {len(expected)} in a list: "
                f"{', '.join(expected)}."
            )


def _in_several_splits(sources: Sequence[Source]) -> list[str]:
    """A warning for each two splits that have files in common."""
    files = {source.split: {os.path.realpath(file.path) for _, file in source.usable()} for source in sources}
    return [
        f"{len(common)} files are in both {one} and {other}, such as {first_of(sorted(common), 3)}: an evaluation on "
        "what was trained on tells nothing"
        for one, other in combinations(files, 2)
        if (common := files[one] & files[other])
    ]


def _records(
    source: Source,
    frames: Sequence[Frame],
    data_format: DataFormat,
    labels: dict[str, int],
    choices: Choices,
    ledger: Ledger,
    progress: Progress | None,
) -> Iterator[Record]:
    total = len(source.images)
    for done, ((image, file), frame) in enumerate(zip(source.usable(), frames, strict=True), start=1):
        yield _record(source, image, file, frame, data_format, labels, choices, ledger)
        if progress is not None and done % 100 == 0 and done != total:
            progress(f"writing {source.split}", done, total)
    if progress is not None:
        progress(f"writing {source.split}", total, total)


def _record(
    source: Source,
    image: AnnotatedImage,
    file: Usable,
    frame: Frame,
    data_format: DataFormat,
    labels: dict[str, int],
    choices: Choices,
    ledger: Ledger,
) -> Record:
    if file.depth is not None:
        ledger.note("deep", f"{image.file_name} uses {file.depth.used} of {file.depth.stored} bits")
        if file.depth.dark:
            ledger.note("dark", image.file_name)
    kept = fit_objects(source, image, file, frame, data_format, choices, ledger)
    areas = [thing.area if thing.area is not None else float(np.prod(box[2:] - box[:2])) for box, thing in kept]
    return Record(
        image_id=image.id,
        file_name=image.file_name,
        width=file.size[1],
        height=file.size[0],
        image=_read(file.path),
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
