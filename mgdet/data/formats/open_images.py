"""Annotations of Open Images: a CSV file of boxes, and one with the names of its classes."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from mgdet.data.formats.base import AnnotatedImage, AnnotatedObject, AnnotatedSplit, Box, DataFormat
from mgdet.errors import DataError
from mgdet.files import require_regular

CORNERS = ("XMin", "YMin", "XMax", "YMax")
COLUMNS = ("ImageID", "LabelName", *CORNERS)


class OpenImages(DataFormat):
    """Open Images' boxes, as shares of the image. Groups (`IsGroupOf`) become crowds.

    Images are numbered in order of their first box; those without a box are not in these files. `Confidence` and the
    other flags are left out.
    """

    name: ClassVar[str] = "openimages"
    summary: ClassVar[str] = "import Open Images' CSV files of boxes and of class names"
    places: ClassVar[tuple[str, ...]] = ("BOXES_CSV", "CLASSES_CSV", "IMAGES")

    def read(self, places: Sequence[Path]) -> AnnotatedSplit:
        """See `DataFormat`; the image `abc` is the file `abc.jpg`.

        Raises:
            DataError: files that are no CSV, columns missing, or lines with another class or without numbers.
        """
        boxes, classes, directory = places
        names = _names(classes)
        images: dict[str, AnnotatedImage] = {}
        for row, at in _rows(boxes):
            file = row["ImageID"]
            image = images.setdefault(file, AnnotatedImage(len(images) + 1, f"{file}.jpg", None, []))
            image.objects.append(_object(row, names, at))
        if not images:
            raise DataError(f"{boxes} has no boxes, there is nothing to learn. Give a file such as train-bbox.csv.")
        return AnnotatedSplit(boxes, directory, list(images.values()), dict(enumerate(names.values(), start=1)))

    def corners(self, box: Box, size: tuple[int, int]) -> Box:
        """See `DataFormat`."""
        (height, width), (x1, y1, x2, y2) = size, box
        return x1 * width, y1 * height, x2 * width, y2 * height


def _open(path: Path) -> Iterator[tuple[list[str], int]]:
    """The lines of a CSV file, with their numbers."""
    try:
        require_regular(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for row in reader:
                if row:
                    yield row, reader.line_num
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Correct the path.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read {path} as CSV: {error}. Correct the path or the file.") from error


def _names(path: Path) -> dict[str, str]:
    """The name of each label, such as of `/m/01yrx`."""
    names: dict[str, str] = {}
    for row, line in _open(path):
        if len(row) != 2 or not all(row):
            raise DataError(f"{path}, line {line}: {row}: allowed are a label and its name. Correct the line.")
        if row == ["LabelName", "DisplayName"]:  # the header that some versions have
            continue
        if row[0] in names or row[1] in names.values():
            raise DataError(f"{path}, line {line}: {row[0]!r} or {row[1]!r} stands there twice. Remove one.")
        names[row[0]] = row[1]
    return names


def _rows(path: Path) -> Iterator[tuple[dict[str, str], str]]:
    """The lines of boxes by column, each with where it stands."""
    header: list[str] | None = None
    for row, line in _open(path):
        if header is None:
            header = row
            if missing := [column for column in COLUMNS if column not in header]:
                raise DataError(
                    f"{path}: its first line lacks {', '.join(missing)}. Give a file of boxes, such as train-bbox.csv."
                )
        elif len(row) != len(header):
            raise DataError(f"{path}, line {line}: {len(row)} columns, the first line has {len(header)}. Correct it.")
        else:
            yield dict(zip(header, row, strict=True)), f"{path}, line {line}"


def _object(row: dict[str, str], names: dict[str, str], at: str) -> AnnotatedObject:
    if row["LabelName"] not in names:
        raise DataError(f"{at}: the label {row['LabelName']!r} has no name in the file of classes. Give the right one.")
    try:
        x1, y1, x2, y2 = (float(row[corner]) for corner in CORNERS)
    except ValueError:
        raise DataError(f"{at}: {[row[c] for c in CORNERS]}: allowed are four numbers. Correct the line.") from None
    group = row.get("IsGroupOf", "0").strip()
    if group not in ("0", "1", "-1"):  # -1: nobody looked
        raise DataError(f"{at}: IsGroupOf is {group[:80]!r}, allowed are 0, 1 and -1. Correct the line.")
    return AnnotatedObject(names[row["LabelName"]], (x1, y1, x2, y2), iscrowd=group == "1")
