"""A prepared data set as an examination sees it. What its manifest says was left out is told again."""

import numpy as np

from mgdet.data.dataset import ShardedDataset
from mgdet.data.schema import Manifest, Progress, read_manifest
from mgdet.diagnosis.base import NO_ID, Case, Cases, Data, Finding, Split
from mgdet.diagnosis.pictures import Look, looks
from mgdet.errors import DataError


def open_prepared(uri: str, max_pixels: int, workers: int, progress: Progress) -> tuple[Data, list[Finding]]:
    """The data set at `uri`, and what was found while it was read.

    Raises:
        DataError: there is no data set.
    """
    manifest = read_manifest(uri)
    found: list[Finding] = []
    cases = Cases()
    splits = {}
    for name in manifest.splits:
        try:
            dataset = ShardedDataset(uri, name)
        except DataError as error:
            found.append(Finding("unusable", what=str(error)))
            continue
        splits[name] = _split(dataset, cases, max_pixels, workers, progress)
    _left_out(manifest, cases)
    return Data(uri, splits, manifest.category_tuple(), {}), [*found, *cases.findings()]


def _split(dataset: ShardedDataset, cases: Cases, max_pixels: int, workers: int, progress: Progress) -> Split:
    seen: list[Look] = []
    rows: list[int] = []
    for row, look in enumerate(looks(dataset.num_images, dataset.read_image, max_pixels, workers)):
        case = Case(dataset.split, int(dataset.image_ids[row]), dataset.file_name(row))
        height, width = dataset.sizes[row].tolist()
        if isinstance(look, DataError):
            cases.add("unreadable", case._replace(detail=str(look)))
        elif look.size != (height, width):
            detail = f"{look.size[1]} x {look.size[0]}, its row says {width} x {height}"
            cases.add("changed", case._replace(detail=detail))
        else:
            if look.orientation != 1:
                cases.add("orientation", case._replace(detail=f"orientation {look.orientation}", row=len(rows)))
            seen.append(look)
            rows.append(row)
        progress(f"looking at {dataset.split}", row + 1, dataset.num_images)
    kept = np.array(rows, dtype=np.int64)
    truth = dataset.ground_truth().subset(kept)
    counts = np.bincount(truth.box_image, minlength=len(rows))
    numbers = np.arange(len(truth.boxes)) - np.repeat(np.cumsum(counts) - counts, counts)
    names = [dataset.file_name(row) for row in rows]
    ids = np.full(len(truth.boxes), NO_ID)
    return Split(dataset.split, truth, names, ids, numbers, seen, lambda row: dataset.read_image(int(kept[row])))


def _left_out(manifest: Manifest, cases: Cases) -> None:
    for box in manifest.changes.dropped_boxes:
        cases.add("left_out", Case(box.split, box.image_id, box.image, box.annotation, detail=box.reason))
    for image in manifest.changes.dropped_images:
        cases.add("left_out", Case("", None, image, detail="its file could not be used"))
