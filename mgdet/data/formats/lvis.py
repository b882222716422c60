"""Annotation files of LVIS: COCO's JSON format, with its own way of naming images."""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from mgdet.data.formats.base import AnnotatedSplit, tell_crowds
from mgdet.data.formats.coco import Coco, ParsedAnnotation, coco_json

logger = logging.getLogger(__name__)


class Lvis(Coco):
    """LVIS' files. An image without `file_name` is found by its `coco_url`, below the directory of COCO's images.

    Each image is annotated for some classes only (`neg_category_ids`, `not_exhaustive_category_ids`). mgdet does not
    know this: what is not annotated is background in training, and an error in evaluation.
    """

    name: ClassVar[str] = "lvis"
    summary: ClassVar[str] = "import annotation files of LVIS"
    says_crowd_and_area: ClassVar[bool] = False  # there are no crowds

    def write(self, content: AnnotatedSplit, places: Sequence[Path]) -> None:
        """See `DataFormat`. Every image is annotated for all classes: those that it lacks are its negative ones."""
        tell_crowds(content, "LVIS")
        tree = coco_json(content)
        annotations = [entry for entry in tree["annotations"] if not entry["iscrowd"]]
        present: defaultdict[int, set[int]] = defaultdict(set)
        for entry in annotations:
            del entry["iscrowd"]
            present[entry["image_id"]].add(entry["category_id"])
        instances = Counter(entry["category_id"] for entry in annotations)
        images = Counter(number for numbers in present.values() for number in numbers)
        every = {entry["id"] for entry in tree["categories"]}
        for entry in tree["images"]:
            entry["neg_category_ids"] = sorted(every - present[entry["id"]])
            entry["not_exhaustive_category_ids"] = []
        for entry in tree["categories"]:
            count = images[entry["id"]]
            entry |= {"image_count": count, "instance_count": instances[entry["id"]], "frequency": _frequency(count)}
        places[0].write_text(json.dumps({**tree, "annotations": annotations}), encoding="utf-8")

    def content(self, path: Path) -> dict[str, list[Any]]:
        """See `Coco`."""
        content = super().content(path)
        partly, exhaustive = 0, _annotated_for_all(content)
        for entry in content["images"]:
            if not isinstance(entry, dict):
                continue  # refused with its place when the images are read
            said = any(entry.get(key) for key in ("neg_category_ids", "not_exhaustive_category_ids"))
            partly += said and not exhaustive(entry)
            if not entry.get("file_name") and isinstance(entry.get("coco_url"), str):
                # http://images.cocodataset.org/train2017/000000391895.jpg
                entry["file_name"] = urlsplit(entry["coco_url"]).path.lstrip("/")
        if partly:
            logger.warning(
                "%s: %d of %d images are annotated for some classes only; what is not annotated is taken for "
                "background, and AP is not that of LVIS, which judges the annotated classes alone",
                path,
                partly,
                len(content["images"]),
            )
        return content


def _annotated_for_all(content: dict[str, list[Any]]) -> Callable[[dict[str, Any]], bool]:
    """Whether the objects and the negative classes of an image are all classes, as in a file that mgdet has written."""
    every = [entry.get("id") for entry in content["categories"] if isinstance(entry, dict)]
    present: defaultdict[str, set[str]] = defaultdict(set)
    for entry in content["annotations"]:
        if isinstance(entry, ParsedAnnotation):  # another one is refused with its place when it is read
            present[str(entry.image_id)].add(str(entry.category_id))

    def exhaustive(image: dict[str, Any]) -> bool:
        negative = image.get("neg_category_ids")
        if image.get("not_exhaustive_category_ids") or not isinstance(negative, list):
            return False
        return {*map(str, negative), *present[str(image.get("id"))]} >= {*map(str, every)}

    return exhaustive


def _frequency(images: int) -> str:
    """LVIS' classes of classes, by the number of images that have one: rare, common or frequent."""
    return "r" if images <= 10 else "c" if images <= 100 else "f"
