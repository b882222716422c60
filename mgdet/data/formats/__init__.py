"""The formats of annotations that `mgdet prepare` reads. Adding one takes its file and its place in the list below."""

from mgdet.data.formats.base import AnnotatedImage, AnnotatedObject, AnnotatedSplit, Box, DataFormat, Option, option
from mgdet.data.formats.coco import Coco

FORMATS: list[type[DataFormat]] = [Coco]

__all__ = [
    "FORMATS",
    "AnnotatedImage",
    "AnnotatedObject",
    "AnnotatedSplit",
    "Box",
    "Coco",
    "DataFormat",
    "Option",
    "option",
]
