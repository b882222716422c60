"""Annotation files as an examination sees them: read as `prepare` reads them, but going on after every fault."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mgdet.data.choices import Choices
from mgdet.data.classes import common_categories
from mgdet.data.files import files_below, image_suffixes, name_parts
from mgdet.data.fitting import annotated_corners, check_units, fit_objects, frames_of_split
from mgdet.data.formats.base import AnnotatedImage, AnnotatedSplit, DataFormat
from mgdet.data.frames import Frame, Pictured, undecided
from mgdet.data.importer import check_splits
from mgdet.data.ledger import Ledger
from mgdet.data.readings import within_a_pixel
from mgdet.data.schema import Progress
from mgdet.data.verify import Source, Unusable, Usable, list_files, verify
from mgdet.diagnosis.base import NO_ID, Case, Cases, Data, Finding, Split, corners_of
from mgdet.diagnosis.pictures import look_at
from mgdet.errors import DataError
from mgdet.ground_truth import GroundTruth
from mgdet.storage import read_file
from mgdet.structures import Category

_KIND_OF_NOTE = {"clipped": "clipped", "degenerate": "degenerate", "outside": "outside", "replaced_area": "area"}
"""Kinds of findings by what the importer's ledger calls it."""


def open_annotated(
    data_format: DataFormat,
    splits: Sequence[tuple[str, Sequence[str | os.PathLike[str]]]],
    choices: Choices,
    workers: int,
    progress: Progress,
) -> tuple[Data, list[Finding]]:
    """The data set that annotation files describe, and what was found while it was read.

    Raises:
        DataError: the splits are not given as the format takes them.
    """
    check_splits(data_format, splits)
    choices = replace(choices, keep_repeated=True)  # entries of one file stay apart, so that each can be named
    found: list[Finding] = []
    cases = Cases()
    contents: dict[str, AnnotatedSplit] = {}
    for name, places in splits:
        try:
            contents[name] = _survey(data_format, name, [Path(place) for place in places], cases)
        except DataError as error:
            found.append(Finding("unusable", what=f"{name}: {error}"))
    categories, disagreement = _categories(list(contents.values()))
    found += disagreement
    opened: dict[str, Split] = {}
    for name, content in contents.items():
        try:
            listed = list_files(name, content, choices, Ledger())
        except DataError as error:
            found.append(Finding("unusable", what=f"{name}: {error}"))
            continue
        source = verify(listed, choices.max_pixels, workers, progress, look_at)
        opened[name], units = _split(source, data_format, categories, choices, cases)
        found += units
    _unlisted(contents, cases)
    parents = {name: above for content in contents.values() for name, above in content.parents.items()}
    place = f"{data_format.name} {', '.join(str(places[0]) for _, places in splits)}"
    return Data(place, opened, categories, parents), [*found, *cases.findings()]


def _survey(data_format: DataFormat, name: str, places: Sequence[Path], cases: Cases) -> AnnotatedSplit:
    refused: list[tuple[DataError, int | None, int | None]] = []
    content = data_format.survey(places, lambda *entry: refused.append(entry))
    names = {image.id: image.file_name for image in content.images}
    for error, image_id, annotation in refused:
        file_name = names.get(image_id, "") if image_id is not None else ""
        cases.add("refused", Case(name, image_id, file_name, annotation, detail=str(error)))
    return content


def _categories(contents: Sequence[AnnotatedSplit]) -> tuple[tuple[Category, ...], list[Finding]]:
    """The classes that the splits agree upon, or else all that there are, and that they do not."""
    if not contents:
        return (), []
    try:
        return tuple(common_categories(contents)), []
    except DataError as error:
        used = (thing.category for content in contents for image in content.images for thing in image.objects)
        listed = (name for content in contents for name in (content.categories or {}).values())
        names = sorted({*used, *listed})
        return tuple(Category(i, name) for i, name in enumerate(names, 1)), [Finding("unusable", what=str(error))]


def _split(
    source: Source, data_format: DataFormat, categories: Sequence[Category], choices: Choices, cases: Cases
) -> tuple[Split, list[Finding]]:
    _files(source, cases)
    _annotation_ids(source, cases)
    frames = frames_of_split(source, data_format, Ledger())
    found = _units(source, data_format, frames, choices)
    labels = {category.name: label for label, category in enumerate(categories)}
    usable = list(source.usable())
    kept: list[_Kept] = []
    for row, ((image, file), frame) in enumerate(zip(usable, frames, strict=True)):
        _frame(source.split, row, image, file, frame, data_format, cases)
        place = _Place(source, row, image, file, frame)
        kept += _objects(place, data_format, choices, cases)
    truth = GroundTruth(
        image_ids=np.array([image.id for image, _ in usable], dtype=np.int64),
        heights=np.array([file.size[0] for _, file in usable], dtype=np.int64),
        widths=np.array([file.size[1] for _, file in usable], dtype=np.int64),
        box_image=np.array([one.row for one in kept], dtype=np.int64),
        boxes=np.array([one.box for one in kept], dtype=np.float64).reshape(-1, 4),
        labels=np.array([labels[one.category] for one in kept], dtype=np.int64),
        iscrowd=np.array([one.iscrowd for one in kept], dtype=np.bool_),
        area=np.array([one.area for one in kept], dtype=np.float64),
        categories=tuple(categories),
    )
    ids = np.array([one.id for one in kept], dtype=np.int64)
    numbers = np.array([one.number for one in kept], dtype=np.int64)
    paths = [source.content.directory / file.name for _, file in usable]
    names, seen = [image.file_name for image, _ in usable], [file.seen for _, file in usable]
    return Split(source.split, truth, names, ids, numbers, seen, lambda row: read_file(paths[row])), found


