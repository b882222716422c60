"""The kinds of findings: how severe each is, and its sentence.

Three levels. An *error* makes `prepare` refuse the data, or an evaluation worthless. A *warning* is very likely a
fault, which a training would learn or an evaluation count. A *note* is good to know, and often right as it is.
"""

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The worst first."""


class Kind(NamedTuple):
    """A kind of finding."""

    severity: Severity
    title: str
    """Two or three words."""
    sentence: str
    """With the number of cases for `{n}` and, where the finding says more, its words for `{what}`."""


KINDS = {
    "unusable": Kind("error", "unusable data", "{what}"),
    "refused": Kind("error", "refused entries", "{n} entries of annotation files are refused by prepare: mend them"),
    "units": Kind("error", "wrong unit or order", "{what}"),
    "missing": Kind("error", "missing files", "{n} images have no file: restore them, or pass --skip-bad-images"),
    "unreadable": Kind("error", "unreadable files", "{n} image files cannot be decoded: replace them"),
    "changed": Kind(
        "error", "changed files", "{n} pictures have another size than their rows, to which the boxes refer"
    ),
    "leaked": Kind(
        "error",
        "same file in two splits",
        "{n} files are byte for byte in two splits: an evaluation on what was trained on tells nothing",
    ),
    "near_leak": Kind(
        "warning",
        "nearly the same picture in two splits",
        "{n} pictures of one split are nearly one of another (perceptual hashes differ in at most {what} bits): "
        "keep scenes within one split",
    ),
    "repeated_file": Kind(
        "warning", "same file twice", "{n} images are byte for byte another image of their split: merge their objects"
    ),
    "degenerate": Kind("warning", "boxes without area", "{n} boxes have no finite area: prepare drops them"),
    "outside": Kind("warning", "boxes outside", "{n} boxes lie outside of their picture: prepare drops them"),
    "clipped": Kind("warning", "boxes over the border", "{n} boxes reach over the border: prepare cuts them"),
    "fractions": Kind(
        "warning",
        "boxes within a pixel",
        "{n} boxes lie within 1 pixel of the upper left corner, as fractions of the picture do",
    ),
    "cramped": Kind("warning", "boxes of another size", "{what}"),
    "area": Kind(
        "warning", "impossible areas", "{n} areas cannot belong to their boxes: prepare takes width times height"
    ),
    "annotation_id": Kind("warning", "annotation ids twice", "{n} annotations have the id of an earlier one"),
    "size": Kind(
        "warning", "wrong sizes", "{n} pictures have another size than is annotated: check that their boxes fit"
    ),
    "rescaled": Kind(
        "warning", "boxes of another size", "{n} pictures were resized without their boxes: prepare rescales the boxes"
    ),
    "undecided": Kind(
        "warning",
        "undecided orientation",
        "{n} pictures carry an EXIF orientation, and nothing shows whether their boxes are turned: look at them",
    ),
    "dark": Kind("warning", "nearly black", "{n} pictures of more than 8 bits are nearly black: rescale the files"),
    "blank": Kind("warning", "one colour", "{n} pictures have a single colour"),
    "twice": Kind(
        "warning",
        "annotated twice",
        "{n} objects are probably annotated twice (same class, IoU >= {what}): remove one of each",
    ),
    "two_classes": Kind(
        "warning",
        "one box, two classes",
        "{n} objects share a box with one of another class (IoU >= {what}): decide which it is",
    ),
    "empty_class": Kind("warning", "classes without objects", "{what}"),
    "rare_class": Kind("warning", "nearly empty classes", "{what}"),
    "similar_names": Kind("warning", "similar names", "{what}"),
    "unreached": Kind("warning", "no anchor fits", "{what}"),
    "overlooked": Kind(
        "warning", "overlooked objects", "{n} confident detections have no object: were they overlooked?"
    ),
    "swapped": Kind(
        "warning", "swapped classes", "{n} objects are confidently detected as another class: is theirs right?"
    ),
    "badly_placed": Kind(
        "warning", "badly placed boxes", "{n} objects are confidently detected elsewhere: do their boxes fit?"
    ),
    "renamed": Kind("note", "names read otherwise", "{n} file names lead to their file only by another reading"),
    "turned": Kind(
        "note",
        "boxes turned",
        "{n} pictures carry an EXIF orientation and boxes of the stored picture: prepare turns them",
    ),
    "orientation": Kind(
        "note", "EXIF orientation", "{n} pictures carry an EXIF orientation; their boxes refer to the upright picture"
    ),
    "deep": Kind("note", "more than 8 bits", "{n} pictures have more than 8 bits a sample, which are scaled"),
    "alpha": Kind("note", "alpha channel", "{n} pictures have transparency, which is dropped, not blended"),
    "cmyk": Kind("note", "CMYK", "{n} pictures are CMYK: they lose their colour profile when converted to RGB"),
    "frames": Kind("note", "several frames", "{n} files hold several pictures, of which the first is taken"),
    "unlisted": Kind("note", "files not listed", "{n} image files beside those annotated are listed nowhere"),
    "left_out": Kind("note", "left out by prepare", "{n} entries of the source were left out by prepare"),
    "near_copies": Kind(
        "note",
        "similar pictures",
        "{n} pictures are nearly another one of their split (perceptual hashes differ in at most {what} bits)",
    ),
    "id_gaps": Kind("note", "gaps in category ids", "{what}"),
    "no_objects": Kind("note", "no objects", "{n} images have no object outside of crowds"),
    "tiny": Kind("note", "tiny boxes", "{n} boxes have a side under {what} pixels"),
    "whole": Kind("note", "whole picture", "{n} boxes cover {what} of their picture or more"),
    "below_stride": Kind("note", "below the finest stride", "{what}"),
    "some_unreached": Kind("note", "few anchors fit", "{what}"),
    "idle_levels": Kind("note", "levels without objects", "{what}"),
    "suggested": Kind("note", "suggested anchors", "{what}"),
}

_ONE = {
    "entries": "entry",
    "boxes": "box",
    "images": "image",
    "pictures": "picture",
    "files": "file",
    "names": "name",
    "areas": "area",
    "annotations": "annotation",
    "objects": "object",
    "detections": "detection",
}
_OF_ONE = {
    "are": "is",
    "have": "has",
    "were": "was",
    "carry": "carries",
    "reach": "reaches",
    "lie": "lies",
    "share": "shares",
    "lead": "leads",
    "hold": "holds",
    "cover": "covers",
}
_ITS = {
    "their": "its",
    "them": "it",
    "they are": "it is",
    "they lose": "it loses",
    "they": "it",
    "theirs": "it",
    "were": "was",
}


def counted(sentence: str, count: int) -> str:
    """A sentence that begins with a count in the plural, as it is of this number of things."""
    if count != 1 or not sentence.startswith("1 "):
        return sentence

    def first(words: Mapping[str, str], text: str) -> str:
        return re.sub(rf"\b({'|'.join(words)})\b", lambda found: words[found[0]], text, count=1)

    text = first(_OF_ONE, first(_ONE, sentence))
    return re.sub(rf"\b({'|'.join(_ITS)})\b", lambda found: _ITS[found[0]], text)
