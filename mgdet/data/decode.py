"""From the bytes of an image file to pixels: the one decoder of preparing, training, evaluation and prediction.

Policy, the same everywhere:

- **EXIF orientation is applied.** Boxes refer to the picture as a person sees it upright, which is what annotation
  tools in a browser show and what OpenCV reads by default. Width and height are those of the turned picture.
- The result is 8-bit RGB: grey is repeated, CMYK and palettes are converted, 16 bits keep their upper 8, an alpha
  channel is dropped (not blended), of an animation the first frame is taken.
- A truncated or otherwise undecodable file is an error, never a half grey picture.
"""

import io
import warnings

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from mgdet.errors import DataError

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision announces the removal of its decoders; Pillow reads everything, at half the speed
    decode_jpeg = None

# Deliberate use of a deprecated function, isolated here; the user can do nothing about the warning.
warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities", category=DeprecationWarning)

_DEEP_GREY = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def decode_image(data: bytes, name: str = "<bytes>") -> Tensor:
    """Decode an image file to a `[3, H, W]` uint8 RGB tensor under the policy of this module.

    Args:
        data: the encoded file (anything that Pillow opens).
        name: how an error calls the image.

    Raises:
        DataError: the file cannot be decoded; its message begins with `name`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            if image.format == "JPEG" and image.mode in ("RGB", "L") and orientation == 1 and decode_jpeg is not None:
                return _decode_plain_jpeg(data)
            return from_pillow(image)
    except Exception as error:  # broken files raise nearly anything: struct.error, KeyError, SyntaxError...
        size = f"{len(data)} bytes" if data else "the file is empty"
        raise DataError(f"{name}: not a readable image ({size}): {error}. Replace the file or leave it out.") from error


def _decode_plain_jpeg(data: bytes) -> Tensor:
    # Bit for bit what Pillow gives (both are libjpeg-turbo); the copy is there because bytes are read-only.
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return decode_jpeg(buffer, mode=ImageReadMode.RGB)  # type: ignore[no-any-return]  # torchvision has no types


def from_pillow(image: Image.Image) -> Tensor:
    """A `[3, H, W]` uint8 RGB tensor of a Pillow image of any mode, under the policy of this module.

    Raises:
        ValueError, OSError: its pixels are floats, or its file is damaged.
    """
    if image.mode == "F":
        raise ValueError("floating-point images are not supported, convert it to 8 or 16 bits")
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _DEEP_GREY:
        upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    pixels = np.array(upright.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
