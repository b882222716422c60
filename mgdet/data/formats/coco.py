"""Annotation files in COCO's JSON format."""

import gc
import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

from mgdet.data.formats.base import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSplit,
    Box,
    Refuse,
    WrittenFormat,
    raise_it,
    read_annotation_file,
)
from mgdet.data.formats.masks import mask_bounds, mask_size
from mgdet.errors import DataError
from mgdet.text import first_of

if TYPE_CHECKING:
    from mgdet.data.schema import Manifest


class CocoSplit(NamedTuple):
    """The source of one split."""

    name: str  # of the split, such as "train"
    annotations: str | os.PathLike[str]  # a file in COCO's JSON format
    images: str | os.PathLike[str]  # the directory to which its `file_name`s are relative


def import_coco(uri: str | os.PathLike[str], splits: Sequence[CocoSplit], **options: Any) -> "Manifest":
    """Convert COCO annotation files and their images: `mgdet.data.import_annotations` with the format `Coco`."""
    from mgdet.data.importer import import_annotations

    return import_annotations(uri, Coco(), [(name, places) for name, *places in splits], **options)


class Coco(WrittenFormat):
    """COCO's `instances` files: one JSON file a split, with lists of images, annotations and categories."""

    name: ClassVar[str] = "coco"
    summary: ClassVar[str] = "import COCO annotation files"
    takes_uris: ClassVar[bool] = True
    says_crowd_and_area: ClassVar[bool] = True

    def read(self, places: Sequence[Path]) -> AnnotatedSplit:
        """See `DataFormat`.

        Raises:
            DataError: not there, not JSON (with line and column), keys missing or of the wrong type, no images or no
                categories, ids used twice, or annotations of unknown images or categories.
        """
        return self.survey(places, raise_it)

    def survey(self, places: Sequence[Path], refuse: Refuse) -> AnnotatedSplit:
        """See `DataFormat`."""
        path, directory = places
        where = str(path)
        with without_collection():
            content = self.content(path)
            categories = _categories(content["categories"], where, refuse)
            images = _images(content["images"], where, refuse)
            entries = content["annotations"]
            for i, entry in enumerate(entries):
                entries[i] = None  # what is made of it takes the place
                at = f"{where}: annotations[{i}]"
                try:
                    known = entry if isinstance(entry, ParsedAnnotation) else _annotation(entry, at)
                    _add(known, at, images, categories)
                except DataError as error:
                    refuse(error, *_ids(entry))
        above = [e for e in content["categories"] if isinstance(e, dict) and isinstance(e.get("supercategory"), str)]
        parents = {str(entry["name"]): entry["supercategory"] for entry in above if "name" in entry}
        return AnnotatedSplit(path, directory, list(images.values()), categories, parents)

    def content(self, path: Path) -> dict[str, list[Any]]:
        """The file's object, whose three lists are there. Raises `DataError`."""
        return _content(path)

    def corners(self, box: Box, size: tuple[int, int]) -> Box:
        """See `DataFormat`; the box is COCO's x, y, width, height in pixels."""
        x, y, w, h = box
        return x, y, x + w, y + h

    def annotated(self, corners: Box, size: tuple[int, int]) -> Box:
        """See `DataFormat`."""
        x1, y1, x2, y2 = corners
        return x1, y1, x2 - x1, y2 - y1

    @classmethod
    def layout(cls, out: Path, split: str) -> tuple[Path, ...]:
        """See `DataFormat`."""
        return out / "annotations" / f"{split}.json", out / "images" / split

    def write(self, content: AnnotatedSplit, places: Sequence[Path]) -> None:
        """See `DataFormat`."""
        places[0].write_text(json.dumps(coco_json(content)), encoding="utf-8")


