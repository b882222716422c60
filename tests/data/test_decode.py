"""One decoder, one policy: RGB, upright, whole files only."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mgdet.data import decode
from mgdet.data.decode import decode_image
from mgdet.errors import DataError


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (6, 4), (200, 10, 30))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "LA", "P", "1"])
def test_every_mode_becomes_rgb(kind: str, mode: str) -> None:
    try:
        data = encoded(RED.convert(mode), kind)
    except OSError:
        pytest.skip(f"{kind} cannot store {mode}")
    image = decode_image(data)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 4, 6)
    expected = np.array(RED.convert(mode).convert("RGB")).transpose(2, 0, 1).astype(int)
    assert np.abs(image.numpy().astype(int) - expected).mean() <= 20  # some of the formats are lossy


def test_sixteen_bits_keep_the_upper_eight() -> None:
    data = encoded(Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16)), "PNG")
    assert decode_image(data)[0].tolist() == [[0, 1, 255]]


def test_alpha_is_dropped_not_blended() -> None:
    data = encoded(Image.new("RGBA", (2, 2), (9, 8, 7, 0)), "PNG")
    assert decode_image(data)[:, 0, 0].tolist() == [9, 8, 7]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:8, :16] = 255  # the stored top left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=95))
    assert image.shape[1:] == ((16, 32) if orientation <= 4 else (32, 16))
    h, w = image.shape[1:]
    quarters = {
        "top left": image[0, : h // 2, : w // 2],
        "top right": image[0, : h // 2, w // 2 :],
        "bottom right": image[0, h // 2 :, w // 2 :],
        "bottom left": image[0, h // 2 :, : w // 2],
    }
    bright = max(quarters, key=lambda name: quarters[name].float().mean().item())
    # The meaning of the EXIF values 1 to 8: where the stored picture's first row and column are seen.
    corners = ["top left", "top right", "bottom right", "bottom left"]
    assert bright == corners[(orientation - 1) % 4]


def test_fast_and_general_path_agree(jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = decode_image(jpeg)
    monkeypatch.setattr(decode, "decode_jpeg", None)
    assert torch.equal(fast, decode_image(jpeg))


@pytest.mark.parametrize(
    "damage",
    [lambda d: b"", lambda d: b"not an image", lambda d: d[:-40], lambda d: d[:30], lambda d: d[:2]],
    ids=["empty", "text", "truncated", "header", "two bytes"],
)
def test_undecodable_files_are_named(jpeg: bytes, damage: object) -> None:
    with pytest.raises(DataError, match=r"^folder/x\.jpg: not a readable image"):
        decode_image(damage(jpeg), "folder/x.jpg")  # type: ignore[operator]


def test_float_images_are_refused() -> None:
    with pytest.raises(DataError, match="floating-point"):
        decode_image(encoded(Image.new("F", (2, 2)), "TIFF"))
