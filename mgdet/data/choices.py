"""What an import does only when it is asked to: options that all formats share."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from mgdet.data.formats.base import Option, check_options, option
from mgdet.errors import ConfigError

MAX_PIXELS = 178_956_970
"""Pixels of an image by default, at most: Pillow's own bound against files that unpack to gigabytes."""

READING = ("allow_outside", "max_pixels")
"""Those that matter also where nothing is written."""


@dataclass(frozen=True)
class Choices:
    """Options of `mgdet prepare` for every format, and keywords of `import_annotations`."""

    skip_bad_images: bool = option(False, "leave out missing and undecodable images instead of refusing them all")
    keep_repeated: bool = option(False, "keep files that are listed twice, and annotations that repeat another one")
    drop_empty_classes: bool = option(False, "leave out classes that have no object in any split")
    map: str = option("", "new names of classes, such as cat=animal,dog=animal; those of one name become one class")
    only: str = option("", "classes to import, separated by commas, by their new names; all others are left out")
    drop: str = option("", "classes to leave out, separated by commas, by their new names")
    accept_boxes: bool = option(False, "import boxes that look as if they were in another unit or order")
    allow_outside: bool = option(False, "let file names lead out of the image directory, by .. or as absolute paths")
    max_pixels: int = option(MAX_PIXELS, "width times height of an image, at most")

    def __post_init__(self) -> None:
        check_options("prepare", self, self.options())
        if self.max_pixels < 1:
            raise ConfigError(f"prepare: max_pixels = {self.max_pixels}: it must be at least 1")

    @classmethod
    def options(cls) -> Iterator[Option]:
        """All of them."""
        for each in fields(cls):
            yield Option(each.name, each.default, each.metadata["meaning"])
