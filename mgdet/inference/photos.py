"""The pictures to detect in, one after another: images decoded, frames of videos, rows of tables."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from torch import Tensor

from mgdet.data.decode import decode_image
from mgdet.errors import DataError
from mgdet.inference.find import NAMED
from mgdet.inference.table import is_table, rows
from mgdet.inference.video import Video, is_video
from mgdet.storage import File, Location, read_file
from mgdet.text import first_of

logger = logging.getLogger(__name__)


class FrameOf(NamedTuple):
    """Which frame of which video a picture is."""

    video: str
    number: int
    """From 0."""
    seconds: float
    """After the beginning of the video."""
    rate: Fraction
    """Taken frames in a second."""


class RowOf(NamedTuple):
    """Which row of which table a picture is."""

    table: str
    number: int
    """From 0."""
    name: str | None
    """What the table calls it; None where it does not say."""


class Photo(NamedTuple):
    """A picture that could be read."""

    id: int
    name: str
    """The file, with the number of the frame of a video or of the row of a table: `clip.mp4#000123`."""
    pixels: Tensor
    """`[3, H, W]` uint8 RGB, upright."""
    frame: FrameOf | None = None
    row: RowOf | None = None

    def described(self) -> dict[str, Any]:
        """What `images.json` says of it."""
        size = {"width": self.pixels.shape[2], "height": self.pixels.shape[1]}
        out = {"id": self.id, "file_name": self.name, **size}
        if self.frame is not None:
            out |= {"video": self.frame.video, "frame": self.frame.number, "seconds": self.frame.seconds}
        if self.row is not None:
            out |= {"table": self.row.table, "row": self.row.number, "row_name": self.row.name}
        return out


def name_of(file: File) -> str:
    """How results call a file."""
    return str(file) if isinstance(file, Location) else file.as_posix()


def photos_of(
    file: File, number: int, max_pixels: int, every: int, called: str | None = None
) -> Generator[Photo, None, list[str]]:
    """The image in a file, or the frames of a video, or the images in the rows of a table.

    Of a damaged video or table those that can be read. Returns what is wrong with the others.

    Args:
        file: the suffix says whether it is a video or a table.
        number: the id of the first picture; frames and rows are counted on.
        max_pixels: width times height of an image or frame, at most.
        every: take each `every`-th frame.
        called: how results call the file; by default as it is named.

    Raises:
        DataError: nothing of it can be read.
        OSError: the file cannot be read.
    """
    called = called or name_of(file)
    if is_table(file.name):
        return (yield from _photos_of_table(file, number, max_pixels, called))
    if not is_video(file.name):
        data = read_file(file)
        yield Photo(number, called, decode_image(data, str(file), max_pixels))
        return []
    video = Video(file, every, max_pixels)
    for count, (index, seconds, pixels) in enumerate(video):
        frame = FrameOf(called, index, seconds, video.rate)
        yield Photo(number + count, f"{called}#{index:06d}", pixels, frame)
    return video.flaws


def _photos_of_table(file: File, number: int, max_pixels: int, called: str) -> Generator[Photo, None, list[str]]:
    flaws: list[str] = []
    count = 0
    try:
        for row in rows(file):
            name = f"{called}#{row.number:06d}"
            try:
                pixels = decode_image(row.data or b"", name, max_pixels)
            except DataError as error:
                flaws.append(str(error))
                continue
            yield Photo(number + count, name, pixels, row=RowOf(called, row.number, row.name))
            count += 1
    except DataError as error:
        flaws.append(str(error))
    if not count:
        raise DataError(flaws[0] if flaws else f"{file}: a table without rows")
    return flaws


def groups(photos: Iterable[Photo], size: int) -> Iterator[list[Photo]]:
    """The photos, `size` at a time."""
    group: list[Photo] = []
    for photo in photos:
        group.append(photo)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


class Reader:
    """Reads files one after another; those that cannot be read are named in a warning and left out.

    Args:
        max_pixels: width times height of an image or frame, at most.
        every: take each `every`-th frame of a video.
        warn: is given the warnings.
    """

    def __init__(self, max_pixels: int, every: int, warn: Callable[[str], None] = logger.warning) -> None:
        self.max_pixels, self.every, self.warn = max_pixels, every, warn
        self.count = 0
        """Pictures read so far."""
        self.unreadable: list[str] = []
        self.damaged: list[str] = []
        """Videos and tables of which some pictures could be read."""

    def read(self, file: File, number: int | None = None, called: str | None = None) -> Iterator[Photo]:
        """The pictures of a file, which results call so; ids are counted on, unless it has its own `number`."""
        called = called or name_of(file)
        try:
            photos = photos_of(file, self.count if number is None else number, self.max_pixels, self.every, called)
            flaws = yield from self._counted(photos)
        except (OSError, DataError) as error:
            self.warn(f"left out: {error}")
            self.unreadable.append(called)
            return
        if flaws:
            self.warn(f"{file}: {first_of(flaws, NAMED, '; ')}")
            self.damaged.append(called)

    def _counted(self, photos: Generator[Photo, None, list[str]]) -> Generator[Photo, None, list[str]]:
        while True:
            try:
                photo = next(photos)
            except StopIteration as end:
                return list(end.value)
            self.count += 1
            yield photo
