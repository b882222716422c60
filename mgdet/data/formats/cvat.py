"""Annotations of CVAT: the XML file that it exports as "CVAT for images 1.1"."""

import logging
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

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
from mgdet.data.formats.xml import named, number_of, read_xml, require_names, size_of
from mgdet.errors import DataError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

logger = logging.getLogger(__name__)

CORNERS = ("xtl", "ytl", "xbr", "ybr")
WITHOUT_BOX = ("polyline", "points", "cuboid", "skeleton", "tag")
"""Shapes that are no area of the picture: they are counted and left out."""


class Cvat(WrittenFormat):
    """CVAT's file of images. Polygons, masks, ellipses and turned boxes are taken as their bounds."""

    name: ClassVar[str] = "cvat"
    summary: ClassVar[str] = "import an XML file of 'CVAT for images 1.1'"
    takes_uris: ClassVar[bool] = True

    def read(self, places: Sequence[Path]) -> AnnotatedSplit:
        """See `DataFormat`.

        Raises:
            DataError: no XML, tracks of a video, no images, ids used twice, or shapes without label or numbers.
        """
        return self.survey(places, raise_it)

    def survey(self, places: Sequence[Path], refuse: Refuse) -> AnnotatedSplit:
        """See `DataFormat`."""
        path, directory = places
        root = read_xml(path)
        at = str(path)
        if root.tag != "annotations":
            raise DataError(f"{path}: its element is <{root.tag[:80]}>, expected <annotations>. Is this CVAT's file?")
        if root.find("track") is not None:
            raise DataError(f"{path} holds the tracks of a video. Export the task as 'CVAT for images 1.1'.")
        left_out: Counter[str] = Counter()
        images: dict[int, AnnotatedImage] = {}
        for image, here in named(root, "image", at):
            try:
                found = _image(image, here, images)
            except DataError as error:
                refuse(error, None, None)
                continue
            images[found.id] = found
            left_out.update(shape.tag for shape in image if shape.tag in WITHOUT_BOX)
            for shape in image:
                try:
                    if shape.tag not in WITHOUT_BOX:
                        found.objects.append(_object(shape, f"{here} ({found.file_name})"))
                except DataError as error:
                    refuse(error, found.id, None)
        if not images:
            raise DataError(f"{path} has no images, there is nothing to learn. Export the task again, with its images.")
        if left_out:
            kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(left_out.items()))
            logger.warning("%s: shapes without an area are left out: %s", path, kinds)
        return AnnotatedSplit(path, directory, list(images.values()), _labels(root))

    @classmethod
    def layout(cls, out: Path, split: str) -> tuple[Path, ...]:
        """See `DataFormat`."""
        return out / f"{split}.xml", out / "images" / split

    def write(self, content: AnnotatedSplit, places: Sequence[Path]) -> None:
        """See `DataFormat`; images are numbered from 0.

        Raises `DataError` for the name of a class that XML cannot hold.
        """
        from xml.etree.ElementTree import Element, SubElement, indent, tostring

        classes = list((content.categories or {}).values())
        require_names(classes)
        root = Element("annotations")
        SubElement(root, "version").text = "1.1"
        labels = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
        for name in classes:
            SubElement(SubElement(labels, "label"), "name").text = name
        for number, image in enumerate(content.images):
            height, width = image.size or (0, 0)
            named_as = {"id": str(number), "name": image.file_name, "width": str(width), "height": str(height)}
            element = SubElement(root, "image", named_as)
            for thing in image.objects:
                if not thing.iscrowd:
                    corners = dict(zip(CORNERS, map(repr, thing.box), strict=True))
                    SubElement(element, "box", {"label": thing.category, "occluded": "0", **corners})
        tell_crowds(content, "CVAT")
        indent(root)
        places[0].write_bytes(tostring(root, encoding="utf-8", xml_declaration=True))


def _image(element: "Element", at: str, known: Container[int]) -> AnnotatedImage:
    """An image without its objects."""
    number = number_of(element.get("id"), "id", at)
    if not (number.is_integer() and abs(number) <= 2**53) or int(number) in known:
        raise DataError(f"{at}: id {element.get('id')!r}: allowed are integers, each once. Correct the file.")
    if not (name := element.get("name")):
        raise DataError(f"{at}: it has no name. Correct the file.")
    size = size_of(element.get("width"), element.get("height"), f"{at} ({name})")
    return AnnotatedImage(int(number), name, size, [])


def _labels(root: "Element") -> dict[int, str] | None:
    """The labels of the task or project, in its order; None where the file does not list them."""
    names = [(label.findtext("name") or "").strip() for label in root.iterfind("meta//labels/label")]
    distinct = dict.fromkeys(name for name in names if name)  # jobs of a project list theirs again
    return dict(enumerate(distinct, start=1)) or None


def _object(shape: "Element", at: str) -> AnnotatedObject:
    if not (label := shape.get("label")):
        raise DataError(f"{at}: a <{shape.tag[:80]}> has no label. Correct the file.")
    here = f"{at}: {shape.tag[:80]} {label!r}"
    if shape.tag == "box":
        x1, y1, x2, y2 = _numbers(shape, CORNERS, here)
        turn = number_of(shape.get("rotation", "0"), "rotation", here)
        return AnnotatedObject(label, _turned((x1, y1, x2, y2), turn))
    if shape.tag == "polygon":
        points = [point.split(",") for point in (shape.get("points") or "").split(";")]
        if any(len(point) != 2 for point in points):
            raise DataError(f"{here}: its points are {shape.get('points')!r:.80}, allowed is x,y;x,y;... Correct it.")
        xs, ys = ([number_of(value, "a point", here) for value in axis] for axis in zip(*points, strict=True))
        return AnnotatedObject(label, (min(xs), min(ys), max(xs), max(ys)), from_mask=True)
    if shape.tag == "mask":
        left, top, width, height = _numbers(shape, ("left", "top", "width", "height"), here)
        return AnnotatedObject(label, (left, top, left + width, top + height), from_mask=True)
    if shape.tag == "ellipse":
        x, y, rx, ry = _numbers(shape, ("cx", "cy", "rx", "ry"), here)
        turn = number_of(shape.get("rotation", "0"), "rotation", here)
        return AnnotatedObject(label, _around_ellipse((x, y, rx, ry), turn), from_mask=True)
    known = ("box", "polygon", "mask", "ellipse", *WITHOUT_BOX)
    raise DataError(f"{here}: such a shape is not known; known are {', '.join(known)}. Export without it.")


def _numbers(shape: "Element", names: Sequence[str], at: str) -> tuple[float, ...]:
    return tuple(number_of(shape.get(name), name, at) for name in names)


def _turned(box: Box, degrees: float) -> Box:
    """The bounds of a box that is turned about its centre."""
    if not degrees:
        return box
    from math import cos, radians, sin

    x1, y1, x2, y2 = box
    c, s = abs(cos(radians(degrees))), abs(sin(radians(degrees)))
    w, h = (c * (x2 - x1) + s * (y2 - y1)) / 2, (s * (x2 - x1) + c * (y2 - y1)) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - w, y - h, x + w, y + h


def _around_ellipse(ellipse: Box, degrees: float) -> Box:
    """The bounds of an ellipse (centre, two radii) that is turned about its centre."""
    from math import cos, hypot, radians, sin

    x, y, rx, ry = ellipse
    c, s = cos(radians(degrees)), sin(radians(degrees))
    w, h = hypot(rx * c, ry * s), hypot(rx * s, ry * c)
    return x - w, y - h, x + w, y + h
