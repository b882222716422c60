"""The pictures to detect in: images decoded, and the frames of videos, one after another."""

import logging
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from torch import Tensor

from mgdet.data.decode import decode_image
from mgdet.errors import DataError
from mgdet.files import read_regular
from mgdet.inference.find import File
from mgdet.inference.video import Video, is_video
from mgdet.storage import Location

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


class Photo(NamedTuple):
    """A picture that could be read."""

    id: int
    name: str
    """The file, and of a video the number of the frame: `clip.mp4#000123`."""
    pixels: Tensor
    """`[3, H, W]` uint8 RGB, upright."""
    frame: FrameOf | None = None

    def described(self) -> dict[str, Any]:
        """What `images.json` says of it."""
        size = {"width": self.pixels.shape[2], "height": self.pixels.shape[1]}
        out = {"id": self.id, "file_name": self.name, **size}
        if self.frame is not None:
            out |= {"video": self.frame.video, "frame": self.frame.number, "seconds": self.frame.seconds}
        return out


def name_of(file: File) -> str:
    """How results call a file."""
    return str(file) if isinstance(file, Location) else file.as_posix()


def photos_of(file: File, number: int, max_pixels: int, every: int) -> Generator[Photo, None, list[str]]:
    """The image in a file, or the frames of a video; of a damaged video those that can be read.

    Returns what is wrong with a video of which some frames could be read.

    Args:
        file: the suffix says whether it is a video.
        number: the id of the first picture; frames are counted on.
        max_pixels: width times height of an image or frame, at most.
        every: take each `every`-th frame.

    Raises:
        DataError: nothing of it can be read.
        OSError: the file cannot be read.
    """
    if not is_video(file.name):
        data = file.read_bytes() if isinstance(file, Location) else read_regular(file)
        yield Photo(number, name_of(file), decode_image(data, str(file), max_pixels))
        return []
    video = Video(file, every, max_pixels)
    for count, (index, seconds, pixels) in enumerate(video):
        frame = FrameOf(name_of(file), index, seconds, video.rate)
        yield Photo(number + count, f"{name_of(file)}#{index:06d}", pixels, frame)
    return video.flaws


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
    """

    def __init__(self, max_pixels: int, every: int) -> None:
        self.max_pixels, self.every = max_pixels, every
        self.count = 0
        """Pictures read so far."""
        self.unreadable: list[str] = []
        self.damaged: list[str] = []
        """Videos of which some frames could be read."""

    def read(self, file: File, number: int | None = None) -> Iterator[Photo]:
        """The pictures of a file; ids are counted on, unless the file has its own `number`."""
        try:
            photos = photos_of(file, self.count if number is None else number, self.max_pixels, self.every)
            flaws = yield from self._counted(photos)
        except (OSError, DataError) as error:
            logger.warning("left out: %s", error)
            self.unreadable.append(name_of(file))
            return
        if flaws:
            logger.warning("%s: %s", file, "; ".join(flaws))
            self.damaged.append(name_of(file))

    def _counted(self, photos: Generator[Photo, None, list[str]]) -> Generator[Photo, None, list[str]]:
        while True:
            try:
                photo = next(photos)
            except StopIteration as end:
                return list(end.value)
            self.count += 1
            yield photo
