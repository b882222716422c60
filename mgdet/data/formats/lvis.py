"""Annotation files of LVIS: COCO's JSON format, with its own way of naming images."""

import logging
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from mgdet.data.formats.coco import Coco

logger = logging.getLogger(__name__)


class Lvis(Coco):
    """LVIS' files. An image without `file_name` is found by its `coco_url`, below the directory of COCO's images.

    Each image is annotated for some classes only (`neg_category_ids`, `not_exhaustive_category_ids`). mgdet does not
    know this: what is not annotated is background in training, and an error in evaluation.
    """

    name: ClassVar[str] = "lvis"
    summary: ClassVar[str] = "import annotation files of LVIS"
    says_crowd_and_area: ClassVar[bool] = False  # there are no crowds

    @classmethod
    def layout(cls, out: Path, split: str) -> tuple[Path, ...] | None:
        """See `DataFormat`: what makes LVIS more than COCO's format is not kept."""
        return None

    def content(self, path: Path) -> dict[str, list[Any]]:
        """See `Coco`."""
        content = super().content(path)
        partly = 0
        for entry in content["images"]:
            if not isinstance(entry, dict):
                continue  # refused with its place when the images are read
            partly += any(entry.get(key) for key in ("neg_category_ids", "not_exhaustive_category_ids"))
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
