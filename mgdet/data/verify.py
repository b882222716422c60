"""The image files of a split before anything is written: each found by its name, decoded, and taken once."""

import logging
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from mgdet.data.choices import Choices
from mgdet.data.decode import Decoded, decode_with_notes
from mgdet.data.depth import Depth
from mgdet.data.files import Found, ImageFiles, LocalFiles, NotFound, StoredFiles
from mgdet.data.formats.base import AnnotatedImage, AnnotatedSplit
from mgdet.data.ledger import Ledger
from mgdet.data.orientation import Size
from mgdet.data.schema import Progress
from mgdet.errors import DataError
from mgdet.storage import File, Location, read_file
from mgdet.text import first_of

logger = logging.getLogger(__name__)

AHEAD = 16
"""Images that wait for each thread."""
T = TypeVar("T")
U = TypeVar("U")


class Usable(NamedTuple):
    """An image file that was decoded."""

    name: str
    """Relative to the image directory."""
    size: Size
    """As it is seen upright."""
    stored: Size
    orientation: int
    depth: Depth | None
    seen: Any = None
    """What the `look` of `verify` said of it."""


class Unusable(NamedTuple):
    """An image that cannot be used, and why."""

    name: str
    missing: bool
    reason: str


class Listed(NamedTuple):
    """One split whose files are found and not decoded yet."""

    split: str
    content: AnnotatedSplit
    images: list[AnnotatedImage]
    """Those to be written, each file once."""
    places: list[Found | Unusable]
    files: ImageFiles


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


def list_files(split: str, content: AnnotatedSplit, choices: Choices, ledger: Ledger) -> Listed:
    """Find the file of every image of a split.

    Raises:
        DataError: no image directory, or an image id used twice.
    """
    try:
        files = _image_files(content.directory, choices.allow_outside)
    except DataError as error:
        raise DataError(f"Split {split!r}: {error}") from error
    repeated = [i for i, n in Counter(image.id for image in content.images).items() if n > 1]
    if repeated:
        raise DataError(f"{content.annotations}: image id {repeated[0]} is used twice. Ids are unique within a split.")
    images, places = _each_once(content.images, _find(content, files), files, choices, ledger)
    for image, place in zip(images, places, strict=True):
        if isinstance(place, Found) and place.renamed:
            ledger.note("renamed", f"{image.file_name!r} is {place.name}")
    return Listed(split, content, images, places, files)


def verify(
    listed: Listed,
    max_pixels: int,
    workers: int | None,
    progress: Progress | None,
    look: Callable[[bytes, Decoded], Any] | None = None,
) -> Source:
    """Decode every image of a split; `look` is called with each file and its pixels, in any thread."""

    def checked(place: Found | Unusable) -> Usable | Unusable:
        if isinstance(place, Unusable):
            return place
        return decoded(listed.content.directory, place.name, max_pixels, look)

    files: list[Usable | Unusable] = []
    threads, total = workers or len(os.sched_getaffinity(0)), len(listed.places)
    with ThreadPoolExecutor(threads) as pool:
        for done, file in enumerate(_in_order(pool, checked, listed.places, AHEAD * threads), start=1):
            files.append(file)
            if progress is not None and (done % 100 == 0 or done == total):
                progress(f"checking {listed.split}", done, total)
    return Source(listed.split, listed.content, listed.images, files)


def _in_order(pool: Executor, function: Callable[[T], U], values: Iterable[T], ahead: int) -> Iterator[U]:
    """As `pool.map`, but no more than `ahead` calls at a time: what a call takes is more than what is kept of it."""
    calls: deque[Future[U]] = deque()
    for value in values:
        calls.append(pool.submit(function, value))
        if len(calls) == ahead:
            yield calls.popleft().result()
    while calls:
        yield calls.popleft().result()


def _image_files(directory: File, allow_outside: bool) -> ImageFiles:
    return StoredFiles(directory) if isinstance(directory, Location) else LocalFiles(directory, allow_outside)


def _find(content: AnnotatedSplit, files: ImageFiles) -> list[Found | Unusable]:
    """Where each image's name leads. Two names that lead to one file only by another reading lead nowhere."""
    places: list[Found | Unusable] = []
    readings: defaultdict[str, set[str]] = defaultdict(set)
    for image in content.images:
        try:
            found = files.find(image.file_name)
        except (NotFound, OSError) as error:  # such as a name that is too long
            places.append(Unusable(image.file_name, True, str(error)))
            continue
        places.append(found)
        if found.renamed:
            readings[found.name].add(image.file_name)
    for i, (image, place) in enumerate(zip(content.images, places, strict=True)):
        if isinstance(place, Found) and image.file_name in (names := readings.get(place.name, ())) and len(names) > 1:
            others = first_of(sorted({*names} - {image.file_name}), 3)
            reason = f"it could be {place.name}, but so could {others}: give exact names"
            places[i] = Unusable(image.file_name, True, reason)
    return places


def _each_once(
    images: Sequence[AnnotatedImage],
    places: Sequence[Found | Unusable],
    files: ImageFiles,
    choices: Choices,
    ledger: Ledger,
) -> tuple[list[AnnotatedImage], list[Found | Unusable]]:
    """Join entries of one file: the first one gets the objects of all, unless they state different sizes."""
    first: dict[str, int] = {}
    kept: list[AnnotatedImage] = []
    kept_places: list[Found | Unusable] = []
    for image, place in zip(images, places, strict=True):
        if isinstance(place, Found):
            file = files.identity(place.name)
            if file in first:
                earlier = kept[first[file]]
                without = ", the second without boxes" if not image.objects else ""
                ledger.note("repeated_images", f"{image.file_name}: {earlier.id} and {image.id}{without}")
                if not choices.keep_repeated and image.size in (None, earlier.size):
                    kept[first[file]] = earlier._replace(objects=[*earlier.objects, *image.objects])
                    continue
            first.setdefault(file, len(kept))
        kept.append(image)
        kept_places.append(place)
    return kept, kept_places


def decoded(
    directory: File, name: str, max_pixels: int, look: Callable[[bytes, Decoded], Any] | None = None
) -> Usable | Unusable:
    """What decoding the file `name` of an image directory shows."""
    file = directory / name
    try:
        data = read_file(file)
        image = decode_with_notes(data, str(file), max_pixels)
    except FileNotFoundError as error:
        return Unusable(name, True, str(error))
    except (DataError, OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{file}: ").removesuffix(" Replace the file or leave it out.")
        return Unusable(name, False, reason)
    height, width = image.pixels.shape[1:]
    seen = look(data, image) if look else None
    return Usable(name, (height, width), image.stored, image.orientation, image.depth, seen)


def refuse_unusable(sources: Sequence[Source], ledger: Ledger, skip: bool) -> None:
    """Raise `DataError` for images that cannot be used, each with its reason; with `skip` only warn."""
    bad = [(s.content.directory / f.name, f) for s in sources for f in s.files if isinstance(f, Unusable)]
    ledger.counts["bad_images"] = len(bad)
    ledger.images = [place.name for place, _ in bad]
    if not bad:
        return
    missing = sum(file.missing for _, file in bad)
    counts = f"{missing} missing, {len(bad) - missing} undecodable"
    named = [f"{place}: {file.reason}" for place, file in bad]
    text = f"{len(bad)} image files cannot be used ({counts}):\n  " + first_of(named, separator="\n  ")
    if not skip:
        raise DataError(f"{text}\nNothing was written. Correct the files or the directory, or pass --skip-bad-images.")
    logger.warning("Left out: %s", text)
