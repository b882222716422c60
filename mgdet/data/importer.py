"""Import annotations of any format, with their images, as a data set of mgdet."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, count
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
from mgdet.data.places import read_split
from mgdet.data.rows import Row, pictured
from mgdet.data.schema import Manifest, Progress, Record
from mgdet.data.tiles import Cutter
from mgdet.data.verify import Listed, Source, Usable, list_files, refuse_unusable, verify
from mgdet.data.writer import write_dataset
from mgdet.errors import DataError
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
        splits: the name of each split and its paths or URIs, one for each of `data_format.places`; several entries of
            one name make one split, see `united`.
        name: of the data set; by default the last part of `uri`.
        overwrite: replace a data set at `uri`.
        workers: decoding threads, by default one per CPU that this process may use.
        progress: called now and then with what is being done, how many images are done, and of how many.
        choices: see `mgdet.data.choices.Choices`.

    Raises:
        DataError: the destination is taken, annotations are malformed, the splits disagree about the categories,
            images are missing or undecodable, or boxes are certainly in another unit or order than the format's.
    """
    check_workers(workers)
    if not overwrite and is_taken(uri):  # before minutes of decoding; the writer looks again
        raise DataError(f"{uri} exists already and nothing was written. Choose another place or pass --overwrite.")
    begun = Import(data_format, splits, Choices(**choices))
    sources = [verify(listed, begun.choices.max_pixels, workers, progress) for listed in begun.listed]
    records = {
        source.split: pictured(rows, source.content.directory, begun.choices.max_pixels)
        for source, rows in zip(sources, begun.rows(sources, progress), strict=True)
    }
    manifest = write_dataset(uri, records, name=name or locate(uri).name, overwrite=overwrite, **begun.described())
    del sources, records
    begun.report(uri)
    return manifest


class Import:
    """An import whose annotations are read and whose image files are found, and not decoded yet.

    `rows` gives what is stored of the images once they are decoded; when they have all been taken, `described` says
    what the manifest is to say.

    Args:
        data_format: reads the annotations.
        splits: as for `import_annotations`.
        choices: what it does only when asked to.

    Raises:
        DataError: annotations are malformed, the splits disagree about the categories, or there is no image directory.
    """

    def __init__(
        self,
        data_format: DataFormat,
        splits: Sequence[tuple[str, Sequence[str | os.PathLike[str]]]],
        choices: Choices,
    ) -> None:
        check_splits(data_format, splits, several=True)
        self.data_format, self.choices, self.ledger = data_format, choices, Ledger()
        contents = regrouped([read_split(data_format, places) for _, places in splits], choices)
        self.categories = common_categories(contents)
        if choices.drop_empty_classes:
            used = {thing.category for content in contents for image in content.images for thing in image.objects}
            self.categories = [each for each in self.categories if each.name in used] or self.categories
        self._parents = {name: above for content in contents for name, above in content.parents.items()}
        parts: dict[str, list[AnnotatedSplit]] = {}
        for (split, _), content in zip(splits, contents, strict=True):
            parts.setdefault(split, []).append(content)
        self.listed = [list_files(split, united(split, each), choices, self.ledger) for split, each in parts.items()]
        self._cutter = None
        if choices.tile:
            self._cutter = Cutter(choices.tile, choices.overlap, choices.empty_tiles_dropped(list(parts)))
        self._doubts: list[str] = []

    def rows(self, sources: Sequence[Source], progress: Progress | None = None) -> list[Iterator[Row]]:
        """The rows of each split, made as they are taken.

        Raises:
            DataError: images cannot be used, or boxes are certainly in another unit or order than the format's.
        """
        refuse_unusable(sources, self.ledger, self.choices.skip_bad_images)
        frames = [frames_of_split(source, self.data_format, self.ledger) for source in sources]
        self._doubts += [
            text
            for source, of_source in zip(sources, frames, strict=True)
            for text in check_units(source, self.data_format, of_source, self.choices, self.ledger)
        ]
        self._doubts += _in_several_splits(self.listed, sources)
        return [self._rows(source, each, progress) for source, each in zip(sources, frames, strict=True)]

    def described(self) -> dict[str, Any]:
        """Arguments of `write_dataset`, or of `write_manifest`."""
        return {
            "categories": self.categories,
            "changes": self.ledger.changes,
            "source": {
                "importer": self.data_format.name,
                "annotations": {listed.split: listed.content.annotations.name for listed in self.listed},
            },
            "finish": None if self._cutter is None else self._cutter.finish,
        }

    def report(self, uri: str | os.PathLike[str]) -> None:
        """Warn of what was changed, of what is doubtful, and of what the written data set at `uri` shows.

        The annotations are let go: the data set, with its own, is opened in their place.
        """
        self.ledger.report(sum(len(image.objects) for listed in self.listed for image in listed.images))
        splits = [listed.split for listed in self.listed]
        self.listed.clear()
        datasets = {split: ShardedDataset(os.fspath(uri), split) for split in splits}
        for text in (*self._doubts, *examine(datasets, parents=self._parents).lines):
            logger.warning("%s", text)

    def _rows(self, source: Source, frames: Sequence[Frame], progress: Progress | None) -> Iterator[Row]:
        rows = self._uncut(source, frames, progress)
        return rows if self._cutter is None else self._cutter.cut(source.split, rows)

    def _uncut(self, source: Source, frames: Sequence[Frame], progress: Progress | None) -> Iterator[Row]:
        labels = {category.name: label for label, category in enumerate(self.categories)}
        total = len(source.images)
        for done, ((image, file), frame) in enumerate(zip(source.usable(), frames, strict=True), start=1):
            yield Row(self._record(source, image, file, frame, labels), file.name)
            if progress is not None and done % 100 == 0 and done != total:
                progress(f"writing {source.split}", done, total)
        if progress is not None:
            progress(f"writing {source.split}", total, total)

    def _record(
        self, source: Source, image: AnnotatedImage, file: Usable, frame: Frame, labels: dict[str, int]
    ) -> Record:
        """What is stored of an image but its picture."""
        if file.depth is not None:
            self.ledger.note("deep", f"{image.file_name} uses {file.depth.used} of {file.depth.stored} bits")
            if file.depth.dark:
                self.ledger.note("dark", image.file_name)
        kept = fit_objects(source, image, file, frame, self.data_format, self.choices, self.ledger)
        areas = [thing.area if thing.area is not None else float(np.prod(box[2:] - box[:2])) for box, thing in kept]
        return Record(
            image_id=image.id,
            file_name=image.file_name,
            width=file.size[1],
            height=file.size[0],
            image=b"",
            boxes=np.array([box for box, _ in kept], dtype=np.float64).reshape(-1, 4),
            labels=np.array([labels[thing.category] for _, thing in kept], dtype=np.int32),
            iscrowd=np.array([bool(thing.iscrowd) for _, thing in kept], dtype=np.bool_),
            area=np.array(areas, dtype=np.float64),
        )


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


def _in_several_splits(listed: Sequence[Listed], sources: Sequence[Source]) -> list[str]:
    """A warning for each two splits that have files in common."""
    files = {
        source.split: {each.files.identity(file.name) for _, file in source.usable()}
        for each, source in zip(listed, sources, strict=True)
    }
    return [
        f"{len(common)} files are in both {one} and {other}, such as {first_of(sorted(common), 3)}: an evaluation on "
        "what was trained on tells nothing"
        for one, other in combinations(files, 2)
        if (common := files[one] & files[other])
    ]
