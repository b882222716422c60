"""Annotations of PASCAL VOC: one XML file for each image, as VOC and the tool LabelImg write them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mgdet.data.files import image_suffixes
from mgdet.data.formats.base import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSplit,
    Box,
    Refuse,
    WrittenFormat,
    option,
    raise_it,
)
from mgdet.data.formats.xml import flag_of, named, number_of, read_xml, require_names, size_of, text_of
from mgdet.errors import DataError
from mgdet.files import read_regular
from mgdet.text import first_of

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Voc(WrittenFormat):
    """PASCAL VOC's XML files. Difficult objects become crowds: training ignores their surroundings, evaluation them.

    Images are numbered in order of their files. The flags `truncated` and `pose` and the boxes of parts are left out.
    """

    name: ClassVar[str] = "voc"
    summary: ClassVar[str] = (
        "import PASCAL VOC's XML files: a directory of them, or a list such as ImageSets/Main/a.txt"
    )
    inclusive: bool = option(
        False, "boxes count pixels from 1 and hold the last one, as in VOC's own data sets: x1 is xmin - 1"
    )

    def read(self, places: Sequence[Path]) -> AnnotatedSplit:
        """See `DataFormat`; the first path is a directory of XML files, or a list of the names of some.

        A list lies in `ImageSets/Main` beside `Annotations`, as in VOC: one name a line, without suffix. Lists of one
        class (`cat_train.txt`) have a second column, -1 where the image has no such object; all their images are taken.

        Raises:
            DataError: no files, files that are no XML, or objects without a name or four numbers.
        """
        return self.survey(places, raise_it)

    def survey(self, places: Sequence[Path], refuse: Refuse) -> AnnotatedSplit:
        """See `DataFormat`; an entry is a file, with the image that it describes."""
        source, directory = places
        images = []
        for number, path in enumerate(_files(source), start=1):
            try:
                images.append(_image(number, path, directory))
            except DataError as error:
                refuse(error, number, None)
        names = [image.file_name for image in images]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{source}: two files describe the image {twice!r}. Remove one or correct its <filename>.")
        return AnnotatedSplit(source, directory, images, categories=None)

    def corners(self, box: Box, size: tuple[int, int]) -> Box:
        """See `DataFormat`."""
        x1, y1, x2, y2 = box
        return (x1 - 1, y1 - 1, x2, y2) if self.inclusive else box

    def annotated(self, corners: Box, size: tuple[int, int]) -> Box:
        """See `DataFormat`."""
        x1, y1, x2, y2 = corners
        return (x1 + 1, y1 + 1, x2, y2) if self.inclusive else corners

    @classmethod
    def layout(cls, out: Path, split: str) -> tuple[Path, ...]:
        """See `DataFormat`."""
        return out / "ImageSets" / "Main" / f"{split}.txt", out / "JPEGImages"

    def write(self, content: AnnotatedSplit, places: Sequence[Path]) -> None:
        """See `DataFormat`; the XML files go to `Annotations`, beside `ImageSets`. A crowd is a difficult object.

        Raises `DataError` for the name of a class that XML cannot hold.
        """
        require_names((content.categories or {}).values())
        names, directory = places[0], places[0].parents[2] / "Annotations"
        directory.mkdir(exist_ok=True)
        stems = [Path(image.file_name).stem for image in content.images]
        for stem, image in zip(stems, content.images, strict=True):
            (directory / f"{stem}.xml").write_bytes(_written(image))
        names.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")


def _files(source: Path) -> list[Path]:
    """The XML files that a path stands for, in order."""
    if source.is_dir():
        if not (found := sorted(source.glob("*.xml"))):
            raise DataError(f"{source} has no files *.xml. Give the directory `Annotations` of a data set like VOC.")
        return found
    try:
        lines = read_regular(source).decode().splitlines()
    except FileNotFoundError:
        raise DataError(f"{source} does not exist. Give a directory of XML files, or a list of their names.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {source} as a list of names: {error}. Give a directory of XML files.") from error
    directory = next((above / "Annotations" for above in source.parents if (above / "Annotations").is_dir()), None)
    if directory is None:
        raise DataError(
            f"No directory `Annotations` stands beside {source} or above it, so the files of its names cannot be "
            "found. Place it as VOC does, in ImageSets/Main, or give the directory of XML files."
        )
    files = [_named_file(directory, line) for line in lines if line.strip()]
    if not files:
        raise DataError(f"{source} has no names, there is nothing to learn. Give one a line.")
    if missing := [path.name for path in files if not path.is_file()]:
        raise DataError(
            f"{source}: {len(missing)} of {len(files)} names have no file in {directory}: {first_of(missing)}. "
            "Correct the list."
        )
    return files


def _named_file(directory: Path, line: str) -> Path:
    """The file of a line: its whole text is the name, or, if there is no such file, its first word."""
    whole, first = (directory / f"{name.removesuffix('.xml')}.xml" for name in (line.strip(), line.split()[0]))
    return whole if whole.is_file() else first


def _written(image: AnnotatedImage) -> bytes:
    from xml.etree.ElementTree import Element, SubElement, indent, tostring

    def add(parent: "Element", tag: str, text: object) -> None:
        SubElement(parent, tag).text = str(text)

    root = Element("annotation")
    add(root, "filename", image.file_name)
    size = SubElement(root, "size")
    height, width = image.size or (0, 0)
    for tag, number in (("width", width), ("height", height), ("depth", 3)):
        add(size, tag, number)
    for thing in image.objects:
        element = SubElement(root, "object")
        add(element, "name", thing.category)
        add(element, "difficult", int(bool(thing.iscrowd)))
        box = SubElement(element, "bndbox")
        for tag, value in zip(CORNERS, thing.box, strict=True):
            add(box, tag, repr(value))
    indent(root)
    return bytes(tostring(root, encoding="utf-8", xml_declaration=True))


def _image(number: int, path: Path, directory: Path) -> AnnotatedImage:
    root = read_xml(path)
    if root.tag != "annotation":
        raise DataError(f"{path}: its element is <{root.tag[:80]}>, expected <annotation>. Is this a file of VOC?")
    at = str(path)
    size = root.find("size")
    stated = None if size is None else size_of(size.findtext("width"), size.findtext("height"), at)
    return AnnotatedImage(number, _file_name(root, path, directory), stated, list(_objects(root, at)))


def _file_name(root: "Element", path: Path, directory: Path) -> str:
    """What the file says; where no such image is there, one named like the annotations, if there is."""
    said = text_of(root, "filename")
    if said and (directory / said).is_file():
        return said
    suffixes = [kind for suffix in sorted(image_suffixes()) for kind in (suffix, suffix.upper())]
    alike = (path.stem + suffix for suffix in suffixes)
    return next((name for name in alike if (directory / name).is_file()), said or f"{path.stem}.jpg")


def _objects(root: "Element", at: str) -> Iterator[AnnotatedObject]:
    for thing, here in named(root, "object", at):
        category = text_of(thing, "name")
        box = thing.find("bndbox")
        if not category or box is None:
            raise DataError(f"{here}: it has no <{'bndbox' if category else 'name'}>. Correct the file.")
        x1, y1, x2, y2 = (number_of(box.findtext(corner), corner, f"{here} ({category})") for corner in CORNERS)
        yield AnnotatedObject(
            category, (x1, y1, x2, y2), iscrowd=flag_of(text_of(thing, "difficult"), "difficult", here)
        )
