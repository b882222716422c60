"""What a data format is: how it reads annotations, and which arguments of `mgdet prepare` it has.

The modules of this package are imported before the arguments of `mgdet` are parsed. Whatever takes long to import
(NumPy, XML and image libraries) is imported in the functions that need it.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from mgdet.errors import ConfigError, DataError
from mgdet.files import read_regular

if TYPE_CHECKING:
    from mgdet.storage import File

logger = logging.getLogger(__name__)

T = TypeVar("T")

Box = tuple[float, float, float, float]

Refuse = Callable[[DataError, int | None, int | None], None]
"""Gets what is wrong with an entry of an annotation file, and the ids of its image and annotation if they are known."""


class AnnotatedObject(NamedTuple):
    """A labelled box."""

    category: str
    """The name of its class."""
    box: Box
    """The four numbers of the annotation, in the convention of the format: see `DataFormat.corners`."""
    id: int | None = None
    """The annotation's own id, by which reports name it."""
    iscrowd: bool | None = None
    """Whether the box holds many objects that are not annotated one by one. None: the annotation does not say, no."""
    area: float | None = None
    """In square pixels, where it is not that of the box, such as of a mask. None: width times height of the box."""
    from_mask: bool = False
    """Whether the box is the bounds of a segmentation, because the annotation has no box of its own."""


class AnnotatedImage(NamedTuple):
    """An image and its objects."""

    id: int
    """Unique within the split, 64 bits; a format without ids numbers its images."""
    file_name: str
    """Path of the file, relative to the image directory of the split."""
    size: tuple[int, int] | None
    """(height, width) in pixels as annotated, None where the annotations do not say. The file's own size counts."""
    objects: list[AnnotatedObject]


class AnnotatedSplit(NamedTuple):
    """What the annotations of one split say."""

    annotations: "File"
    """The file or directory that they were read from, by which errors and the manifest name them."""
    directory: "File"
    """The image directory."""
    images: Sequence[AnnotatedImage]
    """In the order in which they are written."""
    categories: Mapping[int, str] | None
    """Names of the classes by id; all splits must agree. None where the format has no list of classes: they are then
    those of the objects of all splits, in alphabetical order with the ids 1, 2, and so on."""
    parents: Mapping[str, str] = {}
    """For each class that has one the class above it, such as COCO's `supercategory`: only reports name it."""


class Option(NamedTuple):
    """An option that only one format has: `--delimiter` on the command line, `delimiter=` in Python."""

    name: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class DataFormat(ABC):
    """A format of annotations, a sub-command of `mgdet prepare`. Options of its own are fields made by `option`."""

    name: ClassVar[str]
    """The name of the sub-command."""
    summary: ClassVar[str]
    """One line for `mgdet prepare --help`."""
    places: ClassVar[tuple[str, ...]] = ("ANNOTATIONS", "IMAGES")
    """What stands after `--split NAME`: one word of help for each path that `read` takes."""
    says_crowd_and_area: ClassVar[bool] = False
    """Whether annotations of this format should say `iscrowd` and `area`: only then are missing ones reported."""
    takes_uris: ClassVar[bool] = False
    """Whether the places may be URIs, because the last one is the image directory, into which `read` does not look, and
    each other one is a single file, which is fetched first."""

    def __post_init__(self) -> None:
        check_options(self.name, self, self.options())

    @abstractmethod
    def read(self, places: Sequence[Path]) -> AnnotatedSplit:
        """Read and check the annotations of one split.

        Boxes are checked against their images later, in the same way for all formats; the image files are not touched.

        Args:
            places: a path for each of `self.places`.

        Raises:
            DataError: the annotations cannot be read or are malformed: says where, what is allowed and what to do.
        """

    def survey(self, places: Sequence[Path], refuse: Refuse) -> AnnotatedSplit:
        """As `read`, but each entry that cannot be used is given to `refuse` and left out.

        A format that cannot go on after its first malformed entry raises it, as this default does.
        """
        return self.read(places)

    def corners(self, box: Box, size: tuple[int, int]) -> Box:
        """The corners (x1, y1, x2, y2) in pixels of an annotated box, which holds just these unless this is overridden.

        Args:
            box: of an `AnnotatedObject`.
            size: (height, width) of the image file, for formats whose boxes are relative to it.
        """
        return box

    @classmethod
    def options(cls) -> Iterator[Option]:
        """The options that only this format has."""
        for each in fields(cls):
            yield Option(each.name, each.default, each.metadata["meaning"])


@dataclass(frozen=True)
class WrittenFormat(DataFormat):
    """A format that `mgdet export-data` also writes."""

    def annotated(self, corners: Box, size: tuple[int, int]) -> Box:
        """The four numbers of a box with these corners: the inverse of `corners`."""
        return corners

    @classmethod
    @abstractmethod
    def layout(cls, out: Path, split: str) -> tuple[Path, ...]:
        """The paths for `write` of a split within an exported data set. Image files go to the last one."""

    @abstractmethod
    def write(self, content: AnnotatedSplit, places: Sequence[Path]) -> None:
        """Write what `read(places)` would give; the image files are there already, and parent directories are made.

        Args:
            content: with a size for every image, classes, and an area and a crowd flag for every object.
            places: those of `layout`.
        """


def read_annotation_file(path: Path, kind: str) -> bytes:
    """The content of a file of annotations; `kind` is what it should be, such as JSON. Raises `DataError`."""
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise DataError(f"Annotation file {path} does not exist. Correct the path.") from None
    except OSError as error:
        raise DataError(f"Cannot read annotation file {path}: {error}. Give a {kind} file that may be read.") from error


def tell_crowds(content: AnnotatedSplit, tool: str) -> None:
    """Say how many crowds are left out where the format of a tool cannot hold them."""
    if crowds := sum(bool(thing.iscrowd) for image in content.images for thing in image.objects):
        logger.warning("%d crowds are left out: %s has no flag for them", crowds, tool)


def raise_it(error: DataError, image: int | None, annotation: int | None) -> None:
    """What `DataFormat.read` does with the first entry that cannot be used."""
    raise error


def check_options(owner: str, value: object, options: Iterator[Option]) -> None:
    """Check that each option of `value` has the type of its default. Raises `ConfigError`, which names `owner`."""
    for each in options:
        given, expected = getattr(value, each.name), type(each.default)
        if type(given) is not expected:
            raise ConfigError(
                f"{owner}: {each.name} = {given!r}: expected {expected.__name__}, such as {each.default!r}"
            )


def option(default: T, meaning: str) -> T:
    """Make a field of a `DataFormat` an option of the command.

    Args:
        default: its value where it is not given: a str, an int or a float, whose type all values have; or False, which
            makes it a flag.
        meaning: its help.
    """
    return field(default=default, metadata={"meaning": meaning})
