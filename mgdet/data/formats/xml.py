"""XML files of annotations, read without anything that a file from outside could do with XML."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mgdet.data.formats.base import read_annotation_file
from mgdet.errors import DataError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element, TreeBuilder
    from xml.parsers.expat import XMLParserType

DEPTH = 64
"""Elements within each other: no format of annotations has more than ten."""


class _Refused(Exception):
    """The file has something that annotations do not need."""


def read_xml(path: Path) -> "Element":
    """The root element of a file.

    Document types are refused, and with them all entities: none is expanded, and no other file or address is opened.

    Raises:
        DataError: the file cannot be read, is not well-formed (with line and column), or has a document type.
    """
    from xml.etree.ElementTree import TreeBuilder
    from xml.parsers import expat

    content = read_annotation_file(path, "XML")
    builder = TreeBuilder()
    try:
        _parser(builder).Parse(content, True)
        return builder.close()
    except expat.ExpatError as error:
        raise DataError(
            f"{path} is not XML: {expat.ErrorString(error.code)} at line {error.lineno}, column {error.offset + 1}. "
            "Is it complete? Export it again."
        ) from error
    except (_Refused, LookupError, ValueError) as error:  # another two: an encoding that Python does not know
        raise DataError(f"{path}: {error}. Give a file of annotations as the tools write it.") from error


def _parser(builder: "TreeBuilder") -> "XMLParserType":
    from xml.parsers import expat

    parser = expat.ParserCreate()
    parser.buffer_text = True
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEPTH:
            raise _Refused(f"more than {DEPTH} elements lie within each other")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def document_type(name: str, *_: object) -> None:
        raise _Refused(f"a document type ({name!r}) is not allowed, as it can define entities")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = document_type
    return parser


def require_names(names: Iterable[str]) -> None:
    """Check that these names of classes can stand in an XML file and be read again. Raises `DataError`."""
    for name in names:
        if name != name.strip() or not name.isprintable():
            raise DataError(f"The class {name!r} cannot stand in an XML file. Rename it, or choose another format.")


def text_of(element: "Element", tag: str) -> str:
    """The text of the first child of this name without white space around it; empty where there is none."""
    return (element.findtext(tag) or "").strip()


def number_of(value: str | None, what: str, at: str) -> float:
    """A finite number. Raises `DataError`, which says that `what` is wrong at `at`."""
    from math import isfinite

    try:
        number = float(value or "")
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        found = "missing" if value is None or not value.strip() else repr(value.strip()[:80])
        raise DataError(f"{at}: {what} is {found}, allowed is a number. Correct the file.")
    return number


def size_of(width: str | None, height: str | None, at: str) -> tuple[int, int] | None:
    """(height, width) in pixels; None where one is missing or 0, as some tools write it where they do not know it.

    Raises:
        DataError: one of them is no whole number of pixels.
    """
    if not (width or "").strip() or not (height or "").strip():
        return None
    numbers = number_of(height, "height", at), number_of(width, "width", at)
    for name, number in zip(("height", "width"), numbers, strict=True):
        if not (number.is_integer() and 0 <= number < 2**31):
            raise DataError(f"{at}: {name} is {number:g}, allowed is a whole number of pixels. Correct the file.")
    return (int(numbers[0]), int(numbers[1])) if all(numbers) else None


def flag_of(value: str, what: str, at: str) -> bool:
    """Whether a flag is set; one that is not there is not. Raises `DataError`."""
    if value.lower() in ("", "0", "false", "no"):
        return False
    if value.lower() in ("1", "true", "yes"):
        return True
    raise DataError(f"{at}: {what} is {value[:80]!r}, allowed are 0 and 1. Correct the file.")


def named(parent: "Element", tag: str, at: str) -> Iterator[tuple["Element", str]]:
    """The children of this name, each with where it stands: `a.xml: object 3`."""
    for number, child in enumerate(parent.findall(tag), start=1):
        yield child, f"{at}: {tag} {number}"