@contextmanager
def without_collection() -> Iterator[None]:
    """Keep Python from looking for cycles within the block.

    Among millions of new objects, none of which makes one, that takes as long as reading them.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def coco_json(content: AnnotatedSplit) -> dict[str, Any]:
    """A split in COCO's format; see `DataFormat.write` for what it must have."""
    numbers = {name: number for number, name in (content.categories or {}).items()}
    objects = [(image.id, thing) for image in content.images for thing in image.objects]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": numbers[thing.category],
            "bbox": list(thing.box),
            "area": thing.area,
            "iscrowd": int(bool(thing.iscrowd)),
        }
        for number, (image, thing) in enumerate(objects, start=1)
    ]
    sizes = [image.size or (0, 0) for image in content.images]
    images = [
        {"id": image.id, "file_name": image.file_name, "height": height, "width": width}
        for image, (height, width) in zip(content.images, sizes, strict=True)
    ]
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    # pycocotools < 2.0.11 and some other readers fail without `info`
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def read_images(path: Path) -> dict[int, str]:
    """The file name of each image id of an annotation file. Raises `DataError`."""
    content = _load(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(
            f"{path}: expected an object with a list of 'images'. Give an annotation file of COCO's format."
        )
    return {number: image.file_name for number, image in _images(content["images"], str(path), raise_it).items()}


def _content(path: Path) -> dict[str, list[Any]]:
    """The file's object, whose three lists are there."""
    content = _load(path)
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: expected an object with images, annotations and categories, got {_kind(content)}. Give an "
            "'instances' file of COCO."
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            found = _kind(content[key]) if key in content else "nothing"
            raise DataError(f"{path}: {key!r} must be a list, got {found}. Give an 'instances' file of COCO.")
    for key in ("images", "categories"):
        if not content[key]:
            raise DataError(f"{path}: {key!r} is empty, there is nothing to learn. Give at least one.")
    return content


def _load(path: Path) -> Any:
    try:
        # given away at once: the bytes are not kept beside the text that they are decoded to
        return json.loads(read_annotation_file(path, "JSON"), object_pairs_hook=_as_entry)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}. Is it complete? "
            "Export it again."
        ) from error
    except _TwiceError as error:
        raise DataError(
            f"{path}: {error}. Which of them counts is not defined. Correct the annotation file."
        ) from error
    except (ValueError, RecursionError) as error:  # another encoding, or a number of thousands of digits
        raise DataError(f"{path} is not JSON: {error}. Give an annotation file in COCO's format.") from error


class _TwiceError(ValueError):
    """An object of JSON that has a key twice."""


def _as_entry(pairs: list[tuple[str, Any]]) -> "dict[str, Any] | ParsedAnnotation":
    """An object whose keys are there once; an annotation as what is kept of it.

    The polygons of a large file take several times the memory of all else, and nobody looks at them where there are
    boxes.
    """
    content = dict(pairs)
    if len(content) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise _TwiceError(f"the key {twice!r} stands twice in an object, {reprlib.repr(content)}")
    if "image_id" in content and "category_id" in content and "file_name" not in content:
        try:
            return _annotation(content, "")
        except DataError:
            pass  # raised again where it is known which entry this is
    return content


def _categories(entries: list[Any], where: str, refuse: Refuse) -> dict[int, str]:
    categories: dict[int, str] = {}
    for i, entry in enumerate(entries):
        try:
            number, name = _category(entry, f"{where}: categories[{i}]", categories)
        except DataError as error:
            refuse(error, None, None)
        else:
            categories[number] = name
    return categories


def _category(entry: Any, at: str, known: dict[int, str]) -> tuple[int, str]:
    number, name = _integer(entry, "id", at), _text(entry, "name", at)
    if number in known:
        raise DataError(f"{at}: id {number} is used twice ({known[number]!r}, {name!r}). Ids are unique.")
    if name in known.values():
        raise DataError(f"{at}: the name {name!r} is used twice, results are reported by name. Rename or merge.")
    return number, name


def _images(entries: list[Any], where: str, refuse: Refuse) -> dict[int, AnnotatedImage]:
    """The images by id, still without objects."""
    images: dict[int, AnnotatedImage] = {}
    for i, entry in enumerate(entries):
        try:
            image = _image(entry, f"{where}: images[{i}]", images)
        except DataError as error:
            refuse(error, _number(entry, "id"), None)
        else:
            images[image.id] = image
    return images


def _image(entry: Any, at: str, known: dict[int, AnnotatedImage]) -> AnnotatedImage:
    number, name = _integer(entry, "id", at), _text(entry, "file_name", at)
    if number in known:
        raise DataError(f"{at} ({name}): image id {number} is used twice. Ids are unique within a file.")
    size = None
    if entry.get("height") and entry.get("width"):  # some tools write 0 where they do not know it
        size = (_length(entry, "height", at), _length(entry, "width", at))
    return AnnotatedImage(number, name, size, [])


class ParsedAnnotation(NamedTuple):
    """An entry of the list of annotations that is well-formed by itself."""

    image_id: int
    category_id: int
    thing: AnnotatedObject
    """Still without its category."""
    mask_size: tuple[int, int] | None
    """Of the mask whose bounds are the box."""


