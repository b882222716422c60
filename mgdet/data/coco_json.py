"""Read and check an annotation file in COCO's JSON format."""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mgdet.errors import DataError
from mgdet.text import first_of


class CocoImage(NamedTuple):
    """One entry of the file's list `images`."""

    id: int
    file_name: str
    size: tuple[int, int] | None  # (height, width) as annotated, if both are


class CocoObject(NamedTuple):
    """One entry of the file's list `annotations`: a labelled box."""

    id: int | None
    category_id: int
    bbox: tuple[float, float, float, float]  # x, y, width, height in pixels
    iscrowd: int | None  # None: absent
    area: float | None  # None: absent


class CocoFile(NamedTuple):
    """The checked content of an annotation file."""

    images: list[CocoImage]
    categories: dict[int, str]  # name by id
    objects: dict[int, list[CocoObject]]  # by image id


def read_coco_json(path: str | os.PathLike[str]) -> CocoFile:
    """Read an annotation file.

    Raises:
        DataError: not there, not JSON (with line and column), keys missing or of the wrong type, no images or no
            categories, ids used twice, or annotations of unknown images or categories.
    """
    content = _load(Path(path))
    where = str(path)
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected an object with images, annotations and categories, got {_kind(content)}.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            found = _kind(content[key]) if key in content else "nothing"
            raise DataError(f"{where}: {key!r} must be a list, got {found}. Is this an 'instances' file of COCO?")
    for key in ("images", "categories"):
        if not content[key]:
            raise DataError(f"{where}: {key!r} is empty, there is nothing to learn. Give at least one.")
    categories = _categories(content["categories"], where)
    images = _images(content["images"], where)
    known = {image.id for image in images}
    objects: dict[int, list[CocoObject]] = {}
    for i, entry in enumerate(content["annotations"]):
        at = f"{where}: annotations[{i}]"
        image_id, thing = _object(entry, at)
        if image_id not in known:
            raise DataError(f"{at} (id {thing.id}) has image_id {image_id}, which 'images' lacks. Correct either.")
        if thing.category_id not in categories:
            raise DataError(
                f"{at} (id {thing.id}) has category_id {thing.category_id}; allowed are the ids in 'categories': "
                f"{first_of(sorted(categories))}. Correct either."
            )
        objects.setdefault(image_id, []).append(thing)
    return CocoFile(images, categories, objects)


def _load(path: Path) -> Any:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"Annotation file {path} does not exist. Correct the path.") from None
    except OSError as error:
        raise DataError(f"Cannot read annotation file {path}: {error}. Give a JSON file that may be read.") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}. Is it complete? "
            "Export it again."
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}. Give an annotation file in COCO's format.") from error


def _categories(entries: list[Any], where: str) -> dict[int, str]:
    categories: dict[int, str] = {}
    for i, entry in enumerate(entries):
        at = f"{where}: categories[{i}]"
        number, name = _integer(entry, "id", at), _text(entry, "name", at)
        if number in categories:
            raise DataError(f"{at}: id {number} is used twice ({categories[number]!r}, {name!r}). Ids are unique.")
        if name in categories.values():
            raise DataError(f"{at}: the name {name!r} is used twice, results are reported by name. Rename or merge.")
        categories[number] = name
    return categories


def _images(entries: list[Any], where: str) -> list[CocoImage]:
    images: list[CocoImage] = []
    seen: set[int] = set()
    for i, entry in enumerate(entries):
        at = f"{where}: images[{i}]"
        number, name = _integer(entry, "id", at), _text(entry, "file_name", at)
        if number in seen:
            raise DataError(f"{at} ({name}): image id {number} is used twice. Ids are unique within a file.")
        seen.add(number)
        size = None
        if entry.get("height") is not None and entry.get("width") is not None:
            size = (_integer(entry, "height", at), _integer(entry, "width", at))
        images.append(CocoImage(number, name, size))
    return images


def _object(entry: Any, at: str) -> tuple[int, CocoObject]:
    image_id = _integer(entry, "image_id", at)
    category_id = _integer(entry, "category_id", at)
    number = entry.get("id")
    bbox = _get(entry, "bbox", at)
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(_is_number(v) for v in bbox)):
        _wrong(at, "bbox", "four numbers [x, y, width, height]", bbox)
    area, iscrowd = entry.get("area"), entry.get("iscrowd")
    if area is not None and not (_is_number(area) and math.isfinite(area)):
        _wrong(at, "area", "a finite number", area)
    if iscrowd is not None and iscrowd not in (0, 1):
        _wrong(at, "iscrowd", "0 or 1", iscrowd)
    x, y, w, h = (float(v) for v in bbox)
    return image_id, CocoObject(
        id=number if isinstance(number, int) else None,
        category_id=category_id,
        bbox=(x, y, w, h),
        iscrowd=None if iscrowd is None else int(iscrowd),
        area=None if area is None else float(area),
    )


def _get(entry: Any, key: str, at: str) -> Any:
    if not isinstance(entry, dict):
        raise DataError(f"{at}: expected an object, got {_kind(entry)}.")
    if key not in entry:
        raise DataError(f"{at}: the key {key!r} is missing. It has: {first_of(sorted(map(str, entry)))}. Add it.")
    return entry[key]


def _integer(entry: Any, key: str, at: str) -> int:
    value = _get(entry, key, at)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        _wrong(at, key, "an integer of 64 bits", value)
    return value


def _text(entry: Any, key: str, at: str) -> str:
    value = _get(entry, key, at)
    if not isinstance(value, str) or not value:
        _wrong(at, key, "a text that is not empty", value)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(at: str, key: str, allowed: str, value: Any) -> NoReturn:
    raise DataError(f"{at}: {key!r} is {str(value)[:80]!r}, allowed is {allowed}. Correct the annotation file.")


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), type(value).__name__)
