"""From the bytes of an image file to pixels: the one decoder of preparing, training, evaluation and prediction.

Policy, the same everywhere:

- **EXIF orientation is applied.** Boxes refer to the picture as a person sees it upright, which is what annotation
  tools in a browser show and what OpenCV reads by default. Width and height are those of the turned picture.
- The result is 8-bit RGB: grey is repeated, CMYK and palettes are converted, an alpha channel is dropped (not blended),
  of an animation the first frame is taken. Samples of more than 8 bits are scaled by the range that they use or state
  (see `mgdet.data.depth`).
- A file is whole or an error, never a half grey picture. What a decoder only warns of counts as damage: data that end
  early although an end marker follows, codes that do not exist, checksums that do not fit. A JPEG that lacks only its
  end marker is whole, and so is one with padding before it.
- The error says why: what the file is instead, how many pixels it has and how many are allowed, what to convert.
"""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mgdet.data.choices import MAX_PIXELS
from mgdet.data.depth import DEEP_GREY, Depth, choose_lower_bytes, has_deep_colour, stated_bits, to_eight_bits
from mgdet.data.jpeg_scans import check_scans
from mgdet.data.orientation import Size, upright_pixels
from mgdet.data.sniff import what_instead
from mgdet.errors import DataError

_PNG = b"\x89PNG\r\n\x1a\n"
_END_OF_JPEG = b"\xff\xd9"


class Decoded(NamedTuple):
    """An image file's pixels, and what was done to them."""

    pixels: Tensor
    """`[3, H, W]` uint8 RGB, upright."""
    stored: Size
    """Size of the picture as it lies in the file, before it is turned."""
    orientation: int
    """EXIF's, 1 to 8."""
    depth: Depth | None
    """None: its samples have at most 8 bits."""


def decode_image(data: bytes, name: str = "<bytes>", max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode an image file to a `[3, H, W]` uint8 RGB tensor under the policy of this module.

    Args:
        data: the encoded file (anything that Pillow opens).
        name: how an error calls the image.
        max_pixels: width times height, at most.

    Raises:
        DataError: the file cannot be decoded; its message begins with `name` and says why.
    """
    return decode_with_notes(data, name, max_pixels).pixels


def decode_with_notes(data: bytes, name: str = "<bytes>", max_pixels: int = MAX_PIXELS) -> Decoded:
    """As `decode_image`, with what was done to the pixels."""
    try:
        return _decode(data, max_pixels)
    except Exception as error:  # broken files raise nearly anything: struct.error, KeyError, SyntaxError...
        size = f"{len(data)} bytes" if data else "the file is empty"
        raise DataError(
            f"{name}: not a readable image ({size}): {_reason(error, data)}. Replace the file or leave it out."
        ) from error


def from_pillow(image: Image.Image) -> Tensor:
    """A `[3, H, W]` uint8 RGB tensor of a Pillow image of any mode, under the policy of this module.

    Raises:
        ValueError, OSError: its pixels are floats or negative, or its file is damaged.
    """
    return _from_pillow(image, None)[0]


def _decode(data: bytes, max_pixels: int) -> Decoded:
    significant = _check_png(data) if data.startswith(_PNG) else None
    with _opened(data, max_pixels) as image:
        deep = has_deep_colour(image)  # before getexif, which loads a PNG
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
        stored = (image.height, image.width)
        if image.format in ("JPEG", "MPO"):
            pixels = _decode_jpeg(data, image.mode)
            if image.mode in ("RGB", "L"):
                return Decoded(_tensor(upright_pixels(pixels, orientation)), stored, orientation, None)
        elif deep:
            pixels, depth = _deep_colour(data, image, significant)
            return Decoded(_tensor(upright_pixels(pixels, orientation)), stored, orientation, depth)
        tensor, depth_of_grey = _from_pillow(image, significant)
        return Decoded(tensor, stored, orientation, depth_of_grey)


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    """The file, opened but not decoded. Raises `ValueError` where it has too many pixels."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's bound is one for the whole process
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has too many pixels ({error}); {_RAISE_LIMIT}") from error
    if image.format in _WITHOUT_PIXELS:
        raise UnidentifiedImageError
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"it has too many pixels: {image.width} x {image.height} = {image.width * image.height}, allowed are "
            f"{max_pixels}; {_RAISE_LIMIT}"
        )
    return image


