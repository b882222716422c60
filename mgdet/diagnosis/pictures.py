"""What is seen of each picture when it is decoded, once: a few numbers, so that memory holds a few pictures only."""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn

from mgdet.data.decode import Decoded, decode_with_notes
from mgdet.data.depth import Depth
from mgdet.errors import DataError

GRID, FREQUENCIES = 32, 16
"""The hash has the lowest 16 x 16 frequencies of a grey picture of 32 x 32 pixels, but for its mean: 255 bits."""


class Look(NamedTuple):
    """What was seen of a picture."""

    digest: bytes
    """SHA-256 of the file."""
    hash: bytes
    """Its perceptual hash, 32 bytes: see `perceptual_hash`."""
    mode: str
    """Of Pillow: RGB, L, CMYK, RGBA, ..."""
    transparent: bool
    frames: int
    orientation: int
    size: tuple[int, int]
    """(height, width), upright."""
    depth: Depth | None
    blank: bool
    """Whether all pixels have one colour."""


def look_at(data: bytes, decoded: Decoded) -> Look:
    """What is seen of an image file and its pixels."""
    with Image.open(io.BytesIO(data)) as file:
        mode = file.mode
        transparent = mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in file.info
        frames = 1 if file.format in ("JPEG", "MPO") else int(getattr(file, "n_frames", 1))  # MPO: a phone's preview
    pixels = decoded.pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    return Look(
        hashlib.sha256(data).digest(),
        perceptual_hash(picture),
        mode,
        transparent,
        frames,
        decoded.orientation,
        (height, width),
        decoded.depth,
        all(low == high for low, high in picture.getextrema()),
    )


def perceptual_hash(picture: Image.Image) -> bytes:
    """255 bits of an RGB picture: which of the low frequencies of its cosine transform lie above their median.

    Pictures of other scenes differ in about half of the bits. Compressing a picture (JPEG of quality 20), halving it,
    darkening it or cutting a hundredth off each side changes at most 28 of them, see docs/doctor.md.
    """
    grey = np.asarray(picture.convert("L").resize((GRID, GRID), Image.Resampling.BOX)).astype(np.float64)
    low = dctn(grey)[:FREQUENCIES, :FREQUENCIES].ravel()[1:]
    return np.packbits(low > np.median(low)).tobytes()


def looks(count: int, read: Callable[[int], bytes], max_pixels: int, workers: int) -> Iterator[Look | DataError]:
    """Look at the pictures in rows 0..count-1 in order, or say why one cannot be seen.

    `read` is called in this thread; `workers` threads decode at most twice as many pictures ahead.
    """
    waiting: deque[Future[Look] | DataError] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for row in range(count):
            try:
                waiting.append(pool.submit(_look, read(row), max_pixels))
            except DataError as error:
                waiting.append(error)
            if len(waiting) > 2 * workers:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())


def _look(data: bytes, max_pixels: int) -> Look:
    return look_at(data, decode_with_notes(data, "picture", max_pixels))


def _result(waiting: Future[Look] | DataError) -> Look | DataError:
    if isinstance(waiting, DataError):
        return waiting
    try:
        return waiting.result()
    except DataError as error:
        return error
