"""What an import does only when it is asked to: options that all formats share."""

from collections.abc import Iterator, Sequence
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
    tile: int = option(0, "cut larger images into tiles of so many pixels in height and width; 0: leave them whole")
    overlap: float = option(0.2, "share of a tile that it has in common with its neighbour, at least")
    drop_empty_tiles: str = option("", "splits, separated by commas, whose tiles without objects are left out")

    def __post_init__(self) -> None:
        check_options("prepare", self, self.options())
        if self.max_pixels < 1:
            raise ConfigError(f"prepare: max_pixels = {self.max_pixels}: it must be at least 1")
        check_tiling("prepare", self.tile, self.overlap)

    def empty_tiles_dropped(self, splits: Sequence[str]) -> list[str]:
        """The names in `drop_empty_tiles`. Raises `ConfigError` where one is not among `splits`."""
        names = [name.strip() for name in self.drop_empty_tiles.split(",") if name.strip()]
        if unknown := [name for name in names if name not in splits]:
            raise ConfigError(f"prepare: drop_empty_tiles = {unknown[0]}: the splits are {', '.join(splits)}")
        return names

    @classmethod
    def options(cls) -> Iterator[Option]:
        """All of them."""
        for each in fields(cls):
            yield Option(each.name, each.default, each.metadata["meaning"])


def check_tiling(command: str, tile: int, overlap: float) -> None:
    """Check the size (0: no tiles) and the overlap of tiles. Raises `ConfigError`."""
    if tile != 0 and not 32 <= tile <= 16_384:
        raise ConfigError(f"{command}: tile = {tile}: allowed are 32 to 16384 pixels, or 0 to cut nothing")
    if not 0 <= overlap <= 0.9:
        raise ConfigError(f"{command}: overlap = {overlap:g}: allowed are 0 to 0.9, a share of the tile")
