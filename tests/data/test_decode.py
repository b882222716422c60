"""One decoder, one policy: RGB, upright, whole files only."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mgdet.data.decode import decode_image, decode_with_notes
from mgdet.errors import DataError
from mgdet.inference.prediction import pixels_of


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (6, 4), (200, 10, 30))
_GRID = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
PHOTO = Image.fromarray(_GRID).resize((160, 120), Image.Resampling.BICUBIC)


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


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 1}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_is_bit_for_bit_what_pillow_decodes(mode: str, options: dict[str, object]) -> None:
    data = encoded(PHOTO.convert(mode), "JPEG", **options)
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode_image(data).numpy(), expected)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_jpeg_is_bit_for_bit_what_pillow_decodes(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PHOTO, "JPEG", exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode_image(data).numpy(), expected)


def closed_jpeg(share: float, mode: str = "RGB", **options: object) -> bytes:
    """The first part of a JPEG with an end marker behind it."""
    data = encoded(PHOTO.convert(mode), "JPEG", **options)
    return data[: int(len(data) * share)] + b"\xff\xd9"


def turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("share", [0.4, 0.7, 0.97])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"restart_marker_rows": 1}),
        ("RGB", {"exif": turned_exif()}),
    ],
    ids=["colour", "grey", "cmyk", "progressive", "restart markers", "turned"],
)
def test_a_cut_jpeg_with_an_end_marker_is_an_error(mode: str, options: dict[str, object], share: float) -> None:
    with pytest.raises(DataError, match=r"^x\.jpg: not a readable image .*Corrupt JPEG data"):
        decode_image(closed_jpeg(share, mode, **options), "x.jpg")


def test_an_opened_pillow_image_is_held_to_the_same(tmp_path: Path) -> None:
    file = tmp_path / "cut.jpg"
    file.write_bytes(closed_jpeg(0.5))
    for image in (Image.open(io.BytesIO(file.read_bytes())), Image.open(file)):
        with pytest.raises(DataError, match="Corrupt JPEG data"):
            pixels_of(image)
    deep = Image.open(io.BytesIO(png(colours(DEEP))))
    assert int(pixels_of(deep).max()) == 255
    assert torch.equal(pixels_of(Image.open(io.BytesIO(encoded(PHOTO, "JPEG")))), decode_image(encoded(PHOTO, "JPEG")))


def test_a_hole_in_a_jpeg_is_an_error() -> None:
    data = encoded(PHOTO, "JPEG")
    middle = len(data) // 2
    with pytest.raises(DataError, match="Corrupt JPEG data"):
        decode_image(data[:middle] + data[middle + 300 :])


def test_a_progressive_jpeg_without_its_last_scans_is_an_error() -> None:
    data = encoded(PHOTO, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(DataError, match="its last scans are missing"):
        decode_image(data[:last] + b"\xff\xd9")


@pytest.mark.parametrize("padding", [b"", b"\0" * 7, b"\xff" * 3, b"\xff\0" * 40])
@pytest.mark.parametrize("end", [b"\xff\xd9", b"", b"\xff\xd9trailing bytes of a camera"])
def test_a_jpeg_whose_pixels_are_all_there_is_whole(padding: bytes, end: bytes) -> None:
    data = encoded(PHOTO, "JPEG", quality=90)
    if padding and not end:
        pytest.skip("the padding is known by the end marker behind it")
    assert torch.equal(decode_image(data[:-2] + padding + end), decode_image(data))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000", "TGA"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_no_cut_file_is_taken(kind: str, share: float) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    data = encoded(PHOTO, kind)
    with pytest.raises(DataError, match="not a readable image"):
        decode_image(data[: int(len(data) * share)])


def test_a_changed_bit_in_a_png_is_an_error() -> None:
    data = bytearray(encoded(PHOTO, "PNG"))
    data[-20] ^= 1
    with pytest.raises(DataError, match="checksum of its chunk IDAT"):
        decode_image(bytes(data))


# --- more than 8 bits

DEEP = (np.arange(64 * 48).reshape(48, 64) * 4095 // (64 * 48 - 1)).astype(np.uint16)  # 0..4095


def png(samples: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG with 16 bits of grey or colour, and further chunks before the pixels."""
    height, width = samples.shape[:2]
    rows = samples.astype(">u2").reshape(height, -1)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    colour = {2: 0, 3: 2}[samples.ndim]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def colours(samples: np.ndarray) -> np.ndarray:
    return np.stack([samples, samples[::-1], samples[:, ::-1]], axis=2)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize(
    "encode",
    [
        lambda s: png(s),
        lambda s: png(colours(s)),
        lambda s: encoded(Image.fromarray(s), "TIFF"),
        lambda s: encoded(Image.fromarray(s), "TIFF", compression="tiff_lzw"),
        lambda s: encoded(Image.fromarray(s.astype(np.int32)), "TIFF"),
    ],
    ids=["grey png", "colour png", "tiff", "packed tiff", "32 bits"],
)
def test_pixels_are_scaled_by_the_range_they_use(bits: int, encode: Callable[[np.ndarray], bytes]) -> None:
    samples = (DEEP.astype(np.int64) * (2**bits - 1) // 4095).astype(np.uint16)
    found = decode_with_notes(encode(samples))
    assert found.depth is not None
    assert (found.depth.used, found.depth.dark) == (bits, False)
    assert found.pixels[0].tolist() == (samples >> (bits - 8)).tolist()


def test_full_range_colours_are_what_pillow_gives() -> None:
    samples = colours((DEEP.astype(np.int64) * 65535 // 4095).astype(np.uint16))
    found = decode_with_notes(png(samples))
    assert found.pixels.permute(1, 2, 0).tolist() == (samples >> 8).tolist()
    assert found.depth is not None
    assert found.depth.used == 16


def test_a_dark_picture_keeps_the_range_that_its_file_states() -> None:
    dark = (DEEP // 8).astype(np.uint16)  # 0..511 of a 12-bit sensor
    assert decode_with_notes(png(dark)).depth == (16, 10, False)
    assert decode_with_notes(png(dark, chunk(b"sBIT", bytes([12])))).depth == (16, 12, False)
    stated = encoded(Image.fromarray(dark), "TIFF", tiffinfo={281: 4095})
    assert decode_with_notes(stated).depth == (16, 12, False)
    bright = (DEEP * 16).astype(np.uint16)  # scaled up to 16 bits, of which the first 12 are significant
    assert decode_with_notes(png(bright, chunk(b"sBIT", bytes([12])))).depth == (16, 16, False)


def test_a_picture_that_stays_nearly_black_is_noted() -> None:
    samples = (DEEP // 64).astype(np.uint16)
    samples[0, 0] = 65535  # a broken pixel
    depth = decode_with_notes(png(samples)).depth
    assert depth is not None
    assert depth.dark


def test_signed_pixels_are_refused() -> None:
    with pytest.raises(DataError, match=r"signed \(down to -5\)"):
        decode_image(encoded(Image.fromarray(np.array([[-5, 900]], dtype=np.int32)), "TIFF"))


# --- why a file cannot be used


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(300), "HEIC"),
        (b"<!DOCTYPE html><title>404</title>", "web page"),
        (b"\n  <HTML><body>Access denied", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"/annex/objects/MD5E-s10--abc.jpg\n", "git annex get"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"PK\x03\x04" + bytes(40), "ZIP"),
        (b'{"error": "forbidden"}', "JSON"),
        (b"<?xml version='1.0'?><Error/>", "XML"),
        (bytes(5000), "only zeros"),
        (b"\0\0\0\x18ftypisom" + bytes(300), "video"),
        (b"<svg xmlns='x'></svg>", "SVG"),
        (b"", "the file is empty"),
        ("größer als gedacht".encode(), "text, which begins with 'größer"),
        (bytes(range(256)) * 5, "finds no image format"),
    ],
)
def test_a_file_that_is_no_image_is_told_apart(data: bytes, why: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.png: not a readable image .*{why}"):
        decode_image(data, "a.png")


def test_too_many_pixels_name_the_size_and_the_limit() -> None:
    data = encoded(RED, "PNG")
    with pytest.raises(DataError, match=r"too many pixels: 6 x 4 = 24, allowed are 20; raise the limit \(--max-pixels"):
        decode_image(data, max_pixels=20)
    assert decode_image(data, max_pixels=24).shape == (3, 4, 6)


def test_the_limit_may_be_above_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"too many pixels.*24 pixels.*raise the limit"):
        decode_image(encoded(RED, "PNG"), max_pixels=20)
    assert decode_image(encoded(RED, "PNG"), max_pixels=1000).shape == (3, 4, 6)


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