_WITHOUT_PIXELS = ("BUFR", "GRIB", "HDF5")
"""Formats that Pillow recognises and cannot read: what it says of their size and mode means nothing."""
_RAISE_LIMIT = "raise the limit (--max-pixels, in a training data.loader.max_pixels) or cut the image into tiles"


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        return (
            what_instead(data)
            or "Pillow finds no image format in it: damaged at its beginning, cut, or of another kind"
        )
    return str(error) or type(error).__name__


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """A `[3, h, w]` view of pixels `[h, w, 3]`."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _decode_jpeg(data: bytes, mode: str) -> NDArray[np.uint8]:
    """Pixels `[h, w, 3]` of a JPEG of colours or grey, as it is stored; of another mode it is only checked.

    Bit for bit what Pillow gives (both are libjpeg-turbo), but a warning is an error.

    Raises:
        ValueError: data end early, or do not decode.
    """
    colorspace = "RGB" if mode in ("RGB", "L") else "CMYK"
    whole = data + _END_OF_JPEG  # a file may lack its end marker alone; a second one is never read
    try:
        pixels = _strictly(whole, colorspace)
        check_scans(data)
        return pixels
    except ValueError as error:
        if "before marker 0xd9" not in str(error):
            raise
    # Bytes are left over at the end: harmless if they are padding, otherwise pixels were decoded from wrong places
    return _strictly(data[: data.rindex(_END_OF_JPEG)].rstrip(b"\0\xff") + _END_OF_JPEG, colorspace)


def _strictly(data: bytes, colorspace: str) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data, colorspace=colorspace, fastdct=False, fastupsample=False, strict=True
    )
    return pixels


def _check_png(data: bytes) -> int | None:
    """The number of significant bits that a PNG states (chunk sBIT). Raises `ValueError` for a wrong checksum.

    Pillow does not compare the checksums of pixels.
    """
    significant, at, view = None, len(_PNG), memoryview(data)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data) or kind == b"IEND":
            break
        if kind[:1].isupper() and zlib.crc32(view[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise ValueError(f"the checksum of its chunk {kind.decode('latin-1')} at byte {at} is wrong")
        if kind == b"sBIT" and length:
            significant = max(data[at + 8 : end])
        at = end + 4
    return significant


def _from_pillow(image: Image.Image, significant: int | None) -> tuple[Tensor, Depth | None]:
    if image.mode == "F":
        raise ValueError("floating-point images are not supported, convert it to 8 or 16 bits")
    stated, depth = stated_bits(image, significant), None
    upright = ImageOps.exif_transpose(image)
    if upright.mode in DEEP_GREY:
        samples = np.asarray(upright).astype(np.int64)
        pixels, depth = to_eight_bits(samples, 16 if upright.mode != "I" or samples.max() < 2**16 else 32, stated)
        upright = Image.fromarray(pixels)
    return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1).contiguous(), depth


def _deep_colour(data: bytes, image: Image.Image, significant: int | None) -> tuple[NDArray[np.uint8], Depth]:
    """Pixels `[h, w, 3]` of a file with 16 bits per colour, as it is stored.

    Pillow gives the upper bytes. The lower ones are needed only if the upper ones use less than a quarter of their
    range; they are read from the file opened a second time.
    """
    stated = stated_bits(image, significant)
    upper = np.array(image.convert("RGB"))
    if upper.max() < 64:
        with Image.open(io.BytesIO(data)) as again:
            if choose_lower_bytes(again):
                samples = (upper.astype(np.int64) << 8) | np.asarray(again.convert("RGB"))
                return to_eight_bits(samples, 16, stated)
    return to_eight_bits(upper.astype(np.int64) << 8, 16, 16)
