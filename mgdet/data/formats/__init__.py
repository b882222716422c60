"""The formats of annotations that `mgdet prepare` reads. Adding one takes its file and its place in the list below."""

from mgdet.data.formats.base import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSplit,
    Box,
    DataFormat,
    Option,
    WrittenFormat,
    option,
)
from mgdet.data.formats.coco import Coco
from mgdet.data.formats.cvat import Cvat
from mgdet.data.formats.lvis import Lvis
from mgdet.data.formats.open_images import OpenImages
from mgdet.data.formats.voc import Voc
from mgdet.data.formats.yolo import Yolo

FORMATS: list[type[DataFormat]] = [Coco, Voc, Yolo, Cvat, Lvis, OpenImages]

__all__ = [
    "FORMATS",
    "AnnotatedImage",
    "AnnotatedObject",
    "AnnotatedSplit",
    "Box",
    "Coco",
    "Cvat",
    "DataFormat",
    "Lvis",
    "OpenImages",
    "Option",
    "Voc",
    "WrittenFormat",
    "Yolo",
    "option",
]
