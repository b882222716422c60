"""Frames of video files, and videos with boxes drawn into their frames: PyAV, which is FFmpeg, in the extra `video`."""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mgdet.errors import DataError
from mgdet.files import may_be_written, require_regular
from mgdet.storage import Location
from mgdet.text import first_line

logger = logging.getLogger(__name__)

SUFFIXES = frozenset((".avi", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"))
"""Suffixes, in small letters, of the files that are taken for videos."""
NEEDS = "videos need the package av: pip install 'mgdet[video]'"
_SHORT_BY = 1.0
"""Seconds by which a video may end before its container says so."""
_ENCODERS = ("libx264", "libopenh264", "mpeg4")


class Frame(NamedTuple):
    """A frame of a video."""

    number: int
    """From 0; frames that were passed over are counted."""
    seconds: float
    """When it is shown, after the beginning of the video."""
    pixels: Tensor
    """`[3, H, W]` uint8 RGB, upright."""


def is_video(name: str) -> bool:
    """Whether a file is taken for a video, by its suffix."""
    return Path(name).suffix.lower() in SUFFIXES


def available() -> bool:
    """Whether videos can be read here."""
    return importlib.util.find_spec("av") is not None


class Video:
    """The frames of a video file in the order in which they are shown; to be iterated once.

    Damaged frames are left out. What is wrong with a video of which some frames could be read is in `flaws` after the
    iteration.

    Args:
        file: a local file, or one of a store.
        every: take each `every`-th frame, from the first one on.
        max_pixels: width times height of a frame, at most.

    Raises:
        DataError: PyAV is not installed; during the iteration: no video can be read, or its frames are too large.
    """

    def __init__(self, file: Path | Location, every: int, max_pixels: int) -> None:
        if not available():
            raise DataError(f"{file}: {NEEDS}.")
        self.file, self.every, self.max_pixels = file, every, max_pixels
        self.rate = Fraction(25)
        """Frames in a second, of those that are taken; known with the first frame."""
        self.flaws: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        import av

        taken = False
        try:
            with av.open(self._source()) as container:
                for frame in self._frames(container):
                    taken = True
                    yield frame
        except DataError as error:
            if not taken:
                raise
            self.flaws.append(str(error))
        except (OSError, ValueError) as error:  # all errors of PyAV are one of them
            if taken:
                self.flaws.append(f"it is damaged: {_said(error)}")
            else:
                raise DataError(f"{self.file}: not a readable video: {_said(error)}") from error
        if not taken:
            raise DataError(f"{self.file}: not a readable video: no frame of it can be decoded")

    def _source(self) -> Any:
        if isinstance(self.file, Location):
            return self.file.open_input()
        require_regular(self.file)
        return str(self.file)

    def _frames(self, container: Any) -> Iterator[Frame]:
        if not container.streams.video:
            raise DataError(f"{self.file}: there is no picture in it, only {len(container.streams)} other streams")
        stream = container.streams.video[0]
        self._require_size(stream.codec_context.width, stream.codec_context.height)
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self.rate = rate / self.every
        damaged, first, end = 0, None, 0.0
        for index, frame in enumerate(_decoded(container, stream)):
            if frame is None or frame.is_corrupt:
                damaged += 1
                continue
            shown = index / float(rate) if frame.time is None else float(frame.time)
            first = shown if first is None else first
            end = shown - first + 1 / float(rate)
            if index % self.every == 0:
                self._require_size(frame.width, frame.height)
                yield Frame(index, round(shown - first, 6), _pixels(frame))
        if damaged:
            self.flaws.append(f"damaged frames in it are left out: {damaged}")
        stated = _duration(container, stream)
        if stated is not None and end < stated - max(_SHORT_BY, 0.02 * stated):
            self.flaws.append(f"it ends after {end:.1f} of {stated:.1f} s")

    def _require_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise DataError(
                f"{self.file}: its frames have {width} x {height} pixels, at most {self.max_pixels:,} are allowed; "
                "raise --max-pixels"
            )


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """The decoded frames; None for a packet that cannot be decoded."""
    import av

    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            yield None
        else:
            yield from frames


def _pixels(frame: Any) -> Tensor:
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90)  # counterclockwise, as rot90 has it
    return torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, turns))).permute(2, 0, 1).contiguous()


def _duration(container: Any, stream: Any) -> float | None:
    """Seconds that the video lasts by what the file says; None where it does not, or speaks of its sound."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is None or len(container.streams) > 1:
        return None
    return float(container.duration / 1_000_000)


def _said(error: BaseException) -> str:
    """FFmpeg's words without the number and the name of the file."""
    return getattr(error, "strerror", None) or first_line(error)


class DrawnVideo:
    """A video to which pictures of one size are added; its file appears when it is closed.

    Args:
        path: of the file, an MP4.
        rate: pictures in a second.

    Raises:
        DataError: it cannot be written.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path, self.rate = path, rate
        self.data = path.with_name(f"{path.name}.tmp")
        self.container: Any = None
        self.stream: Any = None

    def add(self, picture: Image.Image) -> None:
        """Append a picture. Raises `DataError`."""
        import av

        pixels = np.asarray(picture)
        height, width = (side + side % 2 for side in pixels.shape[:2])  # encoders take even sizes only
        pixels = np.pad(pixels, ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)), mode="edge")
        try:
            if self.container is None:
                may_be_written(self.path)
                self.data.touch()  # FFmpeg opens it late
                self.container = av.open(str(self.data), "w", format="mp4")
                self.stream = self.container.add_stream(_encoder(), rate=self.rate.limit_denominator(1001))
                self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
            if (width, height) != (self.stream.width, self.stream.height):
                pixels = np.asarray(Image.fromarray(pixels).resize((self.stream.width, self.stream.height)))
            self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Write what is left, and give the file its name. Raises `DataError`."""
        if self.container is None:
            return
        try:
            self.container.mux(self.stream.encode())
            self.container.close()
            self.data.replace(self.path)
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error

    def discard(self) -> None:
        """Remove what was written of a video that will not be finished."""
        with suppress(OSError, ValueError):
            if self.container is not None:
                self.container.close()
        with suppress(OSError):
            self.data.unlink(missing_ok=True)

    def _unwritable(self, error: Exception) -> DataError:
        return DataError(f"{self.path} cannot be written: {_said(error)}. Check the space and the rights.")


def _encoder() -> str:
    """The first encoder of those that every player understands and this FFmpeg has."""
    import av

    for name in _ENCODERS[:-1]:
        with suppress(av.error.FFmpegError, ValueError):
            return str(av.codec.Codec(name, "w").name)
    return _ENCODERS[-1]
