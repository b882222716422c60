"""What an examination looks at and what it says: the data in flat arrays, cases by id, findings of a kind.

A check is a function of the `Data` that yields findings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mgdet.diagnosis.kinds import KINDS, Severity, counted
from mgdet.diagnosis.pictures import Look
from mgdet.ground_truth import GroundTruth
from mgdet.structures import Category

NO_ID = np.iinfo(np.int64).min
"""In the place of the id of an annotation that has none."""

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Split:
    """A split with its `N` readable images and the `M` objects that a training sees, in order of their images."""

    name: str
    truth: GroundTruth
    names: Sequence[str]
    """File name of each image."""
    ids: NDArray[np.int64]
    """[M] the annotations' own ids, or `NO_ID`."""
    numbers: NDArray[np.int64]
    """[M] place of each among the annotations of its image, from 0."""
    looks: Sequence[Look]
    """What was seen in each picture."""
    read: Callable[[int], bytes]
    """The image file in a row. Raises `DataError` or `OSError`."""

    def case(
        self, row: int, thing: int | None = None, detail: str = "", *others: int, score: float | None = None
    ) -> "Case":
        """The case of an image, or of one of its objects together with others."""
        image_id, name = int(self.truth.image_ids[row]), self.names[row]
        if thing is None:
            return Case(self.name, image_id, name, detail=detail, row=row, score=score)
        number = int(self.ids[thing])
        return Case(
            self.name,
            image_id,
            name,
            None if number == NO_ID else number,
            int(self.numbers[thing]),
            detail,
            tuple(corners_of(self.truth.boxes[i]) for i in (thing, *others)),
            row,
            score,
        )

    def things(self, row: int) -> NDArray[np.int64]:
        """The objects of an image, by index."""
        first, end = np.searchsorted(self.truth.box_image, [row, row + 1])
        return np.arange(first, end)

    def name_of(self, thing: int) -> str:
        """What texts call an object of this split."""
        case = self.case(int(self.truth.box_image[thing]), thing)
        return f"{case.thing} ({self.truth.categories[int(self.truth.labels[thing])].name})"


def corners_of(box: NDArray[np.float64]) -> Corners:
    """A box `[4]` as plain numbers."""
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2


class Case(NamedTuple):
    """An image or an object that a finding is about."""

    split: str
    image_id: int | None
    file_name: str
    annotation: int | None = None
    """The annotation's own id."""
    object: int | None = None
    """Its place among the annotations of its image, from 0, by which objects without an id are named."""
    detail: str = ""
    boxes: tuple[Corners, ...] = ()
    """In pixels of the upright file; the first is the one that it is about."""
    row: int | None = None
    """Of the image in the `Split`; None where the picture cannot be read."""
    score: float | None = None
    """How suspicious it is, from 0 to 1, where that is measured."""
    twin: tuple[str, int] | None = None
    """Split and row of the picture that it is a copy of."""

    def with_box(self, box: NDArray[np.float64]) -> "Case":
        """The case with one more box."""
        return self._replace(boxes=(*self.boxes, corners_of(box)))

    @property
    def thing(self) -> str:
        """The annotation in words; nothing where it is about the whole image."""
        if self.annotation is not None:
            return f"annotation {self.annotation}"
        return "" if self.object is None else f"object {self.object}"

    def __str__(self) -> str:
        image = self.file_name if self.image_id is None else f"image {self.image_id}"
        if self.image_id is not None and self.file_name:
            image += f" ({self.file_name})"
        return ", ".join(word for word in (self.split, image, self.thing) if word) + (
            f": {self.detail}" if self.detail else ""
        )


@dataclass(frozen=True)
class Finding:
    """Something that was found, and where."""

    kind: str
    """One of `mgdet.diagnosis.kinds.KINDS`."""
    cases: tuple[Case, ...] = ()
    """Ordered by importance; none where it is about the data set as a whole."""
    what: str = ""
    """What this one says beyond the sentence of its kind."""

    @property
    def severity(self) -> Severity:
        """error, warning or note."""
        return KINDS[self.kind].severity

    @property
    def text(self) -> str:
        """One sentence: how many, what, and what to do."""
        return counted(KINDS[self.kind].sentence.format(n=len(self.cases), what=self.what), len(self.cases))


@dataclass(frozen=True)
class Data:
    """A data set under examination."""

    place: str
    """Its URI, or its format and annotation files."""
    splits: Mapping[str, Split]
    categories: tuple[Category, ...]
    parents: Mapping[str, str]
    """The class above each class, where the source says so."""


Check = Callable[[Data], Iterator[Finding]]


class Cases:
    """Gathers cases by kind, and gives a finding for each kind that has some."""

    def __init__(self) -> None:
        self._by_kind: dict[str, list[Case]] = {}

    def add(self, kind: str, case: Case) -> None:
        """Gather a case."""
        self._by_kind.setdefault(kind, []).append(case)

    def findings(self, what: str = "") -> Iterator[Finding]:
        """A finding for each kind, with all its cases and the words for `{what}`."""
        for kind, cases in self._by_kind.items():
            yield Finding(kind, tuple(cases), what)
