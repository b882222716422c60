"""Annotations of Open Images: a CSV file of boxes, and one with the names of its classes."""

import csv
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mgdet.data.files import image_suffixes
from mgdet.data.formats.base import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSplit,
    Box,
    Refuse,
    WrittenFormat,
    raise_it,
)
from mgdet.errors import DataError
from mgdet.files import require_regular

logger = logging.getLogger(__name__)

CORNERS = ("XMin", "YMin", "XMax", "YMax")
FLAGS = ("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside")
"""1: yes, 0: no, -1: nobody looked."""
COLUMNS = ("ImageID", "LabelName", *CORNERS)


class OpenImages(WrittenFormat):
    """Open Images' boxes, as shares of the image. Groups (`IsGroupOf`) become crowds.

    Images are numbered in order of their first box; those without a box are not in these files. `Confidence` and the
    other flags are left out.
    """

    name: ClassVar[str] = "openimages"
    summary: ClassVar[str] = "import Open Images' CSV files of boxes and of class names"
    places: ClassVar[tuple[str, ...]] = ("BOXES_CSV", "CLASSES_CSV", "IMAGES")

    def read(self, places: Sequence[Path]) -> AnnotatedSplit:
        """See `DataFormat`; the image `abc` is the file `abc.jpg`, or if there is none, with another suffix.

        Raises:
            DataError: files that are no CSV, columns missing, or lines with another class or without numbers.
        """
        return self.survey(places, raise_it)

    def survey(self, places: Sequence[Path], refuse: Refuse) -> AnnotatedSplit:
        """See `DataFormat`; an entry is a line."""
        boxes, classes, directory = places
        names = _names(classes)
        images: dict[str, AnnotatedImage] = {}
        for row, at in _rows(boxes, refuse):
            file = row["ImageID"]
            if file not in images:
                images[file] = AnnotatedImage(len(images) + 1, _file_name(directory, file), None, [])
            try:
                images[file].objects.append(_object(row, names, at))
            except DataError as error:
                refuse(error, images[file].id, None)
        if not images:
            raise DataError(f"{boxes} has no boxes, there is nothing to learn. Give a file such as train-bbox.csv.")
        return AnnotatedSplit(boxes, directory, list(images.values()), dict(enumerate(names.values(), start=1)))

    def corners(self, box: Box, size: tuple[int, int]) -> Box:
        """See `DataFormat`."""
        (height, width), (x1, y1, x2, y2) = size, box
        return x1 * width, y1 * height, x2 * width, y2 * height

    def annotated(self, corners: Box, size: tuple[int, int]) -> Box:
        """See `DataFormat`."""
        (height, width), (x1, y1, x2, y2) = size, corners
        return x1 / width, y1 / height, x2 / width, y2 / height

    @classmethod
    def layout(cls, out: Path, split: str) -> tuple[Path, ...]:
        """See `DataFormat`."""
        return out / f"{split}-bbox.csv", out / "class-descriptions.csv", out / "images" / split

    def write(self, content: AnnotatedSplit, places: Sequence[Path]) -> None:
        """See `DataFormat`. Images without a box cannot stand in these files, which is told."""
        boxes, classes, _ = places
        numbers = {name: f"/class/{number}" for number, name in (content.categories or {}).items()}
        _write(classes, [[label, name] for name, label in numbers.items()])
        columns = ("ImageID", "Source", "LabelName", "Confidence", *CORNERS, *FLAGS)
        rows = [
            [Path(image.file_name).stem, "mgdet", numbers[thing.category], 1, *map(repr, thing.box)]
            + [int(bool(thing.iscrowd)) if flag == "IsGroupOf" else -1 for flag in FLAGS]
            for image in content.images
            for thing in image.objects
        ]
        _write(boxes, [list(columns), *rows])
        if empty := sum(not image.objects for image in content.images):
            logger.warning("%d images without a box are left out: Open Images' files cannot name them", empty)


def _write(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _file_name(directory: Path, name: str) -> str:
    """The file of an image in the directory; `.jpg` where there is none."""
    suffixes = (".jpg", *sorted(image_suffixes()))
    found = (name + kind for suffix in suffixes for kind in (suffix, suffix.upper()))
    return next((file for file in found if (directory / file).is_file()), f"{name}.jpg")


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


def _rows(path: Path, refuse: Refuse) -> Iterator[tuple[dict[str, str], str]]:
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
            text = f"{path}, line {line}: {len(row)} columns, the first line has {len(header)}. Correct it."
            refuse(DataError(text), None, None)
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
