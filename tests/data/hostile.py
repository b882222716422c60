"""Bad image files and annotations as people have them: what each is, and whether mgdet reads it right or refuses it."""

import copy
import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

WIDTH, HEIGHT = 48, 36


class BadFile(NamedTuple):
    """An image file."""

    content: bytes
    says: str = ""
    """What the refusal says beyond the name of the file; "" for a file that is read right."""
    suffix: str = ".png"


def photo(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(4)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png_of_size(width: int, height: int) -> bytes:
    """A PNG that states a size and has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    return encoded(photo(), "JPEG", exif=exif)


def _with_text() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 5000, zip=True)
    return encoded(photo(), "PNG", pnginfo=text)


def files() -> dict[str, BadFile]:
    """Every kind of file."""
    jpeg, png = encoded(photo(), "JPEG", quality=90), encoded(photo(), "PNG")
    half = len(jpeg) // 2
    hole = bytearray(jpeg)
    hole[half : half + 60] = bytes(60)
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1
    frames = [photo(), photo().rotate(180)]
    refused = {
        "an empty file": (b"", "the file is empty"),
        "zeros": (bytes(3000), "only zeros"),
        "noise": (np.random.default_rng(0).bytes(3000), "no image format"),
        "white space": (b" \n" * 50, "white space"),
        "a text": (b"not found, try again later\n", "it is text"),
        "JSON": (b'{"error": "quota"}', "it is JSON"),
        "XML": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "it is XML"),
        "a web page": (b"<!DOCTYPE html><html><title>404</title></html>", "download it again"),
        "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        "a pointer of git-annex": (b"/annex/objects/MD5E-s1--ab.png\n", "git annex get"),
        "a PDF": (b"%PDF-1.7\n%\xe2\xe3\n1 0 obj", "export its pages"),
        "a ZIP archive": (b"PK\x03\x04" + bytes(60), "unpack it"),
        "gzip": (b"\x1f\x8b\x08" + bytes(60), "unpack it"),
        "bzip2": (b"BZh91AY&SY" + bytes(60), "unpack it"),
        "7-Zip": (b"7z\xbc\xaf\x27\x1c" + bytes(60), "unpack it"),
        "Zstandard": (b"\x28\xb5\x2f\xfd" + bytes(60), "unpack it"),
        "a video (MP4)": (b"\0\0\0\x20ftypisom" + bytes(60), "extract its frames"),
        "a video (Matroska)": (b"\x1aE\xdf\xa3" + bytes(60), "extract its frames"),
        "HEIC": (b"\0\0\0\x20ftypheic" + bytes(60), "convert it to JPEG or PNG"),
        "JPEG XL": (b"\xff\x0a" + bytes(60), "convert it to JPEG or PNG"),
        "a drawing (SVG)": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9"/>', "render it to PNG"),
        "a NumPy array": (b"\x93NUMPY\x01\x00" + bytes(60), "save it as PNG"),
        "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "save its pictures as PNG"),
        "DICOM": (bytes(128) + b"DICM" + bytes(60), "convert it to PNG"),
        "a JPEG that is cut": (jpeg[:half], "Replace the file"),
        "a cut JPEG with an end marker": (jpeg[:half] + b"\xff\xd9", "Replace the file"),
        "a JPEG with a hole": (bytes(hole), "Replace the file"),
        "a JPEG of two bytes": (jpeg[:2], "Replace the file"),
        "a PNG that is cut": (png[: len(png) // 2], "Replace the file"),
        "a PNG with a wrong checksum": (bytes(flipped), "checksum"),
        "a PNG of its header alone": (png[:33], "Replace the file"),
        "a BMP that is cut": (encoded(photo(), "BMP")[:900], "Replace the file"),
        "a TIFF that is cut": (encoded(photo(), "TIFF")[:900], "Replace the file"),
        "a WebP that is cut": (encoded(photo(), "WEBP", quality=90)[:200], "Replace the file"),
        "floating-point pixels": (encoded(photo("F"), "TIFF"), "convert it to 8 or 16 bits"),
        "a picture of 10^10 pixels": (_png_of_size(100_000, 100_000), "too many pixels"),
    }
    right = {
        "grey": encoded(photo("L"), "JPEG"),
        "grey with alpha": encoded(photo("LA"), "PNG"),
        "alpha": encoded(photo("RGBA"), "PNG"),
        "a palette": encoded(photo("P"), "PNG"),
        "a transparent palette": encoded(photo("P"), "PNG", transparency=3),
        "black and white": encoded(photo("1"), "PNG"),
        "CMYK": encoded(photo("CMYK"), "JPEG"),
        "16 bits": encoded(Image.fromarray(np.asarray(photo("L")).astype(np.uint16) * 257), "PNG"),
        "an EXIF orientation": _turned(),
        "a progressive JPEG": encoded(photo(), "JPEG", progressive=True),
        "a JPEG without its end marker": jpeg[:-2],
        "a JPEG with padding behind it": jpeg + bytes(100),
        "an animated GIF": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "BMP": encoded(photo(), "BMP"),
        "WebP": encoded(photo(), "WEBP", lossless=True),
        "a compressed TIFF": encoded(photo(), "TIFF", compression="tiff_lzw"),
        "a JPEG with the suffix of a PNG": jpeg,
        "a PNG with a long comment": _with_text(),
        "an interlaced PNG of one column": encoded(photo().resize((1, HEIGHT)), "PNG"),
        "one pixel": encoded(photo().resize((1, 1)), "PNG"),
    }
    return {name: BadFile(*value) for name, value in refused.items()} | {k: BadFile(v) for k, v in right.items()}


class BadAnnotations(NamedTuple):
    """The content of an annotation file in COCO's format."""

    content: bytes
    says: str = ""
    """What the refusal says beyond the name of the file; "" where it is imported."""
    changes: Mapping[str, int] = MappingProxyType({})
    """Of the manifest, where it is imported: what was counted."""
    boxes: int = 2
    """How many are left of two, where it is imported."""


def read(content: bytes, boxes: int = 2, **changes: int) -> BadAnnotations:
    """A file that is imported."""
    return BadAnnotations(content, "", changes, boxes)


BASE: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 5, 20, 12], "area": 240, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [26, 9, 15, 21], "area": 315, "iscrowd": 0},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}


