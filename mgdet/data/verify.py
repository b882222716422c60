"""The image files of a split before anything is written: each found by its name, decoded, and taken once."""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from mgdet.data.choices import Choices
from mgdet.data.decode import Decoded, decode_with_notes
from mgdet.data.depth import Depth
from mgdet.data.files import Found, ImageFiles, NotFound
from mgdet.data.formats.base import AnnotatedImage, AnnotatedSplit
from mgdet.data.ledger import Ledger
from mgdet.data.orientation import Size
from mgdet.data.schema import Progress
from mgdet.errors import DataError
from mgdet.files import read_regular
from mgdet.text import first_of

logger = logging.getLogger(__name__)


class Usable(NamedTuple):
    """An image file that was decoded."""

    path: Path
    size: Size
    """As it is seen upright."""
    stored: Size
    orientation: int
    depth: Depth | None
    seen: Any = None
    """What the `look` of `verify` said of it."""


class Unusable(NamedTuple):
    """An image that cannot be used, and why."""

    path: Path
    missing: bool
    reason: str


class Source(NamedTuple):
    """One split with its files."""

    split: str
    content: AnnotatedSplit
    images: list[AnnotatedImage]
    """Those to be written, each file once."""
    files: list[Usable | Unusable]

    def usable(self) -> Iterator[tuple[AnnotatedImage, Usable]]:
        """The images whose files can be used, in order."""
        for image, file in zip(self.images, self.files, strict=True):
            if isinstance(file, Usable):
                yield image, file


def verify(
    split: str,
    content: AnnotatedSplit,
    choices: Choices,
    ledger: Ledger,
    workers: int | None,
    progress: Progress | None,
    look: Callable[[bytes, Decoded], Any] | None = None,
) -> Source:
    """Find and decode every image of a split; `look` is called with each file and its pixels, in any thread.

    Raises:
        DataError: no image directory, or an image id used twice.
    """
    if not content.directory.is_dir():
        raise DataError(f"The image directory of split {split!r}, {content.directory}, does not exist. Correct it.")
    repeated = [i for i, n in Counter(image.id for image in content.images).items() if n > 1]
    if repeated:
        raise DataError(f"{content.annotations}: image id {repeated[0]} is used twice. Ids are unique within a split.")
    found = _find(content, ImageFiles(content.directory, choices.allow_outside))
    images, places = _each_once(content.images, found, choices, ledger)
    for image, place in zip(images, places, strict=True):
        if isinstance(place, Found) and place.read_as is not None:
            ledger.note("renamed", f"{image.file_name!r} is {place.read_as}")
    files: list[Usable | Unusable] = []
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        results = pool.map(lambda place: _decoded(place, choices.max_pixels, look), places)
        for done, file in enumerate(results, start=1):
            files.append(file)
            if progress is not None and (done % 100 == 0 or done == len(places)):
                progress(f"checking {split}", done, len(places))
    return Source(split, content, images, files)


def _find(content: AnnotatedSplit, files: ImageFiles) -> list[Found | Unusable]:
    """Where each image's name leads. Two names that lead to one file only by another reading lead nowhere."""
    places: list[Found | Unusable] = []
    readings: defaultdict[Path, set[str]] = defaultdict(set)
    for image in content.images:
        try:
            found = files.find(image.file_name)
        except (NotFound, OSError) as error:  # such as a name that is too long
            places.append(Unusable(content.directory / image.file_name, True, str(error)))
            continue
        places.append(found)
        if found.read_as is not None:
            readings[found.path].add(image.file_name)
    for i, (image, place) in enumerate(zip(content.images, places, strict=True)):
        if isinstance(place, Found) and image.file_name in readings[place.path] and len(readings[place.path]) > 1:
            others = first_of(sorted(readings[place.path] - {image.file_name}), 3)
            reason = f"it could be {place.read_as}, but so could {others}: give exact names"
            places[i] = Unusable(content.directory / image.file_name, True, reason)
    return places


def _each_once(
    images: Sequence[AnnotatedImage], places: Sequence[Found | Unusable], choices: Choices, ledger: Ledger
) -> tuple[list[AnnotatedImage], list[Found | Unusable]]:
    """Join entries of one file: the first one gets the objects of all, unless they state different sizes."""
    first: dict[Path, int] = {}
    kept: list[AnnotatedImage] = []
    kept_places: list[Found | Unusable] = []
    for image, place in zip(images, places, strict=True):
        path = Path(os.path.realpath(place.path)) if isinstance(place, Found) else place.path
        earlier = kept[first[path]] if path in first else None
        if isinstance(place, Found) and earlier is not None:
            without = ", the second without boxes" if not image.objects else ""
            ledger.note("repeated_images", f"{image.file_name}: {earlier.id} and {image.id}{without}")
            if not choices.keep_repeated and image.size in (None, earlier.size):
                kept[first[path]] = earlier._replace(objects=[*earlier.objects, *image.objects])
                continue
        first.setdefault(path, len(kept))
        kept.append(image)
        kept_places.append(place)
    return kept, kept_places


def _decoded(
    place: Found | Unusable, max_pixels: int, look: Callable[[bytes, Decoded], Any] | None
) -> Usable | Unusable:
    if isinstance(place, Unusable):
        return place
    try:
        data = read_regular(place.path)
        decoded = decode_with_notes(data, str(place.path), max_pixels)
    except (DataError, OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{place.path}: ").removesuffix(" Replace the file or leave it out.")
        return Unusable(place.path, not place.path.exists(), reason)
    height, width = decoded.pixels.shape[1:]
    seen = look(data, decoded) if look else None
    return Usable(place.path, (height, width), decoded.stored, decoded.orientation, decoded.depth, seen)


def refuse_unusable(sources: Sequence[Source], ledger: Ledger, skip: bool) -> None:
    """Raise `DataError` for images that cannot be used, each with its reason; with `skip` only warn."""
    bad = [file for source in sources for file in source.files if isinstance(file, Unusable)]
    ledger.counts["bad_images"] = len(bad)
    ledger.images = [file.path.name for file in bad]
    if not bad:
        return
    missing = sum(file.missing for file in bad)
    counts = f"{missing} missing, {len(bad) - missing} undecodable"
    named = [f"{file.path}: {file.reason}" for file in bad]
    text = f"{len(bad)} image files cannot be used ({counts}):\n  " + first_of(named, separator="\n  ")
    if not skip:
        raise DataError(f"{text}\nNothing was written. Correct the files or the directory, or pass --skip-bad-images.")
    logger.warning("Left out: %s", text)
