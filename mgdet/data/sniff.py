"""What a file is that is no image: the reason why it cannot be decoded, told from its first bytes."""

import re

_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = re.compile(rb"^(/annex/objects/|\.\./.*annex/objects/)")
_MARKUP = re.compile(rb"^\s*(<!doctype html|<html|<head|<body)", re.IGNORECASE)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "it is a PDF document: export its pages as PNG"),
    (b"PK\x03\x04", "it is a ZIP archive (or an Office document): unpack it"),
    (b"\x1f\x8b", "it is compressed with gzip: unpack it"),
    (b"BZh", "it is compressed with bzip2: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7-Zip archive: unpack it"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with Zstandard: unpack it"),
    (b"\x93NUMPY", "it is a NumPy array: save it as PNG"),
    (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file: save its pictures as PNG"),
    (b"\x1aE\xdf\xa3", "it is a video (Matroska, WebM): extract its frames"),
    (b"FUJIFILMCCD-RAW", "it is a camera's raw file: develop it to JPEG or PNG"),
    (b"\xff\x0a", "it is JPEG XL, which Pillow cannot read: convert it to JPEG or PNG"),
    (b"\0\0\0\x0cJXL ", "it is JPEG XL, which Pillow cannot read: convert it to JPEG or PNG"),
)


def what_instead(data: bytes) -> str | None:
    """What the bytes of a file are, if they are something well known that is no image, and what to do about it."""
    head = data[:1024]
    if not data:
        return "the file is empty"
    if data.startswith(_LFS):
        return "it is a pointer of Git LFS, not the image itself: run `git lfs pull`"
    if _ANNEX.match(head):
        return "it is a pointer of git-annex, not the image itself: run `git annex get`"
    if _MARKUP.match(head):
        return "it is a web page (HTML), probably the error message of a failed download: download it again"
    if head[4:8] == b"ftyp":
        return _of_container(head)
    if head[128:132] == b"DICM":
        return "it is a DICOM file: convert it to PNG"
    for signature, meaning in _SIGNATURES:
        if data.startswith(signature):
            return meaning
    if b"<svg" in head.lower():
        return "it is an SVG drawing, which has no pixels: render it to PNG"
    if not any(head):
        return "it holds only zeros: a download or copy did not succeed, get it again"
    return _of_text(head) if _is_text(head) else None


def _of_container(head: bytes) -> str | None:
    """The meaning of an ISO media file by its major brand; None for AVIF, which is an image."""
    brand = head[8:12]
    if brand in _HEIF_BRANDS and b"avif" not in head[8:64]:
        return "it is HEIC, which Pillow cannot read without the package pillow-heif: convert it to JPEG or PNG"
    if brand in (b"avif", b"avis") or b"avif" in head[8:64]:
        return None
    return "it is a video (MP4, MOV): extract its frames"


def _is_text(head: bytes) -> bool:
    if any(byte < 9 or 13 < byte < 32 for byte in head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # a character was cut in two
    return True


def _of_text(head: bytes) -> str:
    start = head.decode(errors="replace").strip()
    if start.startswith(("{", "[")):
        return "it is JSON, perhaps the error message of a failed download"
    if start.lower().startswith("<?xml"):
        return "it is XML, perhaps the error message of a failed download"
    return f"it is text, which begins with {start.splitlines()[0][:60]!r}" if start else "it holds only white space"