class _Place(NamedTuple):
    """An image that can be used, in its row, and the picture that its boxes refer to."""

    source: Source
    row: int
    image: AnnotatedImage
    file: Usable
    frame: Frame


class _Kept(NamedTuple):
    """An object that `prepare` would store."""

    row: int
    box: NDArray[np.float64]
    category: str
    iscrowd: bool
    area: float
    id: int
    number: int


def _objects(place: _Place, data_format: DataFormat, choices: Choices, cases: Cases) -> Iterator[_Kept]:
    """The objects of an image that `prepare` would store; what it would drop, cut or replace becomes a case."""
    source, row, image, file, frame = place
    corners = annotated_corners(data_format, image, file)
    within = within_a_pixel(np.array([thing.box for thing in image.objects]).reshape(-1, 4), corners)
    for number, (thing, upright) in enumerate(zip(image.objects, frame.upright(corners), strict=True)):
        shown = (corners_of(upright),) if np.isfinite(upright).all() else ()
        case = Case(source.split, image.id, image.file_name, thing.id, number, boxes=shown, row=row)
        ledger = Ledger()  # one for each object, so that what it notes is of this one
        alone = image._replace(objects=[thing])
        for box, accepted in fit_objects(source, alone, file, frame, data_format, choices, ledger):
            area = float(np.prod(box[2:] - box[:2])) if accepted.area is None else accepted.area
            identity = NO_ID if thing.id is None else thing.id
            yield _Kept(row, box, thing.category, bool(thing.iscrowd), area, identity, number)
        for note, kind in _KIND_OF_NOTE.items():
            if ledger.counts[note]:
                cases.add(kind, case._replace(detail=_detail(note, thing.box, thing.area)))
        if within[number]:
            cases.add("fractions", case._replace(detail=f"{thing.category} {list(thing.box)}"))


def _detail(note: str, box: Sequence[float], area: float | None) -> str:
    numbers = ", ".join(f"{value:g}" for value in box)
    return f"area {area:g} of box [{numbers}]" if note == "replaced_area" and area is not None else f"box [{numbers}]"


def _files(source: Source, cases: Cases) -> None:
    """Files that cannot be used, and names that lead to theirs only by another reading."""
    row = 0
    for image, file in zip(source.images, source.files, strict=True):
        case = Case(source.split, image.id, image.file_name)
        if isinstance(file, Unusable):
            cases.add("missing" if file.missing else "unreadable", case._replace(detail=file.reason))
            continue
        place = source.content.directory / file.name
        if place != source.content.directory / image.file_name:
            cases.add("renamed", case._replace(detail=f"it is {place}", row=row))
        row += 1


def _annotation_ids(source: Source, cases: Cases) -> None:
    """Annotations that have the id of an earlier one of their split."""
    first: dict[int, int] = {}
    for image in source.content.images:
        for number, thing in enumerate(image.objects):
            if thing.id is None:
                continue
            if thing.id in first:
                detail = f"also in image {first[thing.id]}"
                cases.add(
                    "annotation_id", Case(source.split, image.id, image.file_name, thing.id, number, detail=detail)
                )
            first.setdefault(thing.id, image.id)


def _units(source: Source, data_format: DataFormat, frames: Sequence[Frame], choices: Choices) -> list[Finding]:
    """Whether the boxes of the split are in another unit or order: what `prepare` refuses, and what it warns of."""
    try:
        texts = check_units(source, data_format, frames, choices, Ledger())
    except DataError as error:
        return [Finding("units", what=str(error).removesuffix(" Nothing was written."))]
    return [Finding("cramped", what=text) for text in texts if "within 1 pixel" not in text]  # those have cases


def _frame(
    split: str, row: int, image: AnnotatedImage, file: Usable, frame: Frame, data_format: DataFormat, cases: Cases
) -> None:
    """What the annotated size says about the picture that an image's boxes refer to."""
    case = Case(split, image.id, image.file_name, row=row)
    known = Pictured(image.size, file.stored, file.orientation, annotated_corners(data_format, image, file))
    if frame.orientation != 1:
        cases.add("turned", case._replace(detail=f"orientation {frame.orientation}"))
    elif undecided(known) and image.objects:
        cases.add("undecided", case._replace(detail=f"orientation {file.orientation}"))
    elif file.orientation != 1:
        cases.add("orientation", case._replace(detail=f"orientation {file.orientation}"))
    if image.size is None or (image.size == file.size and frame.size == frame.stored):
        return
    detail = f"annotated {image.size[1]} x {image.size[0]}, the file has {file.size[1]} x {file.size[0]}"
    if frame.size != frame.stored:
        cases.add("rescaled", case._replace(detail=detail))
    elif frame.orientation == 1:
        cases.add("size", case._replace(detail=detail))


def _unlisted(contents: dict[str, AnnotatedSplit], cases: Cases) -> None:
    """Image files in the image directories of which no split names one that is called so, in whatever reading."""
    names = (name_parts(image.file_name) for content in contents.values() for image in content.images)
    listed = {parts[-1] for parts in names if parts}
    directories = {content.directory for content in contents.values()}
    for directory in (each for each in directories if isinstance(each, Path) and each.is_dir()):
        for path in files_below(directory):
            if path.suffix.lower() in image_suffixes() and name_parts(path.name)[-1] not in listed:
                cases.add("unlisted", Case("", None, str(path)))
