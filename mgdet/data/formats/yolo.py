"""Annotations of YOLO: a text file for each image, a line for each object, and a YAML file with the class names."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import ClassVar

from mgdet.data.files import files_below, image_suffixes
from mgdet.data.formats.base import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSplit,
    Box,
    Refuse,
    WrittenFormat,
    raise_it,
    tell_crowds,
)
from mgdet.errors import DataError
from mgdet.files import read_regular
from mgdet.text import first_line, first_of

logger = logging.getLogger(__name__)

COLUMNS = "class, centre x, centre y, width, height"
NO_LABELS = ("classes.txt", "notes.txt")
"""Text files that tools place beside labels."""


class Yolo(WrittenFormat):
    """YOLO's text files, with boxes as shares of the image; an image without a file, or with an empty one, has none.

    Lines of seven numbers or more are polygons, which are taken as their bounds. Images are numbered in order of their
    paths.
    """

    name: ClassVar[str] = "yolo"
    summary: ClassVar[str] = "import YOLO's text files and data.yaml"
    places: ClassVar[tuple[str, ...]] = ("DATA_YAML", "IMAGES")

    def read(self, places: Sequence[Path]) -> AnnotatedSplit:
        """See `DataFormat`; the first path holds the names of the classes, the second is a directory of images.

        The labels of `a/images/b/c.jpg` are `a/labels/b/c.txt`. Where no directory is called `images`, or there is none
        called `labels`, they lie beside their images.

        Raises:
            DataError: no names, no images, no labels for any image, or lines that are no box.
        """
        return self.survey(places, raise_it)

    def survey(self, places: Sequence[Path], refuse: Refuse) -> AnnotatedSplit:
        """See `DataFormat`; an entry is a line of labels."""
        names_file, directory = places
        names = _names(names_file)
        if not directory.is_dir():
            raise DataError(f"{directory} is not a directory. Give the directory of the split's images.")
        pictures = [path for path in files_below(directory) if path.suffix.lower() in image_suffixes()]
        if not pictures:
            raise DataError(f"{directory} has no images in it or below. Correct the path.")
        labels = _directory_of_labels(directory)
        images, read = [], dict[Path, list[str]]()
        for number, path in enumerate(pictures, start=1):
            name = path.relative_to(directory)
            described = (labels / name).with_suffix(".txt")
            if described.is_file():
                read.setdefault(described, []).append(name.as_posix())
            images.append(
                AnnotatedImage(number, name.as_posix(), None, list(_objects(described, names, number, refuse)))
            )
        if not read:
            raise DataError(
                f"None of the {len(pictures)} images of {directory} has a file of labels in {labels}. Place them there."
            )
        _tell_about_others(labels, read.keys())
        if shared := [" and ".join(names) for names in read.values() if len(names) > 1]:
            logger.warning("%s: images share a file of labels: %s", directory, first_of(shared))
        return AnnotatedSplit(labels, directory, images, names)

    def corners(self, box: Box, size: tuple[int, int]) -> Box:
        """See `DataFormat`."""
        (height, width), (x, y, w, h) = size, box
        return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height

    def annotated(self, corners: Box, size: tuple[int, int]) -> Box:
        """See `DataFormat`."""
        (height, width), (x1, y1, x2, y2) = size, corners
        return (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height

    @classmethod
    def layout(cls, out: Path, split: str) -> tuple[Path, ...]:
        """See `DataFormat`."""
        return out / "data.yaml", out / "images" / split

    def write(self, content: AnnotatedSplit, places: Sequence[Path]) -> None:
        """See `DataFormat`. Crowds, for which YOLO has no flag, are left out with a warning."""
        import yaml

        names_file, directory = places
        labels = names_file.parent / "labels" / directory.name
        labels.mkdir(parents=True)
        numbers = {name: number for number, name in enumerate((content.categories or {}).values())}
        for image in content.images:
            lines = [
                f"{numbers[thing.category]} {' '.join(map(repr, thing.box))}\n"
                for thing in image.objects
                if not thing.iscrowd
            ]
            (labels / image.file_name).with_suffix(".txt").write_text("".join(lines), encoding="utf-8")
        tell_crowds(content, "YOLO")
        splits = sorted(path.name for path in directory.parent.iterdir())
        known = {
            "path": ".",
            **{split: f"images/{split}" for split in splits},
            "names": {v: k for k, v in numbers.items()},
        }
        names_file.write_text(yaml.safe_dump(known, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _names(path: Path) -> dict[int, str]:
    """The classes by number: of `data.yaml`, or of a text file with a name a line (`classes.txt`, `obj.names`)."""
    import yaml

    try:
        text = read_regular(path).decode()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Give `data.yaml`, or a text file with a class a line.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Cannot read {path}: {error}. Give `data.yaml`, or a text file with a class a line."
        ) from error
    if path.suffix.lower() not in (".yaml", ".yml"):
        names: object = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            content = yaml.load(text, yaml.BaseLoader)  # makes nothing but texts, lists and mappings
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            raise DataError(f"{path} is not YAML: {first_line(error)}. Correct the file.") from error
        names = content.get("names") if isinstance(content, dict) else None
    by_number = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(by_number, Mapping) or not by_number:
        raise DataError(f"{path} has no names of classes. Give `names:` as a list, or by number.")
    numbered: dict[int, str] = {}
    for number, name in by_number.items():
        shown = repr(name) if isinstance(name, str) else f"a {type(name).__name__}"  # aliases may make it endless
        if not re.fullmatch("[0-9]{1,9}", str(number)) or not isinstance(name, str) or not name:
            raise DataError(f"{path}: names has {number!r:.80}: {shown:.80}; allowed are texts by number from 0.")
        if name in numbered.values() or int(number) in numbered:
            raise DataError(
                f"{path}: the name {name!r:.80} or its number is used twice; results are reported by name. Rename one, "
                "or merge them."
            )
        numbered[int(number)] = name
    return numbered


def _directory_of_labels(images: Path) -> Path:
    parts = list(images.absolute().parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        labels = Path(*parts[:last], "labels", *parts[last + 1 :])
        if labels.is_dir():
            return labels
    return images


def _objects(path: Path, names: Mapping[int, str], image: int, refuse: Refuse) -> Iterator[AnnotatedObject]:
    try:
        lines = read_regular(path).decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path} as text: {error}. Correct or remove it.") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _object(line.split(), f"{path}, line {number}", names)
            except DataError as error:
                refuse(error, image, None)


def _object(columns: list[str], at: str, names: Mapping[int, str]) -> AnnotatedObject:
    try:
        label, *values = map(float, columns)
    except ValueError:
        raise DataError(f"{at}: {first_of(columns)}: allowed are numbers: {COLUMNS}. Correct the line.") from None
    if label not in names:
        raise DataError(f"{at}: class {columns[0]}; allowed are the numbers {first_of(sorted(names))}. Correct it.")
    category = names[int(label)]
    if len(values) == 4:
        x, y, w, h = values
        return AnnotatedObject(category, (x, y, w, h))
    if len(values) < 6 or len(values) % 2:
        raise DataError(
            f"{at}: {len(columns)} numbers; allowed are five ({COLUMNS}), or a class and the x and y of three points "
            "or more. Correct the line."
        )
    left, right, top, bottom = min(values[::2]), max(values[::2]), min(values[1::2]), max(values[1::2])
    box = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    return AnnotatedObject(category, box, from_mask=True)


def _tell_about_others(directory: Path, read: Set[Path]) -> None:
    """Say how many label files belong to no image."""
    others = [
        path.relative_to(directory).as_posix()
        for path in files_below(directory)
        if path.suffix == ".txt" and path.name not in NO_LABELS and path not in read
    ]
    if others:
        logger.warning("%s: %d files of labels belong to no image: %s", directory, len(others), first_of(others))