def _annotation(entry: Any, at: str) -> ParsedAnnotation:
    image_id, category_id = _integer(entry, "image_id", at), _integer(entry, "category_id", at)
    box, from_mask = _box(entry, at)
    area, iscrowd = entry.get("area"), entry.get("iscrowd")
    if area is not None and not (_is_number(area) and math.isfinite(area)):
        _wrong(at, "area", "a finite number", area)
    if iscrowd is not None and iscrowd not in (0, 1):
        _wrong(at, "iscrowd", "0 or 1", iscrowd)
    thing = AnnotatedObject(
        "",
        box,
        id=_number(entry, "id"),
        iscrowd=None if iscrowd is None else bool(iscrowd),
        area=None if area is None else float(area),
        from_mask=from_mask,
    )
    return ParsedAnnotation(image_id, category_id, thing, mask_size(entry["segmentation"]) if from_mask else None)


def _add(known: ParsedAnnotation, at: str, images: dict[int, AnnotatedImage], categories: dict[int, str]) -> None:
    """Add an annotation to its image."""
    image_id, category_id, thing, size = known
    if image_id not in images:
        raise DataError(f"{at} (id {thing.id}) has image_id {image_id}, which 'images' lacks. Correct either.")
    if category_id not in categories:
        raise DataError(
            f"{at} (id {thing.id}) has category_id {category_id}; allowed are the ids in 'categories': "
            f"{first_of(sorted(categories))}. Correct either."
        )
    if size:  # the bounds are in pixels of that image
        image = images[image_id]
        if image.size not in (None, size):
            raise DataError(
                f"{at} (id {thing.id}) has only a mask, of {size[0]} x {size[1]} pixels (height x width); its image is "
                f"said to have {image.size[0]} x {image.size[1]}. Correct either."
            )
        images[image_id] = image._replace(size=size)
    images[image_id].objects.append(AnnotatedObject(categories[category_id], *thing[1:]))


def _box(entry: dict[str, Any], at: str) -> tuple[Box, bool]:
    """The annotation's box; where it has none, or one without area, the bounds of its segmentation, and True."""
    bbox: Any = entry.get("bbox")
    whole = isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))
    if not whole or not (bbox[2] > 0 and bbox[3] > 0):
        bounds = mask_bounds(entry.get("segmentation"))
        if bounds is not None and (not bbox or whole):
            return bounds, True
    if not whole:
        _wrong(at, "bbox", "four numbers [x, y, width, height]", _get(entry, "bbox", at))
    x, y, w, h = map(float, bbox)
    return (x, y, w, h), False


def _get(entry: Any, key: str, at: str) -> Any:
    if not isinstance(entry, dict):
        raise DataError(f"{at}: expected an object, got {_kind(entry)}.")
    if key not in entry:
        raise DataError(f"{at}: the key {key!r} is missing. It has: {first_of(sorted(map(str, entry)))}. Add it.")
    return entry[key]


def _integer(entry: Any, key: str, at: str) -> int:
    value = _get(entry, key, at)
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, float):  # exact up to here; beyond, several integers are the same float
        value = int(value) if value.is_integer() and abs(value) <= 2**53 else None
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        _wrong(at, key, "an integer of 64 bits", entry[key])
    return value


def _number(entry: Any, key: str) -> int | None:
    """An integer of 64 bits, where that is what stands there."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _ids(entry: Any) -> tuple[int | None, int | None]:
    """The ids of its image and of an annotation itself, as far as they are there."""
    if isinstance(entry, ParsedAnnotation):
        return entry.image_id, entry.thing.id
    return _number(entry, "image_id"), _number(entry, "id")


def _length(entry: Any, key: str, at: str) -> int:
    value = _integer(entry, key, at)
    if not 0 < value < 2**31:
        _wrong(at, key, "a number of pixels from 1 to 2147483647", value)
    return value


def _text(entry: Any, key: str, at: str) -> str:
    value = _get(entry, key, at)
    if not isinstance(value, str) or not value:
        _wrong(at, key, "a text that is not empty", value)
    return value


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    if type(value) is float:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**1023


def _wrong(at: str, key: str, allowed: str, value: Any) -> NoReturn:
    raise DataError(f"{at}: {key!r} is {str(value)[:80]!r}, allowed is {allowed}. Correct the annotation file.")


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), type(value).__name__)