def _changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    content = copy.deepcopy(BASE)
    change(content)
    return json.dumps(content).encode()


def _first(of: str, **values: Any) -> bytes:
    return _changed(lambda content: content[of][0].update(values))


def _without(of: str, key: str) -> bytes:
    return _changed(lambda content: content[of][0].pop(key))


def _again(of: str, **values: Any) -> bytes:
    return _changed(lambda content: content[of].append({**content[of][0], **values}))


def annotations() -> dict[str, BadAnnotations]:
    """Every kind of annotation file."""
    whole, thing = json.dumps(BASE).encode(), "annotations"
    deep = b"[" * 100_000
    nested = whole[:-1] + b', "x": ' + deep
    refused: dict[str, tuple[bytes, str]] = {
        "an empty file": (b"", "not JSON"),
        "a file that is cut": (whole[:-20], "Is it complete"),
        "a comma too many": (whole.replace(b"]}", b",]}"), "line 1, column"),
        "bytes that are no text": (b"\xff\xfe\x00\xd8" + whole, "not JSON"),
        "a list": (b"[]", "expected an object"),
        "a hundred thousand brackets": (nested, "not JSON"),
        "a number of 10,000 digits": (whole.replace(b"240", b"9" * 10_000), "not JSON|finite|number"),
        "a list twice": (whole[:-1] + b', "annotations": []}', "'annotations' stands twice"),
        "a key twice in an entry": (
            whole.replace(b'"bbox":', b'"bbox": [1, 2, 3, 4], "bbox":', 1),
            "'bbox' stands twice",
        ),
        "a mask of another image": (
            _first(thing, bbox=None, segmentation={"size": [4, 4], "counts": [0, 16]}),
            "of 4 x 4 pixels",
        ),
        "no images": (_changed(lambda c: c.update(images=[])), "Give at least one"),
        "no classes": (_changed(lambda c: c.update(categories=[])), "Give at least one"),
        "no list of images": (_changed(lambda c: c.pop("images")), "Give an 'instances' file"),
        "annotations that are null": (_changed(lambda c: c.update(annotations=None)), "must be a list"),
        "an image id twice": (_again("images", file_name="b.png"), "used twice"),
        "a class id twice": (_again("categories", name="cow"), "used twice"),
        "a class name twice": (_again("categories", id=9), "Rename or merge"),
        "an image without a name": (_without("images", "file_name"), "Add it"),
        "an image id that is a text": (_first("images", id="one"), "an integer of 64 bits"),
        "a size that is a text": (_first("images", width="wide"), "Correct the annotation file"),
        "an image that is not there": (_first("images", file_name="other.png"), "no such file"),
        "a name that leads out of the directory": (_first("images", file_name="../b.png"), "allow-outside"),
        "a name of 5,000 characters": (_first("images", file_name="a" * 5000), "cannot be used"),
        "a name with a zero byte": (_first("images", file_name="a\0.png"), "cannot be used"),
        "an unknown image": (_first(thing, image_id=7), "Correct either"),
        "an unknown class": (_first(thing, category_id=7), "Correct either"),
        "a box of three numbers": (_first(thing, bbox=[1, 2, 3]), "four numbers"),
        "a box of texts": (_first(thing, bbox=["1", "2", "3", "4"]), "four numbers"),
        "no box and no segmentation": (_without(thing, "bbox"), "Add it"),
        "an area that is a text": (_first(thing, area="big"), "a finite number"),
        "a crowd flag of 2": (_first(thing, iscrowd=2), "0 or 1"),
        "fractions of the image": (
            _changed(lambda c: [a.update(bbox=[0.1, 0.2, 0.3, 0.4], area=0.12) for a in c[thing]]),
            "accept_boxes|accept-boxes|fractions",
        ),
    }
    right = {
        "a byte-order mark": read(b"\xef\xbb\xbf" + whole),
        "UTF-16": read(json.dumps(BASE).encode("utf-16")),
        "a box over the border": read(_first(thing, bbox=[30, 5, 40, 9], area=360), clipped=1),
        "a box outside of the image": read(_first(thing, bbox=[90, 5, 4, 4]), outside=1, boxes=1),
        "a box without area": read(_first(thing, bbox=[9, 9, 0, 4]), degenerate=1, boxes=1),
        "a negative size": read(_first(thing, bbox=[9, 9, -3, 4]), degenerate=1, boxes=1),
        "NaN": read(_first(thing, bbox=[9, float("nan"), 3, 4]), degenerate=1, boxes=1),
        "an infinite box": read(_first(thing, bbox=[9, 9, float("inf"), 4]), degenerate=1, boxes=1),
        "an area of 0": read(_first(thing, area=0), replaced_area=1),
        "a negative area": read(_first(thing, area=-5), replaced_area=1),
        "no area": read(_without(thing, "area"), filled_area=1),
        "no crowd flag": read(_without(thing, "iscrowd"), filled_iscrowd=1),
        "an annotation twice": read(_again(thing, id=3), repeated_boxes=1),
        "an id as a float": read(_first(thing, image_id=1.0)),
        "an id of 64 bits": read(_first(thing, id=2**62)),
        "a polygon without a box": read(
            _first(thing, bbox=None, segmentation=[[4, 5, 24, 5, 24, 17, 4, 17]]), filled_bbox=1
        ),
        "a wrong size": read(_first("images", width=WIDTH + 5), resized=1),
        "a size of 0": read(_first("images", width=0, height=0)),
        "a name with backslashes": read(_first("images", file_name=".\\a.png"), renamed=1),
        "a name in capitals": read(_first("images", file_name="A.PNG"), renamed=1),
        "keys that nobody knows": read(_first(thing, score=0.5, attributes={"x": [1]})),
    }
    return {name: BadAnnotations(*value) for name, value in refused.items()} | right
